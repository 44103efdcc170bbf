"""Readers that go away, writers that die, workers that are killed: what was complete stays, nobody waits forever."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from esim_fast import Classifier
from tests.training.training_tasks import new_model

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs signals and /proc"),
]
SECONDS = 120  # no command here may take longer, or it waits for somebody who is gone
ROOT = Path(__file__).resolve().parents[2]
TWO_WORKERS = (
    "import sys; from esim_fast import cli, streaming; streaming.processors = lambda: 2; "
    "sys.exit(cli.main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    new_model().save_pretrained(path)
    return path


@pytest.fixture
def pairs(tmp_path):
    """More than a pipe or a part of the work holds."""
    path = tmp_path / "pairs.tsv"
    path.write_text("a b c\tc b a\n" * 60_000)
    return path


@contextlib.contextmanager
def start(*command, script=None, **options):
    """``esim-fast`` in a process group of its own, which is killed when it takes too long."""
    program = ["-m", "esim_fast"] if script is None else ["-c", script]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, *program, *map(str, command)]
    with subprocess.Popen(command, env=environment, start_new_session=True, text=True, **pipes) as process:
        watchdog = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(look):
    end = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def assert_nobody_is_left(process):
    """Of the process group that it began."""

    def gone():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone)


class TestPredict:
    @pytest.mark.parametrize("script", [None, TWO_WORKERS], ids=["as it is", "two workers"])
    def test_whoever_reads_has_seen_enough(self, model, pairs, script):
        with start("predict", model, pairs, "--device", "cpu", script=script) as process:
            first = json.loads(process.stdout.readline())
            process.stdout.close()
            stderr = process.stderr.read()
        assert first["line"] == 1
        assert stderr == ""
        assert_nobody_is_left(process)

    def test_a_worker_is_killed(self, model, pairs):
        with start("predict", model, pairs, "--device", "cpu", script=TWO_WORKERS) as process:
            lines = [process.stdout.readline()]
            os.kill(children(process.pid)[0], signal.SIGKILL)
            lines += process.stdout.readlines()
            stderr = process.stderr.read()
        assert process.returncode == 2
        assert stderr == "esim-fast: a worker process was killed; is memory short?\n"
        assert [json.loads(line)["line"] for line in lines] == list(range(1, len(lines) + 1))
        assert_nobody_is_left(process)

    def test_whoever_writes_dies_within_a_row(self, model):
        with start("predict", model, "-", stdin=subprocess.PIPE) as process:
            stdout, stderr = process.communicate("a b\tb a\nc d\td c\na b c")
        assert [json.loads(line)["line"] for line in stdout.splitlines()] == [1, 2]
        assert stderr == "stdin:3: expected 2 columns, got 1\nstdin: 1 bad row left out\n"
        assert process.returncode == 0

    @pytest.mark.parametrize("fate", ["deleted", "truncated"])
    def test_the_file_goes_away(self, model, pairs, fate):
        with start("predict", model, pairs, "--device", "cpu", script=TWO_WORKERS) as process:
            lines = [process.stdout.readline()]
            if fate == "deleted":
                pairs.unlink()
            else:
                os.truncate(pairs, 12 * 50_000 + 3)  # within a row
            lines += process.stdout.readlines()
            stderr = process.stderr.read()
        answers = [json.loads(line)["line"] for line in lines]
        assert answers == list(range(1, len(answers) + 1))
        assert process.returncode == 0
        if fate == "deleted":
            assert len(answers) == 60_000
            assert stderr == ""


TRAIN = ["--batch-size", 8, "--hidden-size", 8, "--embedding-dim", 8, "--checkpoint-steps", 1, "--patience", 0]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("label\tpremise\thypothesis\n" + "yes\ta b c\tc b a\nno\td e f g\tg h\n" * 400)
    return path


def train(corpus, directory, *more, **options):
    files = ["--train", corpus, "--dev", corpus, "--output", directory]
    return start("train", *files, *TRAIN, *more, **options)


class TestTrain:
    def test_its_files_go_away(self, corpus, tmp_path):
        """They are read when a run begins; prepared ones are held by whoever uses them."""
        cache, directory = tmp_path / "cache", tmp_path / "m"
        with train(corpus, directory, "--epochs", 2, "--cache", cache) as process:
            wait_for((directory / "checkpoint" / "last.pt").exists)
            corpus.unlink()
            shutil.rmtree(cache)
            _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert "Traceback" not in stderr
        Classifier.from_pretrained(directory)

    def test_nobody_reads_what_it_says(self, corpus, tmp_path):
        """As in ``esim-fast train … 2>&1 | head -1``: it ends as if interrupted, or goes on to the end."""
        directory = tmp_path / "m"
        with train(corpus, directory, "--epochs", 2, stderr=subprocess.STDOUT) as process:
            process.stdout.readline()
            process.stdout.close()
            process.wait()
        with train(corpus, directory, "--epochs", 2, "--resume") as process:
            _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        Classifier.from_pretrained(directory)

    def test_one_of_two_processes_is_killed(self, corpus, tmp_path):
        directory = tmp_path / "m"
        script = "import sys, runpy; sys.argv = ['torchrun', *sys.argv[1:]]; "
        script += "runpy.run_module('torch.distributed.run', run_name='__main__')"
        command = ["--standalone", "--nproc-per-node=2", "-m", "esim_fast", "train", "--train", corpus, "--dev", corpus]
        command += ["--output", directory, *TRAIN]
        with start(*command, "--epochs", 50, script=script) as process:
            wait_for((directory / "checkpoint" / "last.pt").exists)
            os.kill(children(process.pid)[-1], signal.SIGKILL)
            process.communicate()
        assert process.returncode != 0
        assert_nobody_is_left(process)
        with start(*command, "--epochs", 1, "--resume", script=script) as process:
            _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        Classifier.from_pretrained(directory)
