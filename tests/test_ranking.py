"""Classifier.rank gives the scores and the order of all pairs, shared, in parts or streamed."""

import random
import resource
import sys
from unittest import mock

import numpy as np
import pytest
import torch

from esim_fast import ESIM, Classifier, ranking
from esim_fast.data import Vocabulary
from tests.processes import fork

WORDS = ["<unk>", "<pad>", *"abcdefgh"]
LABELS = ["contradiction", "entailment", "neutral"]


def new_model(labels=LABELS, **options):
    torch.manual_seed(0)
    net = ESIM(8, 6, len(WORDS), len(labels))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Classifier(net.eval(), Vocabulary(WORDS), labels, **options)


def sentences(count, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS[2:], k=rng.randint(0, 7))) for _ in range(count)]


def scores(model, query, candidates, label="entailment"):
    answers = model.predict([(query, candidate) for candidate in candidates])
    if isinstance(answers, torch.Tensor):
        return answers.numpy()
    return answers.probabilities[:, model.labels.index(label)].numpy()


@pytest.fixture(scope="module")
def model():
    return new_model()


def check(found, expected, top_k):
    """Checks that the best candidates were found, in order; scores within 1e-5 may swap."""
    top_k = len(expected) if top_k is None else min(top_k, len(expected))
    places, given = [one["corpus_id"] for one in found], [one["score"] for one in found]
    assert len(set(places)) == len(found) == top_k
    np.testing.assert_allclose(given, expected[places], atol=1e-5)
    np.testing.assert_allclose(given, np.sort(expected)[::-1][:top_k], atol=1e-5)
    assert given == sorted(given, reverse=True)


@pytest.mark.parametrize("top_k", [1, 7, None, 1000])
def test_same_scores_as_predict(model, top_k):
    queries, candidates = sentences(5, 1), sentences(90, 2)
    expected = [scores(model, query, candidates) for query in queries]
    assert np.std(expected) > 0.05
    for query, row in zip(queries, expected, strict=True):
        check(model.rank(query, candidates, top_k), row, top_k)
    cuts = {"_CANDIDATES": 2048}, {"_CANDIDATES": 1}, {"_CANDIDATES": 8, "_PAIRS": 20}, {"_WORDS": 9}
    for cut in cuts:
        with mock.patch.multiple(ranking, **cut):
            for found, row in zip(model.rank(queries, iter(candidates), top_k), expected, strict=True):
                check(found, row, top_k)


def test_labels(model):
    candidates = sentences(20, 3)
    for label in LABELS:
        check(model.rank("a b", candidates, None, label), scores(model, "a b", candidates, label), None)
    one = new_model(["0", "1"])
    check(one.rank("a b", candidates), scores(one, "a b", candidates, "1"), 10)
    names = new_model(["same", "other"])
    check(names.rank("a b", candidates, label="same"), scores(names, "a b", candidates, "same"), 10)
    with pytest.raises(
        ValueError, match=r"^label must be one of the model's \(same, other\), got none; name one, because none is"
    ):
        names.rank("a b", candidates)
    with pytest.raises(ValueError, match=r"^label must be one of the model's \(contradiction, .*\), got 'entails'$"):
        model.rank("a b", candidates, label="entails")


def test_a_regression_model_ranks_by_its_score():
    model, candidates = new_model(["score"]), sentences(20, 4)
    found = model.rank("a b", candidates)
    check(found, scores(model, "a b", candidates), 10)
    assert not all(0 <= one["score"] <= 1 for one in found)
    with pytest.raises(ValueError, match=r"^a regression model has no labels to rank by, got label 'score'$"):
        model.rank("a b", candidates, label="score")


def test_temperature_and_precision_count(model):
    candidates = sentences(20, 5)
    warm = new_model(temperature=3.0)
    check(warm.rank("a b", candidates), scores(warm, "a b", candidates), 10)
    assert warm.rank("a b", candidates)[0]["score"] != pytest.approx(model.rank("a b", candidates)[0]["score"])
    rounded = new_model(precision="bf16")
    found = {one["corpus_id"]: one["score"] for one in rounded.rank("a b", candidates, None)}
    exact = scores(model, "a b", candidates)
    assert any(found[place] != exact[place] for place in found)
    np.testing.assert_allclose([found[place] for place in range(20)], exact, atol=0.02)


