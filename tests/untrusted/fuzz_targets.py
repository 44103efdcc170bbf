"""Fuzz targets: functions of a file's bytes that call a reader, for tools/fuzz.py and for replaying old crashes.

Each catches the documented one-line errors and lets all other exceptions through.
"""

import argparse
import atexit
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import shutil
import struct
import tarfile
import tempfile
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from esim_fast import ESIM, Classifier
from esim_fast.classifier import CONFIG, LABELS, VOCABULARY, WEIGHTS
from esim_fast.compat.archives import LABELS as LABELS_FILE
from esim_fast.compat.archives import TOKENS, as_folder
from esim_fast.compat.checkpoints import convert, read_state_dict, read_words
from esim_fast.data import BadRow, DataError, PreparedCorpus, Vocabulary, load_vectors, prepare, read_pairs
from esim_fast.data.cache import _checksum
from esim_fast.training.checkpoint import Checkpoint, random_states
from tests.data.files import zipped
from tests.sources import AllenNLP

WORDS = ["<unk>", "<pad>", "a", "man", "sleeps"]
# A fuzzer's dictionary, with pieces that it would take long to find by chance.
PIECES = [*'{}[]":,()', "null", "true", "True", "NaN", "1e999", "-1", "99999999999999999999", "\\ud800", "\\n", "\n"]
PIECES += ["\u2028", "\x1b[2J", '"a":0,"a":0', "[" * 200, "../../x", "os:system", "<unk>", "PK\x03\x04", "\x1f\x8b"]
PIECES += ["hidden_size", "vocab_size", "padding_idx", "dropout", "variant", "tokenizer", "training", "model"]
PIECES += ["__metadata__", "data_offsets", "shape", "dtype", "BF16", "F64", "F8_E4M3", "I64", "BOOL", "checksum"]
PIECES += ["fortran_order", "descr", "|O", "<U9", "<f8", "\x93NUMPY", "\x80\x02c", "\nR", "ctorch\nload\n"]
PIECES += ["premise", "sentence1", "label", "ends", "tokens", "words", "bad_rows", "label_names", "rows", "found"]
ROWS = [("entailment", "a man", 'a "man" sleeps'), ("-", "a", "Ünï 睡觉"), ("neutral", "sleeps", "a")]


class Marker:
    """Its pickle creates a file if it is loaded unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@cache
def folder() -> Path:
    """A folder for files, removed when this process ends."""
    path, process = Path(tempfile.mkdtemp(prefix="esim-fast-fuzz-")), os.getpid()
    atexit.register(lambda: os.getpid() == process and shutil.rmtree(path, ignore_errors=True))  # not in a forked child
    return path


@cache
def marker() -> Path:
    """A file that exists only if something was executed."""
    return folder() / "executed"


@cache
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ESIM(2, 3, len(WORDS), 2).eval(), Vocabulary(WORDS), ["entailment", "neutral"], "whitespace")


def controls(character: str) -> bool:
    """Whether a character ends a line, controls a terminal or is a lone surrogate."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


@contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Catches documented errors, if they are one line of limited length and nothing else was printed or executed."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield
        except (DataError, *kinds) as error:
            message = str(error)
            if len(message.splitlines()) != 1 or any(map(controls, message)) or len(message) > 2000:
                raise AssertionError(f"not a line for people: {message[:3000]!r}") from error
    if said:
        raise AssertionError(f"a warning beside the answer: {said[0].message}")
    if marker().exists():
        marker().rmdir()
        raise AssertionError("something was executed")


