"""``esim-fast predict`` as a process: pipes, signals, memory."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

from tests.cli.commands import write_tsv


def test_a_closed_stdout(model, corpus):
    for source in ([corpus], ["--premise", "a", "--hypothesis", "b"]):
        command = shlex.join([sys.executable, "-m", "esim_fast", "predict", str(model), *map(str, source)])
        result = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True)
        assert "Traceback" not in result.stderr


def test_ctrl_c_twice(model, tmp_path):
    """It ends at once, and so do the processes that it started."""
    path = write_tsv(tmp_path / "many.tsv", [("a man sleeps " * 20, "a man runs")] * 60_000, header=False)
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from esim_fast import cli, streaming; streaming.processors = lambda: 2; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "predict", model, path, "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        process.communicate(timeout=60)
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("processes are left")


def test_answers_come_as_soon_as_the_pairs(model):
    """Whoever writes pairs may wait for each answer before writing the next."""
    command = [sys.executable, "-m", "esim_fast", "predict", model, "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        for number in (1, 2, 3):
            process.stdin.write(b"a man sleeps\ta man runs\n")
            assert json.loads(process.stdout.readline())["line"] == number
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(60) == 0


def test_memory_does_not_grow_with_the_number_of_pairs(model, tmp_path):
    """Peak resident memory, of this process and of its workers, for 10,000 and for 30,000 rows of 5,000 bytes."""
    code = (
        "import resource, sys; from esim_fast.cli import main; code = main(sys.argv[1:]); "
        "peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]; "
        "print(code, *peaks, file=sys.stderr)"
    )
    peaks = []
    for count in (10_000, 30_000):
        path = tmp_path / f"{count}.tsv"
        with open(path, "w") as file:
            file.writelines(f"a man {i:05000} sleeps\ta man runs\n" for i in range(count))
        command = [sys.executable, "-c", code, "predict", model, path, "--device", "cpu"]
        result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        exit_code, *kilobytes = map(int, result.stderr.split())
        assert exit_code == 0
        peaks.append([peak / 1024 for peak in kilobytes])
    for few, many in zip(*peaks, strict=True):
        assert many - few < 60, f"{peaks} MiB"  # the answers to what is added hold 100 MB


def test_output_is_utf8_whatever_the_terminal_speaks(model):
    command = [sys.executable, "-m", "esim_fast", "predict", model, "--premise", "睡觉", "--hypothesis", "Schläft"]
    result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.decode("utf-8"))["premise"] == "睡觉"


def test_a_reader_that_leaves_early(model, tmp_path):
    many = write_tsv(tmp_path / "many.tsv", [("a man sleeps", "a man runs")] * 20_000, header=False)
    command = f"'{sys.executable}' -m esim_fast predict '{model}' '{many}' | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""