def test_ties_keep_their_order(model):
    assert [one["corpus_id"] for one in model.rank("a b", ["c d e"] * 30 + ["f"] + ["c d e"] * 9, None)] in (
        [*range(30), *range(31, 40), 30],
        [30, *range(30), *range(31, 40)],
    )
    found = model.rank("a b", ["c d e"] * 30, 4, return_documents=True)
    assert [one["corpus_id"] for one in found] == [0, 1, 2, 3]
    assert {one["text"] for one in found} == {"c d e"}
    assert model.rank("a b", ["c d e"], return_documents=False)[0].keys() == {"corpus_id", "score"}


def test_each_sentence_is_split_once(model):
    queries, candidates = ["a b", "c", "a b"], ["d e", "a b", "d e", "f g h"] * 10
    with mock.patch.object(Classifier, "encode", autospec=True, side_effect=Classifier.encode) as encode:
        model.rank(queries, candidates)
    assert sorted(call.args[1] for call in encode.call_args_list) == ["a b", "c", "d e", "f g h"]


def test_candidates_are_read_in_parts(model):
    """While a part is scored, at most one further part has been read."""
    taken = most = 0

    def candidates():
        nonlocal taken
        for text in sentences(100, 6):
            taken += 1
            yield text

    def watched(model, queries, part, *rest):
        nonlocal most
        most = max(most, taken - part[0].place)
        return found(model, queries, part, *rest)

    found = ranking._scores
    with mock.patch.multiple(ranking, _CANDIDATES=8, _scores=watched):
        model.rank(["a", "b"], candidates())
    assert (taken, most) == (100, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", []), ValueError, "^candidates must not be empty$"),
        ((["a", "b"], iter([])), ValueError, "^candidates must not be empty$"),
        (("a", "b"), TypeError, "^candidates must be a list of sentences, got 'b'$"),
        (("a", None), TypeError, "^candidates must be a list of sentences, got None$"),
        (("a", ["b", None]), TypeError, r"^candidates\[1\] must be a string, got None$"),
        (("a", [("b", "c")]), TypeError, r"^candidates\[0\] must be a string, got \('b', 'c'\)$"),
        ((5, ["b"]), TypeError, "^query must be a list of sentences, got 5$"),
        ((["a", 5], ["b"]), TypeError, r"^query\[1\] must be a string, got 5$"),
        (("a", ["b"], 0), ValueError, "^top_k must be positive, got 0$"),
        (("a", ["b"], 1.5), TypeError, r"^top_k must be an int or None, got 1\.5$"),
    ],
)
def test_mistakes(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.rank(*arguments)


def test_more_mistakes():
    model = new_model()
    with pytest.raises(ValueError, match="expected a positive integer as batch_size, got 0"):
        model.rank("a", ["b"], batch_size=0)
    assert model.rank([], ["b"]) == []
    with torch.no_grad():
        model.net.linear.mlp[3].bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="must be finite"):
        model.rank("a", ["b"])


def note_peaks(file):
    """Records the peak memory of this process in KiB after many candidates and after ten times as many."""
    model = new_model(tokenizer="whitespace")
    with mock.patch.object(ranking, "_CANDIDATES", 128), open(file, "w") as notes:
        for count in (1_000, 1_000, 10_000):
            texts = (f"{number} " + "a b c d e f g h " * 5 for number in range(count))
            assert len(model.rank("a b", texts)) == 10
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=notes)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in other units")
def test_memory_stays_flat(tmp_path):
    """The texts and word ids of ten thousand candidates would take 5 MiB."""
    process = fork(note_peaks, tmp_path / "notes")
    process.join(120)
    assert process.exitcode == 0
    _, few, many = map(int, (tmp_path / "notes").read_text().split())
    assert many - few < 2 * 2**10
