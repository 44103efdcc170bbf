"""Files of scores: their column, valid numbers, and errors for files with labels instead."""

import numpy as np
import pytest

from esim_fast.data import CorpusFormat, DataError, prepare, read_pairs
from tests.data.files import refusal, vocabulary_of, write

SCORES = CorpusFormat(scores=True)


def labels_of(path, corpus_format=SCORES, **options):
    return [pair.label for pair in read_pairs(path, corpus_format, **options)]


@pytest.mark.parametrize("text", ["3", "3.75", "-2.5", "+1", ".5", "5.", "1e-2", "1E3", "0"])
def test_numbers(tmp_path, text):
    path = write(tmp_path, "a.tsv", f"sentence1\tsentence2\tscore\na\tb\t{text}\n")
    encoded = prepare(path, "whitespace", SCORES).encode_scores(vocabulary_of("a", "b"))
    assert encoded.labels.dtype == np.float32
    assert encoded.labels.tolist() == [np.float32(float(text))]


@pytest.mark.parametrize("text", ["neutral", "3,75", "1_000", "inf", "1e39", "٣", "3 4", "0x1", "."])
def test_bad_numbers(tmp_path, text):
    path = write(tmp_path, "a.tsv", f"sentence1\tsentence2\tscore\na\tb\t1\na\tb\t{text}\n")
    message = refusal(prepare, path, "whitespace", SCORES)
    assert message.startswith(f"{path}:3: expected a number as the score, got '{text}' (regression needs scores, not")
    bad = prepare(path, "whitespace", SCORES, skip_bad_rows=True)
    assert [row.line for row in bad.bad_rows] == [3]
    assert bad.scores().tolist() == [1]
    # If scores are not needed, it is None.
    assert labels_of(path, labeled=False) == ["1", None]


def test_empty_scores(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\na\tb\t1\n")
    assert refusal(prepare, path, "whitespace", SCORES) == f"{path}:2: empty label"


def test_scores_and_words_of_the_labeled_pairs(tmp_path):
    rows = "a\tb\t3.5\nb\ta b\t-1\na a\tb\t3.50\nb\tb\t-\nb\ta\t2\n"
    corpus = prepare(write(tmp_path, "a.tsv", "sentence1\tsentence2\tscore\n" + rows), "whitespace", SCORES)
    encoded = corpus.encode_scores(vocabulary_of("a", "b"))
    assert encoded.labels.tolist() == [3.5, 3.5, 2]
    assert encoded.lengths.tolist() == [[1, 1], [2, 1], [1, 1]]
    assert encoded[[2]].pairs.tokens.tolist() == [3, 2]
    assert encoded[[0, 2]].labels.tolist() == [3.5, 2]


def test_minus_one_beside_negative_scores(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence1\tsentence2\tscore\na\tb\t0.5\na\tb\t-1\na\tb\t-0.25\n")
    corpus = prepare(path, "whitespace", SCORES)
    with pytest.raises(DataError, match=r"1 pairs have no gold score .* --map-labels=-1=-1e0, otherwise remove"):
        corpus.scores()
    as_score = CorpusFormat(scores=True, label_map={"-1": "-1e0"})
    assert prepare(path, "whitespace", as_score).scores().tolist() == [0.5, -1, -0.25]


def test_names_of_classes_have_no_scores(tmp_path):
    path = write(tmp_path, "a.tsv", "gold_label\tsentence1\tsentence2\n1\ta\tb\nneutral\ta\tb\n")
    with pytest.raises(DataError, match=rf"{path}:3: expected a number as the score, got 'neutral'"):
        prepare(path, "whitespace").encode_scores(vocabulary_of("a", "b"))


@pytest.mark.parametrize("ending", ["tsv", "json"])
def test_a_column_of_scores_where_labels_are_wanted(tmp_path, ending):
    content = {
        "tsv": "sentence1\tsentence2\tscore\na\tb\t0.5\n",
        "json": '{"sentence1": "a", "sentence2": "b", "score": 0.5}',
    }
    path = write(tmp_path, f"a.{ending}", content[ending])
    assert refusal(labels_of, path, CorpusFormat()).endswith("--columns (for scores, use train --task regression)")


def test_columns_without_a_header(tmp_path):
    sentences = "Two men run.\tTwo dogs sleep.\t"
    assert labels_of(write(tmp_path, "a.tsv", f"{sentences}3.75\n{sentences}.5\n")) == ["3.75", ".5"]
    message = refusal(labels_of, write(tmp_path, "b.tsv", f"text a\ttext b\tpoints\n{sentences}3.75\n{sentences}0.5\n"))
    assert "no other row has the label 'points'; if this row is a header" in message
    message = refusal(labels_of, write(tmp_path, "c.tsv", "a b\t1.5\tb c\n" * 12))
    assert message.endswith("column 2 looks like the label; name the columns with --columns 1,3,2")
    message = refusal(labels_of, write(tmp_path, "d.tsv", "1.5\ta b\t3.5\n" * 12))
    assert "columns 1 and 3 could be" in message


def test_named_columns(tmp_path):
    path = write(tmp_path, "a.csv", "left,right,points,score\na,b,1.5,7\n")
    assert labels_of(path, CorpusFormat(("left", "right", "points"), scores=True)) == ["1.5"]