def written(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


@cache
def model_directory() -> Path:
    directory = folder() / "model"
    model().save_pretrained(directory)
    return directory


def part_of_a_model(name: str, content: bytes) -> None:
    """A model directory with one foreign file."""
    path = model_directory() / name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        with refusals():
            found = Classifier.from_pretrained(model_directory(), device="cpu")
            found.predict(("a man", "sleeps"))
        assert path.read_bytes() == content
    finally:
        path.write_bytes(whole)


def weights_header(content: bytes) -> None:
    """The JSON header of a model's weights."""
    whole = (model_directory() / WEIGHTS).read_bytes()
    numbers = whole[8 + struct.unpack("<Q", whole[:8])[0] :]
    part_of_a_model(WEIGHTS, struct.pack("<Q", len(content)) + content + numbers)


def checkpoint(content: bytes, ending: str = ".pt") -> None:
    with refusals(ValueError):
        state_dict = read_state_dict(written(f"checkpoint{ending}", content))
        convert(state_dict)


def checkpoint_pickle(content: bytes) -> None:
    """The pickle inside a torch.save file, whose tensor data are unchanged."""
    checkpoint(_with_pickle(_saved(model().net.state_dict()), content))


def archive(content: bytes) -> None:
    """AllenNLP's tar archive, compressed or not."""
    path = written("model.tar.gz", content)
    with refusals(ValueError), as_folder(path) as source:
        weights = path if source == path else source / "weights.th"
        convert(read_state_dict(weights), read_words(source / TOKENS), read_words(source / LABELS_FILE))


def last(content: bytes) -> None:
    """A run's checkpoint, and a training step from there."""
    net, optimizer = _trained()
    with refusals():
        Checkpoint.load(written("last.pt", content)).restore({"net": net, "optimizer": optimizer}, torch.device("cpu"))
        optimizer.step()


def last_pickle(content: bytes) -> None:
    last(_with_pickle(_last(), content))


def words(content: bytes, ending: str) -> None:
    with refusals(ValueError):
        found = read_words(written(f"words{ending}", content))
        convert(model().net.state_dict(), found)


def vectors(content: bytes, ending: str) -> None:
    """Without bad rows, skipping them changes nothing; with bad rows, each is reported."""
    path, bad, whole = written(f"vectors{ending}", content), list[BadRow](), None
    with refusals():
        whole = load_vectors(path, Vocabulary(WORDS))
    with refusals():
        found = load_vectors(path, Vocabulary(WORDS), on_bad_row=bad.append)
        assert found.matrix.shape[0] == len(found.vocabulary)
        assert found.found
        assert (whole is None) == bool(bad)
        assert whole is None or whole.matrix.equal(found.matrix)
    assert all(not any(map(controls, row.reason)) and len(row.reason) < 2000 for row in bad)


def vectors_npz_members(content: bytes) -> None:
    """The two arrays of an archive, concatenated; the archive around them is valid."""
    first, magic, second = content.rpartition(b"\x93NUMPY")
    vectors(zipped({"words.npy": first, "vectors.npy": magic + second}), ".npz")


def pairs(content: bytes, ending: str) -> None:
    """Every row is a pair or reported; a bad first row may make the whole file an error."""
    path = written(f"pairs{ending}", content)
    for labeled in (True, False):
        bad: list[BadRow] = []
        with refusals():
            lines = [pair.line for pair in read_pairs(path, labeled=labeled, on_bad_row=bad.append)]
            assert lines == sorted(set(lines))
            assert not {row.line for row in bad} & set(lines)
            assert all(not any(map(controls, row.reason)) and len(row.reason) < 2000 for row in bad)


def corpus_cache(content: bytes) -> None:
    """A forged cache entry with the right key and checksum never becomes another corpus."""
    path, key = _cache_entry()
    whole = path.read_bytes()
    try:
        arrays = safetensors.torch.load(content)
        safetensors.torch.save_file(arrays, path, {"key": key, "checksum": _checksum(key, arrays)})
    except Exception:  # without tensors there is no checksum to forge
        path.write_bytes(content)
    try:
        with refusals():
            corpus = prepare_corpus()
            pairs = corpus.encode(Vocabulary(WORDS), ["entailment", "neutral"])
            if len(pairs):
                pairs[range(len(pairs))]
            corpus.label_counts(), corpus.word_counts(labeled=True), corpus.digest
    finally:
        path.write_bytes(whole)


def prepare_corpus() -> PreparedCorpus:
    source = folder() / "corpus.tsv"
    if not source.exists():
        source.write_text("".join("\t".join(row) + "\n" for row in ROWS), encoding="utf-8")
    return prepare(source, "whitespace", cache=folder() / "cache", skip_bad_rows=True, workers=1)


@cache
def _cache_entry() -> tuple[Path, str]:
    prepare_corpus()
    (path,) = (folder() / "cache").glob("*.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        return path, file.metadata()["key"]


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def allennlps_archive() -> bytes:
    """The files of an AllenNLP training run, before packing."""
    file = io.BytesIO()
    words = "\n".join(["@@PADDING@@", "@@UNKNOWN@@", *WORDS[2:]]).encode()
    members = {
        "weights.th": _saved(AllenNLP(len(WORDS), 3, 2, 2).state_dict()),
        TOKENS: words,
        LABELS_FILE: b"yes\nno\n",
    }
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _trained() -> tuple[ESIM, torch.optim.Optimizer]:
    """The checkpoint of a network after one step."""
    net = ESIM(2, 3, len(WORDS), 2)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return net, optimizer


@cache
def _last() -> bytes:
    path = folder() / "whole.pt"
    net, optimizer = _trained()
    states = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
    Checkpoint({"seed": 0}, {"epoch": 1, "history": []}, states, [random_states(torch.device("cpu"))]).save(path)
    return path.read_bytes()


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _with_pickle(content: bytes, pickled: bytes) -> bytes:
    """A torch.save file with another pickle inside."""
    members = _members(content)
    return zipped({name: pickled if name.endswith("data.pkl") else content for name, content in members.items()})


def _pickle_in(content: bytes) -> bytes:
    return next(content for name, content in _members(content).items() if name.endswith("data.pkl"))


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@cache
def _seeds() -> dict[str, list[bytes]]:
    """Valid files, as the library or numpy writes them, and a pickle in disguise."""
    weights = (model_directory() / WEIGHTS).read_bytes()
    state = _saved(model().net.state_dict())
    beside = {"best": np.float64(0.5), "curve": np.ones(2), "options": argparse.Namespace(lr=0.1)}
    with_objects = _saved({"epoch": 3, **beside, "model": model().net.state_dict()})
    disguised = pickle.dumps(Marker(marker()), protocol=2)
    numbers = np.arange(9, dtype=np.float32).reshape(3, 3)
    text = b"a 1 2 3\nman 4 5 6\nthe 7 8 9\n"
    names = np.array(["a", "man", "the"])
    arrays, transposed = _npz(words=names, vectors=numbers), _npz(words=names, vectors=numbers.T)
    table = "".join("\t".join(row) + "\n" for row in ROWS).encode()
    records = [dict(zip(("label", "premise", "hypothesis"), row, strict=True)) for row in ROWS]
    binary = b"2 3\na " + numbers[0].tobytes() + b"\nman " + numbers[1].tobytes() + b"\n"
    return {
        **{name: [(model_directory() / file).read_bytes()] for name, file in _MODEL_FILES.items()},
        "weights": [weights, disguised],
        "weights_header": [weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]]],
        "archive": [allennlps_archive(), gzip.compress(allennlps_archive(), mtime=0), disguised],
        "checkpoint": [state, with_objects, disguised, _with_pickle(state, disguised)],
        "checkpoint_pickle": [_pickle_in(state), _pickle_in(with_objects), disguised],
        "checkpoint_safetensors": [weights, disguised],
        "last": [_last(), disguised],
        "last_pickle": [_pickle_in(_last()), disguised],
        "words_json": [json.dumps(WORDS).encode(), json.dumps({word: i for i, word in enumerate(WORDS)}).encode()],
        "words_lines": ["\n".join(WORDS).encode(), disguised],
        "vectors_text": [text, b"3 3\n" + text],
        "vectors_tabs": [text.replace(b" ", b"\t"), b"3 3\n" + re.sub(rb"(?m)^(\w+) ", rb"\1\t", text)],
        "vectors_gz": [gzip.compress(text, mtime=0)],
        "vectors_bz2": [bz2.compress(text)],
        "vectors_xz": [lzma.compress(binary), lzma.compress(binary, check=lzma.CHECK_NONE)],
        "vectors_zip": [zipped({"v.txt": text}), zipped({"v.bin": binary}, zipfile.ZIP_DEFLATED)],
        "vectors_binary": [binary, disguised],
        "vectors_npz": [arrays, transposed, disguised],
        "vectors_npz_members": [b"".join(_members(content).values()) for content in (arrays, transposed)],
        "corpus_cache": [_cache_entry()[0].read_bytes(), disguised],
        "pairs_tsv": [table, b"gold_label\tsentence1\tsentence2\n" + table],
        "pairs_csv": [b'label,premise,hypothesis\nneutral,"a, b","c\n""d"""\nneutral,a,b\n'],
        "pairs_jsonl": ["".join(json.dumps(record) + "\n" for record in records).encode()],
        "pairs_gz": [gzip.compress(table, mtime=0)],
        "pairs_bz2": [bz2.compress(table)],
        "pairs_xz": [lzma.compress(table)],
        "pairs_zip": [zipped({"a.tsv": table}, zipfile.ZIP_DEFLATED)],
        "pairs_json": [json.dumps(records).encode(), json.dumps(records, indent=1).encode()],
    }


