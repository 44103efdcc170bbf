"""Readers that leave, writers that die, workers that are killed: complete output stays, and nothing hangs."""

import json
import os
import shutil
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from esim_fast import Classifier, streaming
from tests.processes import assert_nobody_is_left, children, places, start, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs signals and /proc")
ROWS = 20_000  # more than fit into a pipe or a worker's part


def two_workers() -> None:
    streaming.processors = lambda: 2


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("a b c\tc b a\n" * ROWS)
    return path


class TestPredict:
    @pytest.mark.parametrize("prepare", [None, two_workers], ids=["as it is", "two workers"])
    def test_a_reader_that_stops_early(self, model, pairs, prepare):
        with start("predict", model, pairs, "--device", "cpu", prepare=prepare) as command:
            first = json.loads(command.stdout.readline())
            command.stdout.close()
            _, _, stderr = command.finish()
        assert first["line"] == 1
        assert stderr == ""
        assert_nobody_is_left(command.pid)

    def test_a_worker_is_killed(self, model, pairs):
        with start("predict", model, pairs, "--device", "cpu", prepare=two_workers) as command:
            first = command.stdout.readline()
            os.kill(children(command.pid)[0], signal.SIGKILL)
            code, rest, stderr = command.finish()
        assert code == 2
        assert stderr == "esim-fast: a worker process was killed, possibly for lack of memory\n"
        lines = [json.loads(line)["line"] for line in (first + rest).splitlines()]
        assert lines == list(range(1, len(lines) + 1))
        assert_nobody_is_left(command.pid)

    def test_ctrl_c_twice(self, model, pairs):
        """It ends at once, with the processes that it started."""
        with start("predict", model, pairs, "--device", "cpu", prepare=two_workers) as command:
            command.stdout.readline()
            os.kill(command.pid, signal.SIGINT)
            command.process.join(0.05)
            with suppress(ProcessLookupError):
                os.kill(command.pid, signal.SIGINT)
            command.finish()
        assert_nobody_is_left(command.pid)

    def test_predictions_without_delay(self, model):
        """A program that writes pairs may wait for each prediction before it writes the next pair."""
        with start("predict", model, "-", stdin=True) as command:
            for number in (1, 2, 3):
                print("a man sleeps\ta man runs", file=command.stdin, flush=True)
                assert json.loads(command.stdout.readline())["line"] == number
            assert command.finish() == (0, "", "")

    @pytest.mark.parametrize("fate", ["deleted", "truncated"])
    def test_the_file_goes_away(self, model, pairs, fate):
        with start("predict", model, pairs, "--device", "cpu", prepare=two_workers) as command:
            first = command.stdout.readline()
            if fate == "deleted":
                pairs.unlink()
            else:
                os.truncate(pairs, 12 * (ROWS - 2000) + 3)  # inside a row
            code, rest, stderr = command.finish()
        answers = [json.loads(line)["line"] for line in (first + rest).splitlines()]
        assert answers == list(range(1, len(answers) + 1))
        assert code == 0
        if fate == "deleted":
            assert len(answers) == ROWS
            assert stderr == f"{pairs}: the model does not know 80,000 of 120,000 words; do not rely on its answers\n"


@pytest.fixture
def train(tmp_path):
    """Starts training for some epochs."""
    path, directory = tmp_path / "train.tsv", tmp_path / "m"
    path.write_text("label\tpremise\thypothesis\n" + "yes\ta b c\tc b a\nno\td e f g\tg h\n" * 200)
    options = ["--batch-size", 8, "--hidden-size", 8, "--embedding-dim", 8, "--checkpoint-steps", 1, "--patience", 0]
    files = ["--train", path, "--dev", path, "--output", directory]
    return lambda epochs, *more, **how: start("train", *files, *options, "--epochs", epochs, *more, **how)


class TestTrain:
    def test_its_files_go_away(self, train, tmp_path):
        """They are read at the start of a run; cached files stay open while in use."""
        with train(2, "--cache", tmp_path / "cache") as command:
            wait_for((tmp_path / "m" / "checkpoint" / "last.pt").exists)
            (tmp_path / "train.tsv").unlink()
            shutil.rmtree(tmp_path / "cache")
            code, _, stderr = command.finish()
        assert code == 0, stderr
        assert "Traceback" not in stderr
        Classifier.from_pretrained(tmp_path / "m")

    def test_closed_output(self, train, tmp_path):
        """As in ``esim-fast train … 2>&1 | head -1``: it ends as if interrupted, or runs to the end."""
        with train(2, together=True) as command:
            command.stdout.readline()
            command.stdout.close()
        with train(2, "--resume") as command:
            code, _, stderr = command.finish()
        assert code == 0, stderr
        Classifier.from_pretrained(tmp_path / "m")

    def test_one_of_two_processes_is_killed(self, train, tmp_path):
        """The other one ends too, and both can resume."""

        def both(epochs, *more):
            return [train(epochs, *more, environment=place) for place in places(2)]

        with ExitStack() as stack:
            first, second = (stack.enter_context(command) for command in both(50))
            wait_for((tmp_path / "m" / "checkpoint" / "last.pt").exists)
            os.kill(second.pid, signal.SIGKILL)
            code, _, stderr = first.finish()
        assert (code, stderr.splitlines()[-1]) == (2, "esim-fast: another process of this run has ended")
        assert_nobody_is_left(first.pid)
        with ExitStack() as stack:
            commands = [stack.enter_context(command) for command in both(1, "--resume")]
            outcomes = [command.finish() for command in commands]
        assert [code for code, *_ in outcomes] == [0, 0], outcomes
        Classifier.from_pretrained(tmp_path / "m")
