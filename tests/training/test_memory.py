"""Memory stays flat over many training steps, each with another shape."""

import functools
import os
import random
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import start

# MiB after the first epoch and its evaluation. With an unbounded oneDNN cache it would be 160.
ALLOWED = 16.0


def note_memory(file):
    """Records the MiB of memory of the process after each optimizer step."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.pop(name, None)  # set by a command in the tests' process
    step = torch.optim.AdamW.step

    def noting(*arguments, **options):
        result = step(*arguments, **options)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with open(file, "a") as notes:
            print(pages * 4096 / 2**20, file=notes)
        return result

    torch.optim.AdamW.step = noting


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_memory_stays_flat(tmp_path):
    draw, path = random.Random(0), tmp_path / "pairs.tsv"
    rows = ["label\tpremise\thypothesis\n"]
    for label in ["yes", "no"] * 150:
        sentences = (" ".join(draw.choices("abcdefgh", k=draw.randint(1, 60))) for _ in "ph")
        rows.append("\t".join([label, *sentences]) + "\n")
    path.write_text("".join(rows))
    files = ["--train", path, "--dev", path, "--output", tmp_path / "m"]
    options = ["--hidden-size", 16, "--embedding-dim", 16, "--batch-size", 4, "--epochs", 3, "--patience", 0]
    prepare = functools.partial(note_memory, tmp_path / "notes")
    with start("train", *files, *options, "--ema-decay", 0.99, prepare=prepare) as command:
        code, _, stderr = command.finish()
    assert code == 0, stderr
    looks = [float(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert len(looks) == 225
    assert max(looks) - looks[100] <= ALLOWED, f"MiB after every tenth step: {looks[::10]}"
