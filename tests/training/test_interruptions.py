"""Runs that are killed, interrupted, or out of disk or memory keep their complete files, and --resume continues."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from esim_fast import Classifier
from esim_fast.training import Checkpoint
from tests.processes import fork
from tests.training.interrupted_run import run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
MOMENTS = 10
WORDS = [*"abcdefghijklmno"]


@pytest.fixture(scope="module")
def start(cache):
    """Starts the command; returns its process and the file with its output."""
    logs = itertools.count()

    def begin(*arguments, at=None, file_size=None, memory=None):
        log = cache / f"log-{next(logs)}"
        return fork(run, [*map(str, arguments)], log, at, file_size, memory), log

    return begin


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """``command(directory, …)``: arguments of a run with 2 epochs of 15 steps and a checkpoint every 5 steps."""
    generator, path = random.Random(0), tmp_path_factory.mktemp("corpus") / "pairs.tsv"
    rows = ["gold_label\tsentence1\tsentence2\n"]
    for _ in range(60):
        p, h = (" ".join(generator.choices(WORDS, k=generator.randint(2, 6))) for _ in range(2))
        rows.append(f"{'yes' if set(p.split()) & set(h.split()) else 'no'}\t{p}\t{h}\n")
    path.write_text("".join(rows))
    options = ["train", "--train", path, "--dev", path, "--test", path, "--batch-size", 4, "--epochs", 2]
    options += ["--hidden-size", 8, "--embedding-dim", 8, "--lr", 0.01, "--ema-decay", 0.9, "--patience", 0]
    return lambda directory, *more: [*options, "--checkpoint-steps", 5, "--output", directory, *more]


@pytest.fixture(scope="module")
def whole(start, command, tmp_path_factory):
    """The directory of an uninterrupted run, and how long it took."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    begin = time.perf_counter()
    process, log = start(*command(directory))
    process.join(90)
    assert process.exitcode == 0, log.read_text()
    return directory, time.perf_counter() - begin


def outcome(directory):
    """Everything that two equal runs have in common."""
    metrics = [json.loads(line) | {"seconds": 0} for line in (directory / "metrics.jsonl").read_text().splitlines()]
    weights = [(directory / part / "model.safetensors").read_bytes() for part in (".", "last")]
    return weights, metrics, sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.fixture
def goes_on(start, command, whole):
    """``goes_on(directory)``: its files are complete, and --resume gives the same as an uninterrupted run."""

    def check(directory):
        assert_intact(directory)
        process, log = start(*command(directory, "--resume"))
        process.join(90)
        assert process.exitcode == 0, log.read_text()
        assert outcome(directory) == outcome(whole[0])

    return check


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_run_killed_at_any_moment_resumes_bit_for_bit(start, command, whole, goes_on, tmp_path, moment):
    process, log = start(*command(tmp_path / "m"))
    process.join(random.Random(moment).uniform(0, 1.1 * whole[1]))
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0), log.read_text()
    goes_on(tmp_path / "m")


@pytest.mark.parametrize("at", random.Random(1).sample(range(116), 8))
def test_a_run_killed_while_writing_resumes_bit_for_bit(start, command, goes_on, tmp_path, at):
    """Killed before and after each fsync and rename."""
    process, log = start(*command(tmp_path / "m"), at=at)
    process.join(90)
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    goes_on(tmp_path / "m")


def assert_intact(directory):
    """Files under their final names are complete."""
    checkpoint = directory / "checkpoint" / "last.pt"
    if checkpoint.exists():
        Checkpoint.load(checkpoint)
    for model in (directory, directory / "last"):
        if (model / "model.safetensors").exists():
            Classifier.from_pretrained(model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_the_current_step(start, command, goes_on, tmp_path, number):
    process, log = start(*command(tmp_path / "m"))
    while not (tmp_path / "m" / "checkpoint" / "last.pt").exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(90)
    assert process.exitcode == 128 + number, log.read_text()
    said = log.read_text().rstrip().splitlines()[-1]
    assert said == "esim-fast: interrupted; to continue, run the same command with --resume"
    assert "Traceback" not in log.read_text()
    steps = Checkpoint.load(tmp_path / "m" / "checkpoint" / "last.pt").progress["steps"]
    assert 0 < steps < 30
    goes_on(tmp_path / "m")


def fails_in_one_line(start, arguments, **options):
    process, log = start(*arguments, **options)
    process.join(90)
    assert process.exitcode == 2, log.read_text()
    assert "Traceback" not in log.read_text()
    assert log.read_text().count("esim-fast:") == 1
    return log.read_text().rstrip().splitlines()[-1]


def test_a_file_size_limit_below_a_checkpoint(start, command, whole, goes_on, tmp_path):
    # The first checkpoint fits, because it has no Adam moments yet.
    size = (whole[0] / "checkpoint" / "last.pt").stat().st_size
    message = fails_in_one_line(start, command(tmp_path / "m"), file_size=size - 1000)
    assert message == f"esim-fast: {tmp_path / 'm' / 'checkpoint' / 'last.pt'}: File too large"
    assert Checkpoint.load(tmp_path / "m" / "checkpoint" / "last.pt").progress["steps"] == 0
    goes_on(tmp_path / "m")


@pytest.fixture
def mounted(tmp_path):
    """``mounted(options)``: a new file system in memory."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            done = False
        if not done:
            pytest.skip("no right to mount a file system here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def test_a_full_disk(start, command, whole, goes_on, mounted):
    size = sum(path.stat().st_size for path in whole[0].rglob("*") if path.is_file())
    folder = mounted(f"size={int(0.8 * size)}")
    message = fails_in_one_line(start, command(folder / "m"))
    assert message.endswith(": No space left on device")
    assert message.startswith(f"esim-fast: {folder / 'm'}")
    assert (folder / "m" / "checkpoint" / "last.pt").exists()
    subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(folder)], check=True)
    goes_on(folder / "m")


def test_a_directory_that_becomes_read_only(start, command, goes_on, mounted):
    folder = mounted("size=64m")
    process, _ = start(*command(folder / "m"), at=40)
    process.join(90)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    message = fails_in_one_line(start, command(folder / "new"))
    assert message == f"esim-fast: {folder / 'new'}: Read-only file system"
    message = fails_in_one_line(start, command(folder / "m", "--resume"))
    assert message.startswith(f"esim-fast: {folder / 'm'}")
    assert message.endswith(": Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    goes_on(folder / "m")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are not heeded here")
@pytest.mark.parametrize("megabytes", [40, 60, 100, 140])
def test_too_little_memory(start, tmp_path, megabytes):
    generator = random.Random(0)
    rows = [f"{label}\t{' '.join(generator.choices(WORDS, k=300))}\ta b\n" for label in ("yes", "no") * 30]
    (tmp_path / "pairs.tsv").write_text("".join(rows))
    data = ["train", "--train", tmp_path / "pairs.tsv", "--dev", tmp_path / "pairs.tsv", "--output", tmp_path / "m"]
    message = fails_in_one_line(start, [*data, "--hidden-size", 64, "--batch-size", 60], memory=megabytes * 2**20)
    expected = r"esim-fast: out of memory: epoch 1, batch 1 \(60 pairs, 18120 words, sentences of up to 300\): .*"
    assert re.fullmatch(expected + "; use smaller batches .* or gradient accumulation .*", message), message
    assert_intact(tmp_path / "m")
    assert (tmp_path / "m" / "checkpoint" / "last.pt").exists()
