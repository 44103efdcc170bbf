"""Programs of their own: for what a process asks the machine once."""

import os
import subprocess
import sys


def output_of(program, *arguments, **environment):
    """What a Python program prints, with what is added to its environment."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    run = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout
