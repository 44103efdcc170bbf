"""Malicious files: on the command line, in their use of memory, and as found by tools/fuzz.py."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from esim_fast.classifier import CONFIG, WEIGHTS
from esim_fast.errors import one_line
from tests.cli.commands import fails, succeeds
from tests.data.files import damage, xz_with_dictionary
from tests.untrusted import fuzz_targets
from tests.untrusted.fuzz_targets import TARGETS, Marker, refusals
from tests.untrusted.hostile import DEEP, PARTS, in_npy, in_torch, save_model, unchanged, write_zip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path)


CRASHES = Path(__file__).parent / "crashes"


class TestCommandLine:
    def test_models(self, model, bomb):
        one = ["predict", model, "--premise", "a", "--hypothesis", "man", "--device", "cpu"]
        for name in PARTS:
            whole = (model / name).read_bytes()
            for content in (bomb, b"[" * DEEP, os.urandom(100)):
                (model / name).write_bytes(content)
                with unchanged(model):
                    assert str(model) in fails(*one)
            (model / name).write_bytes(whole)
        config = json.loads((model / CONFIG).read_text())
        (model / CONFIG).write_text(json.dumps(config | {"a\nb\r\x1b[2J": 0}))
        fails(*one)

    def test_checkpoints(self, tmp_path, bomb):
        folder = tmp_path / "allennlp"
        (folder / "vocabulary").mkdir(parents=True)
        (tmp_path / "net.pt").write_bytes(bomb)
        in_torch({"embedding.weight": torch.zeros(1).expand(10**7, 10**7)}, tmp_path / "large.pt")
        in_torch({"a": torch.zeros(1)}, folder / "best.th")
        os.mkfifo(folder / "vocabulary" / "labels.txt")
        assert "net.pt: holds Python objects" in fails("convert", tmp_path / "net.pt", tmp_path / "m")
        assert "fewer numbers" in fails("convert", tmp_path / "large.pt", tmp_path / "m")
        assert "labels.txt: expected a file" in fails("convert", folder, tmp_path / "m")
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize("name", PARTS)
    def test_conversion_overwrites_nothing(self, model, tmp_path, name):
        (tmp_path / "out").mkdir()
        weights = (model / WEIGHTS).rename(tmp_path / "out" / WEIGHTS)
        if name != WEIGHTS:
            weights = weights.rename(tmp_path / "a.safetensors")
            (tmp_path / "out" / name).write_text("mine")
        with unchanged(tmp_path):
            assert "already holds" in fails("convert", weights, tmp_path / "out")

    def test_training_does_not_resume_from_them(self, tmp_path, bomb):
        """Torch's fused Adam once wrote out of bounds, because it trusts the shapes of the optimizer's state."""
        (tmp_path / "a.tsv").write_text("".join(f"{label}\ta man\tsleeps\n" for label in ("yes", "no") * 10))
        command = ["train", "--train", tmp_path / "a.tsv", "--dev", tmp_path / "a.tsv", "--output", tmp_path / "m"]
        command += [
            "--hidden-size",
            4,
            "--embedding-dim",
            4,
            "--tokenizer",
            "whitespace",
            "--device",
            "cpu",
            "--no-cache",
        ]
        succeeds(*command, "--epochs", 1)
        path = tmp_path / "m" / "checkpoint" / "last.pt"
        whole = path.read_bytes()

        def state(checkpoint: dict) -> dict:
            return checkpoint["states"]["optimizer"]["state"][0]

        changes: list[Callable[[dict], object]] = [
            # The optimizer's state
            lambda checkpoint: state(checkpoint).update(exp_avg=torch.zeros(1)),
            lambda checkpoint: state(checkpoint).update(exp_avg=torch.zeros(1).expand(16, 4)),
            lambda checkpoint: state(checkpoint).update(exp_avg=torch.zeros(4, 16).T),
            lambda checkpoint: state(checkpoint).update(exp_avg=torch.zeros(16, 4).to_sparse()),
            lambda checkpoint: state(checkpoint).update(exp_avg="x"),
            lambda checkpoint: state(checkpoint).pop("step"),
            lambda checkpoint: checkpoint["states"]["optimizer"].update(param_groups=[]),
            # Everything else
            lambda checkpoint: checkpoint["states"].update(net={}),
            lambda checkpoint: checkpoint["states"].pop("optimizer"),
            lambda checkpoint: checkpoint["settings"].update(seed=torch.zeros(3)),
            lambda checkpoint: checkpoint["settings"].update(seed="a\nb"),
            lambda checkpoint: checkpoint["progress"].update(epoch=10**40),
            lambda checkpoint: checkpoint["progress"].update(history=torch.zeros(2)),
            lambda checkpoint: checkpoint.update(random=[{"cpu": torch.zeros(3, dtype=torch.uint8)}]),
            lambda checkpoint: checkpoint.update(more=1),
        ]
        for change in changes:
            checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
            change(checkpoint)
            torch.save(checkpoint, path)
            with unchanged(tmp_path):
                fails(*command, "--epochs", 2, "--resume")
        for content in (bomb, b"", whole[: len(whole) // 2]):
            path.write_bytes(content)
            with unchanged(tmp_path):
                assert "last.pt: " in fails(*command, "--epochs", 2, "--resume")
        path.write_bytes(whole)
        succeeds(*command, "--epochs", 2, "--resume")


MEBIBYTE = 2**20


_LETTER = "a".encode("utf-32-le")


def _npy(shape: str, numbers: bytes, dtype: str = "<U1", by_columns: bool = False) -> bytes:
    return in_npy(f"{{'descr': '{dtype}', 'fortran_order': {by_columns}, 'shape': {shape}, }}", numbers)


def write_bombs(folder: Path) -> None:
    """Small files that declare, or expand to, much more."""
    rows, length = 3_000_000, 5 * 10**7
    bombs = {
        "column-order.npz": (_npy(f"({rows},)", bytes(4 * rows)), _npy(f"({rows}, 16)", bytes(64 * rows), "<f4", True)),
        "one-word.npz": (_npy(f"({rows},)", _LETTER * rows), _npy(f"({rows}, 1)", bytes(4 * rows), "<f4")),
        "long-word.npz": (_npy("(1,)", bytes(4 * length), f"<U{length}"), _npy("(1, 1)", bytes(4), "<f4")),
    }
    for name, (words, vectors) in bombs.items():
        write_zip(folder / name, {"words.npy": words, "vectors.npy": vectors}, zipfile.ZIP_DEFLATED)
    for name in ("long-line.txt.gz", "long-line.tsv.gz"):
        (folder / name).write_bytes(gzip.compress(b"a" * (300 * MEBIBYTE), 1))
    for ending, module in {"bz2": bz2, "xz": lzma}.items():
        for form in ("txt", "tsv"):
            (folder / f"long-line.{form}.{ending}").write_bytes(module.compress(b"a" * (10 * MEBIBYTE)) * 30)
    write_zip(folder / "long-line.tsv.zip", {"a.tsv": b"a" * (300 * MEBIBYTE)}, zipfile.ZIP_DEFLATED)
    (folder / "array.jsonl.gz").write_bytes(gzip.compress(b'[{"label": "' + b"a" * (300 * MEBIBYTE), 1))
    (folder / "blanks.jsonl.gz").write_bytes(gzip.compress(b"[" + b" " * (300 * MEBIBYTE), 1))
    write_zip(folder / "long-line.zip", {"v.txt": b"a" * (300 * MEBIBYTE)}, zipfile.ZIP_DEFLATED)
    write_zip(folder / "one-row.zip", {"v.bin": b"1 10000\na " + bytes(300 * MEBIBYTE)}, zipfile.ZIP_DEFLATED)
    first, short, blank = map(lzma.compress, (b"a 1\nman 2\n", b"a\n" * MEBIBYTE, b"\n" * MEBIBYTE))
    (folder / "short-rows.txt.xz").write_bytes(first + short * 50)
    (folder / "blank-lines.txt.xz").write_bytes(first + blank * 100 + first)
    (folder / "blank-end.txt.xz").write_bytes(first + blank * 100)
    (folder / "dictionary.txt.xz").write_bytes(xz_with_dictionary(b"a 1 2\nman 3 4\n" * 1000, 36))
    (folder / "rows.bin").write_bytes(b"999999999999999999 10000\na ")
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    torch.save({"a": torch.zeros(50 * MEBIBYTE)}, folder / "stored.pt")
    with zipfile.ZipFile(folder / "stored.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (folder / "stored.pt").unlink()
    write_zip(folder / "compressed.pt", members, zipfile.ZIP_DEFLATED)
    torch.save({"embedding.weight": torch.zeros(1).expand(10**5, 10**5)}, folder / "expanded.pt")
    torch.save({"embedding.weight": torch.zeros(7)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    legacy = (folder / "legacy.pt").read_bytes()
    (folder / "legacy.pt").write_bytes(legacy.replace(b"K\x07", b"J\xff\xff\xff\x7f"))  # 2**31 - 1 numbers
    made = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R."  # of 2**30 bytes
    write_zip(folder / "made.pt", {**members, next(name for name in members if name.endswith("data.pkl")): made})
    (folder / "made-legacy.pt").write_bytes(legacy[: legacy.index(b"}q") - 2] + made)
    shared = torch.zeros(10**6)
    torch.save({f"x{number}": shared for number in range(300)}, folder / "shared.pt")
    (folder / "deep.json").write_bytes(b"[" * 10**6)
    # numpy.dtype("V1073741824"), whose scalar would take 1 GiB, and an array of as many numbers.
    kind = b"cnumpy\ndtype\nX\x0b\x00\x00\x00V1073741824\x89\x88\x87R"
    for name, made in (
        ("scalar.pt", b"cnumpy.core.multiarray\nscalar\n" + kind + b"N\x86R"),
        ("array.pt", b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\x00\x00\x00\x40\x85C\x01b\x87R"),
    ):
        pickled = b"\x80\x02}X\x01\x00\x00\x00a" + made + b"s."
        write_zip(folder / name, {**members, next(name for name in members if name.endswith("data.pkl")): pickled})
    write_tar_bombs(folder)


def write_tar_bombs(folder: Path) -> None:
    """Archives that declare, or expand to, much more; in the last one, a GNU header is a file's long name."""
    for name, member, kind in (
        ("weights.tar.gz", "weights.th", tarfile.REGTYPE),
        ("vocabulary.tar.gz", "vocabulary/tokens.txt", tarfile.REGTYPE),
        ("other.tar.gz", "other", tarfile.REGTYPE),
        ("pax.tar.gz", "pax", tarfile.XHDTYPE),
        ("long-name.tar.gz", "name", tarfile.GNUTYPE_LONGNAME),
    ):
        header = tarfile.TarInfo(member)
        header.size, header.type = 300 * MEBIBYTE, kind
        with gzip.open(folder / name, "wb", 1) as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            for _ in range(300):
                file.write(b"a" * MEBIBYTE)


READ_BOMBS = r"""
import contextlib, os, re, resource, sys, time
from pathlib import Path
from esim_fast import Classifier
from esim_fast.compat.archives import as_folder
from esim_fast.compat.checkpoints import convert, read_state_dict, read_words
from esim_fast.data import Vocabulary, load_vectors, read_pairs
from esim_fast.training.checkpoint import Checkpoint

folder = Path(sys.argv[1])
vocabulary = Vocabulary(["<unk>", "<pad>", "a", "man"])
Classifier.from_pretrained(folder / "model", device="cpu").predict(("a", "man"))
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + 1024 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def most_taken():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])

def read(path):
    name = path.name
    if ".tsv" in name or ".jsonl" in name or name.endswith(".parquet"):
        list(read_pairs(path))
    elif name.endswith(".tar.gz"):
        with as_folder(path) as source:
            convert(read_state_dict(source / "weights.th"))
    elif name.endswith((".npz", ".bin", ".gz", ".bz2", ".xz", ".zip")):
        with contextlib.suppress(ValueError):
            load_vectors(path, vocabulary)
        load_vectors(path, vocabulary, on_bad_row=lambda row: None)
    elif name.endswith(".json"):
        read_words(path)
    elif name == "model":
        Classifier.from_pretrained(path, device="cpu")
    else:
        if name.endswith(".pt"):
            with contextlib.suppress(ValueError):
                Checkpoint.load(path)
        convert(read_state_dict(path))

for path in sorted(folder.iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # the most that was taken is what is taken now
    before, begin = most_taken(), time.perf_counter()
    try:
        read(path)
        said = "read"
    except ValueError as error:
        said = str(error)
    print(path.name, (most_taken() - before) // 1024, round(time.perf_counter() - begin, 1), said, sep="\t")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and measured as Linux does it")
def test_memory_and_time(model):
    """The process may allocate 1 GiB more and must use less than a tenth of it."""
    folder = model.parent
    write_bombs(folder)
    done = subprocess.run(
        [sys.executable, "-c", READ_BOMBS, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
    assert len(found) == len(list(folder.iterdir())) == 35
    for name, (mebibytes, seconds, said) in found.items():
        assert int(mebibytes) < 100, (name, found)
        assert float(seconds) < 60, (name, found)
        # One word three million times and then a vector is odd but valid.
        assert (said == "read") == (name in ("model", "one-word.npz", "blank-end.txt.xz")), (name, found)
    print(done.stdout)


class TestTargets:
    """The targets of tools/fuzz.py."""

    @pytest.mark.parametrize("target", TARGETS)
    def test_inputs(self, target):
        """Valid files, old crashes, and the same hundred damaged files every time."""
        draw = random.Random(target)
        seeds, pieces = fuzz_targets.seeds(target), [piece.encode() for piece in fuzz_targets.PIECES]
        kept = sorted(path.read_bytes() for path in (CRASHES / target).glob("*"))
        assert seeds
        damaged = [damage(draw.choice(seeds), draw, pieces) for _ in range(100)]
        for content in (*seeds, *kept, *damaged):
            TARGETS[target](content)

    def test_all_saved_crashes_are_replayed(self):
        assert {path.name for path in CRASHES.iterdir()} <= TARGETS.keys()
        assert all(path.stat().st_size < 20_000 for path in CRASHES.glob("*/*"))
        assert len(list(CRASHES.glob("*/*"))) > 10

    @pytest.mark.parametrize("installed", [False, True])
    def test_the_command(self, installed):
        if installed and find_spec("atheris") is None:
            pytest.skip("atheris is not installed here")
        hidden = "" if installed else "sys.modules['atheris'] = None; "
        code = f"import sys; {hidden}from tools import fuzz; sys.exit(fuzz.main())"
        command = [sys.executable, "-c", code, "--runs", "20", "--target", "words_lines"]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        if installed:
            assert done.returncode == 0, done.stderr
            assert done.stdout.endswith("20 runs of 1 targets, 0 crashes\n")
        else:
            assert done.returncode == 2
            assert done.stderr.splitlines() == ["python -m tools.fuzz: needs atheris: pip install 'atheris>=2.3,<4'"]

    def test_errors_that_a_target_lets_through(self):
        for message in ("a\nb", "a\x1b", "", "x" * 3000):
            with pytest.raises(AssertionError, match="not a line"), refusals(ValueError):
                raise ValueError(message)
        with pytest.raises(RuntimeError), refusals(ValueError):
            raise RuntimeError
        with pytest.raises(AssertionError, match="executed"), refusals():
            pickle.loads(pickle.dumps(Marker(fuzz_targets.marker())))


def test_one_line():
    assert one_line("a: 睡觉 ü 'x'") == "a: 睡觉 ü 'x'"
    assert one_line("a\nb\r\x1b[2J\x85\u2028\ud800\0") == r"a\nb\r\x1b[2J\x85\u2028\ud800\x00"
    assert one_line("a" * 10**6 + " end").endswith(" end")
    assert len(one_line("\n" * 10**6)) < 1100
