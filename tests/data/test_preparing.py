"""Prepared corpora have the tokenizer's words and the file's labels and lines, from any process and from the cache."""

import bz2
import gzip
import json
import lzma
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from esim_fast.data import BadRow, CorpusFormat, PreparedCorpus, get_tokenizer, prepare, read_pairs
from esim_fast.data import preparing as module
from tests.data.files import pairs_of, refusal, vocabulary_of
from tests.data.files import write as write_file
from tests.processes import children, fork, wait_for

TSV = "label\tpremise\thypothesis\nx\tA b c.\tB\n-\td\t\ny\tB c\tA, a\n"


OTHER_LABEL = "expected a label among x, z, got 'y' (to rename it, use --map-labels OLD=NEW)"


def write(folder: Path, content: str | bytes, name: str = "corpus.tsv") -> Path:
    return write_file(folder, name, content)


def same(one: PreparedCorpus, other: PreparedCorpus) -> bool:
    arrays = ((getattr(one, name), getattr(other, name)) for name in ("tokens", "ends", "labels", "lines"))
    lists = (getattr(one, name) == getattr(other, name) for name in ("words", "label_names", "bad_rows"))
    return all(np.array_equal(*pair) for pair in arrays) and all(lists)


def many_rows(count: int) -> str:
    """Rows with repeated and with unique words."""
    draw = random.Random(count)
    words = [f"w{i}" for i in range(500)] + ["can't", "It's", "3.5", "(x)", '"so"']
    rows = []
    for number in range(count):
        premise, hypothesis = (" ".join(draw.choices(words, k=draw.randrange(9))) for _ in "ph")
        rows.append(f"{draw.choice('xyz-')}\t{premise}\t{hypothesis} n{number}\n")
    return "".join(rows)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A corpus of a thousand rows, which workers process in parts of fifty."""
    monkeypatch.setattr(module, "ROWS", 50)
    return write(tmp_path, many_rows(1000))


def test_one_corpus_by_hand(tmp_path):
    corpus = prepare(write(tmp_path, TSV))
    assert len(corpus) == 3
    assert corpus.words == ["a", "b", "c", ".", "d", ","]
    assert corpus.tokens.tolist() == [0, 1, 2, 3, 1, 4, 1, 2, 0, 5, 0]
    assert corpus.ends.tolist() == [4, 5, 6, 6, 8, 11]
    assert corpus.lengths.tolist() == [[4, 1], [1, 0], [2, 3]]
    assert corpus.label_names == ["x", "y"]
    assert corpus.labels.tolist() == [0, -1, 1]
    assert corpus.lines.tolist() == [2, 3, 4]
    assert corpus.bad_rows == []
    assert corpus.label_counts() == {"x": 1, "y": 1}
    assert corpus.word_counts(labeled=True) == {"a": 3, "b": 3, "c": 2, ".": 1, ",": 1}
    assert corpus.word_counts(labeled=False)["d"] == 1


def test_encoding(tmp_path):
    corpus = prepare(write(tmp_path, TSV))
    dataset = corpus.encode(vocabulary_of("b", "a", "."), ["y", "x"])
    assert len(dataset) == 2
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.lengths.tolist() == [[4, 1], [2, 3]]
    assert dataset[[0]].pairs.tokens.tolist() == [3, 2, 2, 0, 4]  # time-major: a b(hypothesis) b c .
    said = refusal(corpus.encode, vocabulary_of(), ["x", "z"])
    assert said == f"{corpus.path}:4: {OTHER_LABEL}"


@pytest.mark.parametrize("labels", [("y", "x"), np.array(["y", "x"]), {"x": 1, "y": 0}, {"1": "x", "0": "y"}], ids=repr)
def test_labels_by_id(tmp_path, labels):
    corpus = prepare(write(tmp_path, TSV))
    assert corpus.label_ids(labels).tolist() == corpus.encode(vocabulary_of(), labels).labels.tolist() == [1, 0]
    assert same(corpus.without_other_labels(labels), corpus)
    for ask in (corpus.label_ids, corpus.without_other_labels, lambda wrong: corpus.encode(vocabulary_of(), wrong)):
        for wrong in ({*labels}, "xy", iter(["y", "x"]), [0, 1]):
            with pytest.raises(TypeError, match=r"^labels must be "):
                ask(wrong)


def test_messages_list_few_of_many_labels(tmp_path):
    corpus, many = prepare(write(tmp_path, TSV)), [f"label {number}" for number in range(500)]
    for ask in (corpus.label_ids, corpus.without_other_labels):
        said = refusal(ask, many)
        assert "label 0, label 1" in said
        assert len(said) < len(corpus.path) + 300
    assert len(corpus.without_other_labels(["x", *many]).bad_rows[0].reason) < 300


def test_other_labels_can_be_skipped(tmp_path):
    corpus = prepare(write(tmp_path, TSV)).without_other_labels(["x", "z"])
    assert corpus.bad_rows == [BadRow(4, OTHER_LABEL)]
    dataset = corpus.encode(vocabulary_of(), ["z", "x"])
    assert dataset.labels.tolist() == [1]
    assert corpus.label_counts() == {"x": 1, "y": 0}
    said = refusal(prepare(corpus.path).without_other_labels, ["z"])
    assert said == f"{corpus.path}: expected labels among z, got none of them"


@pytest.mark.parametrize("cached", [False, True])
def test_all_ways_match_reading_and_tokenizing(tmp_path, path, cached):
    packed = write(tmp_path, path.read_bytes(), "packed.tsv.gz")
    cache = tmp_path / "cache" if cached else None
    tokenize = get_tokenizer()
    expected = [(tokenize(pair.premise), tokenize(pair.hypothesis), pair.label, pair.line) for pair in read_pairs(path)]
    found = [prepare(file, cache=cache, workers=workers) for file in (path, packed) for workers in (1, 2, 5)]
    for corpus in found:
        assert pairs_of(corpus) == expected
        assert same(corpus, found[0])
        assert corpus.digest == found[0].digest
    assert same(prepare(path, cache=cache), found[0])


def test_the_second_time_nothing_is_tokenized(tmp_path, monkeypatch):
    path = write(tmp_path, TSV)
    first = prepare(path, cache=tmp_path / "cache")
    monkeypatch.setattr(module, "_tokenize_part", mock.Mock(side_effect=AssertionError("tokenized again")))
    assert same(prepare(path, cache=tmp_path / "cache"), first)
    for options in ({"tokenizer": "whitespace"}, {"corpus_format": CorpusFormat(quoted=True)}, {"labeled": False}):
        with pytest.raises(AssertionError):
            prepare(path, cache=tmp_path / "cache", **options)


def test_the_cache_key_includes_the_form_from_the_name(tmp_path):
    tsv = write(tmp_path, "x,y\ta,b\tc\n", "w.tsv")
    (tmp_path / "w.csv").symlink_to(tsv)
    prepare(tsv, cache=tmp_path / "cache")
    assert prepare(tmp_path / "w.csv", cache=tmp_path / "cache").label_names == ["x"]


def test_words_of_punkt_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "get_tokenizer", lambda name: str.split)
    prepare(write(tmp_path, TSV), "nltk-punkt", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_long_rows_come_in_small_parts():
    def lengths(records: list[module.Record]) -> list[int]:
        chunks = list(module._chunks(iter(records)))
        assert [record for chunk in chunks for record in chunk] == records
        return list(map(len, chunks))

    assert max(lengths([module.Record(number, b"x" * 900_000) for number in range(50)])) == 5
    assert lengths([module.Record(number, b"x") for number in range(5000)]) == [2048, 2048, 904]


def test_a_digest_tells_contents_apart(tmp_path):
    def digest(text: str, name: str = "a.tsv") -> str:
        return prepare(write(tmp_path, text, name)).digest

    assert digest(TSV) == digest(TSV, "b.tsv") == digest(TSV.replace(" c.", "  c ."))
    others = [TSV.replace("c.", "d."), TSV.replace("x\t", "z\t"), TSV.replace("\tB\n", "\t\n"), TSV + "x\ta\ta\n"]
    assert len({digest(TSV), *map(digest, others)}) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": expected sentence pairs, got none"),
        ("\n\n", ": expected sentence pairs, got none"),
        ("label\tpremise\thypothesis\n", ": expected sentence pairs, got none"),
        ("-\ta\tb\n-\tc\td\n", ": expected sentence pairs, got only 2 without a gold label"),
        (TSV + "x\ta\n", ":5: expected 3 columns, got 2"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_corpora(tmp_path, content, message, workers):
    path = write(tmp_path, content)
    for _ in range(2):  # the first call must cache nothing
        assert refusal(prepare, path, cache=tmp_path / "cache", workers=workers) == f"{path}{message}"


def test_bad_rows_are_listed_again_the_second_time(tmp_path):
    path, cache = write(tmp_path, TSV + "x\ta\nx\te\t\0\n"), tmp_path / "cache"
    for _ in range(2):
        corpus = prepare(path, cache=cache, skip_bad_rows=True)
        assert corpus.bad_rows == [BadRow(5, "expected 3 columns, got 2"), BadRow(6, "NUL character")]
        assert len(corpus) == 3
    assert refusal(prepare, path, cache=cache) == f"{path}:5: expected 3 columns, got 2"


def test_a_corpus_of_bad_rows(tmp_path):
    path = write(tmp_path, "label\tpremise\thypothesis\nx\ta\n")
    ending = "got none that can be read; line 2: expected 3 columns, got 2"
    assert refusal(prepare, path, skip_bad_rows=True).endswith(ending)
    assert len(prepare(path, skip_bad_rows=True, allow_empty=True)) == 0


def test_labels_with_any_character(tmp_path):
    labels = ["a\nb", 'c"', "ünï"]
    rows = "\n".join(json.dumps({"label": label, "premise": "p", "hypothesis": "h"}) for label in labels)
    assert prepare(write(tmp_path, rows, "a.jsonl"), cache=tmp_path / "cache").label_names == labels


class TestOwnTokenizer:
    def test_it_is_used_and_not_kept(self, tmp_path):
        path, cache = write(tmp_path, TSV), tmp_path / "cache"
        assert prepare(path, cache=str(tmp_path / "other")).words == prepare(path).words
        assert prepare(path, str.split, cache=cache).words[:3] == ["A", "b", "c."]
        assert prepare(path, list, cache=cache).words[:2] == ["A", " "]
        assert not cache.exists()

    def test_in_other_processes(self, path):
        here, there = (prepare(path, lambda text: text.upper().split(), workers=workers) for workers in (1, 2))
        assert same(here, there)

    @pytest.mark.parametrize("kind", [list, tuple, iter, np.array, lambda words: (word for word in words)])
    def test_words_in_any_order_of_them(self, tmp_path, kind):
        path = write(tmp_path, "x\ta b\tb c\ny\ta a\ta b\n")
        assert same(prepare(path, lambda text: kind(text.split())), prepare(path, str.split))

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize(
        ("returns", "message"),
        [
            (None, "expected a list of words, got NoneType"),
            ("a b", "expected a list of words, got str"),
            (b"a b", "expected a list of words, got bytes"),
            ({"input_ids": [1, 2]}, "expected a list of words, got dict"),
            ({"a", "b"}, "expected a list of words, got set"),
            (7, "expected a list of words, got int"),
            ([["a"]], "expected words as nonempty strings, got list"),
            (["a", 5], "expected words as nonempty strings, got int"),
            ([b"a"], "expected words as nonempty strings, got bytes"),
            ([Path("a")], f"expected words as nonempty strings, got {type(Path()).__name__}"),
            ([None], "expected words as nonempty strings, got NoneType"),
            (["a", ""], "expected words as nonempty strings, got an empty string"),
            ([""], "expected words as nonempty strings, got an empty string"),
            (("a", "b", ""), "expected words as nonempty strings, got an empty string"),
            (["a\nb"], "expected words without line breaks, got 'a\\nb'"),
            (["\ud800"], "expected words without line breaks, got '\\ud800'"),
        ],
    )
    def test_mistakes(self, path, returns, message, workers):
        lines = path.read_text().splitlines()
        sentence = lines[777].split("\t")[2]
        said = refusal(prepare, path, lambda text: returns if text == sentence else text.split(), workers=workers)
        name = f"{__name__}:TestOwnTokenizer.test_mistakes.<locals>.<lambda>"
        assert said == f"{path}:778: tokenizer {name}: {message} for {sentence[:40]!r}"

    @pytest.mark.parametrize("workers", [1, 2])
    def test_it_raises(self, path, workers):
        def tokenize(text: str) -> list[str]:
            return text.split() if "n777" not in text else text / 2

        def lazily(text: str) -> Iterator[str]:
            yield from tokenize(text)

        for function in (tokenize, lazily):
            said = refusal(prepare, path, function, workers=workers)
            name = f"{__name__}:TestOwnTokenizer.test_it_raises.<locals>.{function.__name__}"
            assert said.startswith(f"{path}:778: tokenizer {name}: TypeError: unsupported operand")


class TestProcesses:
    def test_one_that_is_killed(self, path):
        def tokenize(text: str) -> list[str]:
            if "n777" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            return text.split()

        assert refusal(prepare, path, tokenize, workers=2) == "a worker process was killed, possibly for lack of memory"

    def test_inside_a_process_that_must_not_start_any(self, path):
        context = multiprocessing.get_context("fork")
        process = context.Process(target=prepare, args=(path,), kwargs={"workers": 2}, daemon=True)
        process.start()
        process.join()
        assert process.exitcode == 0

    def test_memory_is_bounded_by_few_parts_ahead(self):
        taken = []
        items = (taken.append(item) or item for item in range(1000))
        results = module.map_in_processes(lambda item, should_stop: item + 1, items, 2)
        assert list(islice(results, 10)) == list(range(1, 11))
        assert len(taken) <= 10 + 3 * 2
        results.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
    def test_an_error_does_not_wait_for_them(self, tmp_path, path):
        rows = many_rows(2000).splitlines(keepends=True)
        rows[60] = "x\tonly one\n"
        write(tmp_path, "".join(rows))
        before = children(os.getpid())
        begin = time.monotonic()
        said = refusal(prepare, path, lambda text: time.sleep(0.02) or text.split(), workers=2)
        assert said == f"{path}:61: expected 3 columns, got 2"
        assert time.monotonic() - begin < 12  # all work would take 40 seconds, started work half of that
        assert set(children(os.getpid())) <= set(before)

    @pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
    def test_they_end_with_the_one_that_started_them(self, tmp_path):
        process = fork(prepare_slowly, write(tmp_path, many_rows(20_000)))
        workers = wait_for(lambda: len(found := children(process.pid)) == 3 and found)
        process.kill()
        process.join()
        wait_for(lambda: not any(map(is_running, workers)))


def prepare_slowly(corpus: Path) -> None:
    prepare(corpus, lambda text: time.sleep(0.01) or text.split(), workers=3)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _prepare(corpus: Path, cache: Path, at: str | None) -> None:
    """Prepares a corpus and kills the process before or after the step ``at`` of writing it."""
    if at is not None:
        name, _, when = at.partition(" ")
        step = getattr(os, name)

        def last_step(*arguments: object) -> object:
            if when == "after":
                step(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, last_step)
    prepare(corpus, cache=cache, workers=2)


@pytest.mark.parametrize("steps", ["any moment", "fsync before", "fsync after", "replace before", "replace after"])
def test_killing_leaves_the_old_state_or_a_complete_one(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(module, "ROWS", 100)
    path, cache = tmp_path / "corpus.tsv", tmp_path / "cache"
    contents = [many_rows(1500), many_rows(1501)]
    begin = time.perf_counter()
    expected = [prepare(write(tmp_path, content), workers=2) for content in contents]
    seconds = (time.perf_counter() - begin) / 2
    context = multiprocessing.get_context("fork")
    waits, step = [None], steps  # wait until the process kills itself
    if steps == "any moment":
        # An early and a late moment, and random ones in between; a busy machine may be slower than before.
        draw = random.Random(0)
        waits, step = [0.0, None, *(draw.uniform(0, 1.3 * seconds) for _ in range(7))], None
    replaced = 0
    for trial, wait in enumerate(waits):
        shutil.rmtree(cache, ignore_errors=True)
        path.write_text(contents[0])
        if trial % 3:  # an older entry exists
            prepare(path, cache=cache)
        before = kept_files(cache)
        path.write_text(contents[1])
        process = context.Process(target=_prepare, args=(path, cache, step))
        process.start()
        process.join(wait)
        process.kill()
        process.join()
        if kept_files(cache) != before:  # then it is complete, and nothing is tokenized again
            replaced += 1
            with monkeypatch.context() as patch:
                patch.setattr(module, "_tokenize_part", None)
                assert same(prepare(path, cache=cache), expected[1])
        assert same(prepare(path, cache=cache), expected[1])
        assert len(kept_files(cache)) == 1
        path.write_text(contents[0])
        assert same(prepare(path, cache=cache), expected[0])
    assert 0 < replaced < 9 if step is None else replaced == (step == "replace after")


def kept_files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("*.safetensors")}


def test_both_forms_of_snli_hold_the_same_examples(real_data):
    corpora = (prepare(real_data / "snli" / name) for name in ("dev.tsv.gz", "snli_1.0_dev.jsonl.gz"))
    tsv, jsonl = ([pair[:3] for pair in pairs_of(corpus) if pair[2]] for corpus in corpora)
    assert tsv == jsonl


@pytest.mark.parametrize("skip_bad_rows", [True, False])
@pytest.mark.parametrize(("ending", "module"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_a_truncated_file_is_not_a_bad_row(tmp_path, ending, module, skip_bad_rows):
    """Skipping bad rows must not hide that all pairs after the cut are lost."""
    path = tmp_path / f"a.tsv.{ending}"
    whole = module.compress("".join(f"x\t{i * 7919 % 10007}\t{i}\n" for i in range(50_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert "Compressed file ended before" in refusal(prepare, path, "whitespace", skip_bad_rows=skip_bad_rows)
