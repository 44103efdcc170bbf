"""``esim-fast predict`` as a process: its output and its memory."""

import json
import subprocess
import sys

import pytest

from tests.processes import start

PAIR = ("--premise", "睡觉", "--hypothesis", "Schläft")


def close_stdout() -> None:
    """Closes stdout, like a shell's >&-."""
    sys.stdout.close()
    sys.stdout = None


def speak_latin_1() -> None:
    """Makes stdout Latin-1, like PYTHONIOENCODING=latin-1."""
    sys.stdout.reconfigure(encoding="latin-1")


@pytest.mark.parametrize("source", ["file", "pair"])
def test_a_closed_stdout(model, corpus, source):
    with start("predict", model, *([corpus] if source == "file" else PAIR), prepare=close_stdout) as command:
        _, _, stderr = command.finish()
    assert "Traceback" not in stderr


def test_output_is_always_utf8(model):
    with start("predict", model, *PAIR, prepare=speak_latin_1) as command:
        code, stdout, stderr = command.finish()
    assert code == 0, stderr
    assert json.loads(stdout)["premise"] == "睡觉"


def test_memory_does_not_grow_with_the_number_of_pairs(model, tmp_path):
    """Peak resident memory of the process and its workers, for 5,000 and for 20,000 rows of 5,000 bytes."""
    code = (
        "import resource, sys; from esim_fast.cli import main; code = main(sys.argv[1:]); "
        "peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]; "
        "print(code, *peaks, file=sys.stderr)"
    )
    peaks = []
    for count in (5_000, 20_000):
        path = tmp_path / f"{count}.tsv"
        with open(path, "w") as file:
            file.writelines(f"a man {i:05000} sleeps\ta man runs\n" for i in range(count))
        command = [sys.executable, "-c", code, "predict", model, path, "--device", "cpu"]
        result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        exit_code, *kilobytes = map(int, result.stderr.split())
        assert exit_code == 0
        peaks.append([peak / 1024 for peak in kilobytes])
    for few, many in zip(*peaks, strict=True):
        assert many - few < 60, f"{peaks} MiB"  # the predictions of the additional rows take 75 MB