_MODEL_FILES = {"config": CONFIG, "labels": LABELS, "vocabulary": VOCABULARY, "weights": WEIGHTS}
_VECTORS = {"text": ".txt", "tabs": ".vec", "binary": ".bin", "npz": ".npz"}
_VECTORS |= {"gz": ".txt.gz", "bz2": ".txt.bz2", "xz": ".bin.xz", "zip": ".zip"}
_PAIRS = {"tsv": ".tsv", "csv": ".csv", "jsonl": ".jsonl", "json": ".json"}
_PAIRS |= {packed: f".tsv.{packed}" for packed in ("gz", "bz2", "xz", "zip")}
TARGETS: dict[str, Callable[[bytes], None]] = {
    **{name: partial(part_of_a_model, file) for name, file in _MODEL_FILES.items()},
    "weights_header": weights_header,
    "archive": archive,
    "checkpoint": checkpoint,
    "checkpoint_pickle": checkpoint_pickle,
    "checkpoint_safetensors": partial(checkpoint, ending=".safetensors"),
    "last": last,
    "last_pickle": last_pickle,
    "words_json": partial(words, ending=".json"),
    "words_lines": partial(words, ending=".txt"),
    **{f"vectors_{form}": partial(vectors, ending=ending) for form, ending in _VECTORS.items()},
    "vectors_npz_members": vectors_npz_members,
    "corpus_cache": corpus_cache,
    **{f"pairs_{form}": partial(pairs, ending=ending) for form, ending in _PAIRS.items()},
}


def seeds(target: str) -> list[bytes]:
    """Seed files of a target, which it reads without errors, except for pickles in disguise."""
    return _seeds()[target]
