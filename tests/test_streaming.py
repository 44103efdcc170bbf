"""Predicting files from Python; tests of the command are in tests/cli."""

import queue
import threading
import time
from itertools import islice, repeat

import pytest

from esim_fast.data import BadRow, CorpusFormat, DataError, EncodedPairs, Pair
from esim_fast.streaming import predict_file
from tests.training.training_tasks import new_model

ROWS = ["a b\tb a", "c d\td c", "only one", "e\tf"]


@pytest.fixture(scope="module")
def model():
    return new_model()


def test_a_file_and_its_lines_give_the_models_predictions(model, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(ROWS) + "\n")
    bad_rows: list[BadRow] = []
    for source in (path, [f"{row}\n".encode() for row in ROWS]):
        answers = list(predict_file(model, source, on_bad_row=bad_rows.append))
        assert [answer.pair for answer in answers] == [
            Pair("a b", "b a", None, 1),
            Pair("c d", "d c", None, 2),
            Pair("e", "f", None, 4),
        ]
        labels, probabilities = model.predict([(answer.pair.premise, answer.pair.hypothesis) for answer in answers])
        assert [answer.label for answer in answers] == labels
        for answer, expected in zip(answers, probabilities.tolist(), strict=True):
            assert answer.probabilities == pytest.approx(expected, abs=1e-6)
            words = (answer.pair.premise.split(), answer.pair.hypothesis.split())
            assert answer.unknown_words == tuple(sum(word not in model.vocabulary for word in side) for side in words)
    assert bad_rows == 2 * [BadRow(3, "expected 2 columns, got 1")]


def test_a_bad_row_raises_after_the_predictions_before_it(model):
    answers = predict_file(model, (f"{row}\n".encode() for row in ROWS))
    assert [answer.pair.line for answer in islice(answers, 2)] == [1, 2]
    with pytest.raises(DataError, match=r"^lines:3: expected 2 columns, got 1$"):
        next(answers)


def test_columns_and_no_rows(model, tmp_path):
    lines = [b'{"x": "a", "y": "b"}\n']
    (answer,) = predict_file(model, lines, corpus_format=CorpusFormat(columns=("x", "y")))
    assert answer.pair == Pair("a", "b", None, 1)
    assert list(predict_file(model, [])) == []
    with pytest.raises(DataError, match=r"no\.tsv: No such file or directory$"):
        next(predict_file(model, tmp_path / "no.tsv"))


def test_lines_are_predicted_as_they_arrive(model):
    lines: queue.Queue[bytes | None] = queue.Queue()
    answers = predict_file(model, iter(lines.get, None))
    for number in range(3):
        lines.put(f"a {number}\tb\n".encode())
        assert next(answers).pair.premise == f"a {number}"
    lines.put(None)
    assert list(answers) == []


def test_the_reader_of_lines_ends_with_the_predictions(model):
    before = threading.active_count()
    answers = predict_file(model, repeat(b"a\tb\n"))
    next(answers)
    answers.close()
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() == before


def test_a_computation_that_is_stopped_returns_nothing(model):
    with pytest.raises(KeyboardInterrupt):
        model.logits(EncodedPairs([[2]], [[3]], None), should_stop=lambda: True)
