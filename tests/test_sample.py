"""The bundled corpus is balanced, has no leaks, is reproducible, and cannot be solved by a bag of words."""

from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "esim_fast" / "data" / "sample"
CEILING = 0.60  # highest dev accuracy allowed for a bag of words; chance is a third


def read(name):
    lines = (SAMPLE / name).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "gold_label\tsentence1\tsentence2"
    rows = [tuple(line.split("\t")) for line in lines[1:]]
    assert all(len(row) == 3 for row in rows)
    return rows


@pytest.fixture(scope="module")
def train():
    return read("train.tsv")


@pytest.fixture(scope="module")
def dev():
    return read("dev.tsv")


def test_sizes_and_labels(train, dev):
    assert 6000 <= len(train) <= 10000
    assert len(dev) == 1000
    assert all((SAMPLE / name).stat().st_size < 1_200_000 for name in ("train.tsv", "dev.tsv"))
    for rows in (train, dev):
        counts = Counter(label for label, _, _ in rows)
        assert set(counts) == {"entailment", "neutral", "contradiction"}
        assert max(counts.values()) - min(counts.values()) <= 1


def test_nothing_repeats_and_nothing_leaks(train, dev):
    train_pairs, dev_pairs = ([row[1:] for row in rows] for rows in (train, dev))
    assert len(set(train_pairs)) == len(train_pairs)
    assert len(set(dev_pairs)) == len(dev_pairs)
    assert not set(train_pairs) & set(dev_pairs)
    assert not {premise for premise, _ in train_pairs} & {premise for premise, _ in dev_pairs}


def test_sentences_are_short_and_dev_has_no_unseen_word(train, dev):
    def words(text):
        return text.lower().replace(",", " ,").replace(".", " .").split()

    assert all(6 <= len(words(premise)) <= 25 for _, premise, _ in train + dev)
    assert all(4 <= len(words(hypothesis)) <= 12 for _, _, hypothesis in train + dev)
    seen = {word for row in train for text in row[1:] for word in words(text)}
    assert {word for row in dev for text in row[1:] for word in words(text)} <= seen


def test_generator_reproduces_the_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_sample

    files = make_sample.generate()
    assert set(files) == {"train.tsv", "dev.tsv"}
    for name, text in files.items():
        assert text.encode("utf-8") == (SAMPLE / name).read_bytes(), f"{name}: run tools/make_sample.py"


@pytest.mark.parametrize("features", ["hypothesis", "separate", "joined", "overlap"])
def test_bags_of_words_do_not_solve_it(features, train, dev):
    pytest.importorskip("sklearn", reason="the bag-of-words baselines are scikit-learn's")
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    bag = CountVectorizer(ngram_range=(1, 2)).fit([f"{premise} {hypothesis}" for _, premise, hypothesis in train])

    def represent(rows):
        premise, hypothesis = (bag.transform([row[i] for row in rows]) for i in (1, 2))
        if features == "hypothesis":
            return hypothesis
        if features == "separate":
            return hstack([premise, hypothesis]).tocsr()
        if features == "joined":
            return bag.transform([f"{row[1]} {row[2]}" for row in rows])
        return hstack([premise.multiply(hypothesis), abs(premise - hypothesis)]).tocsr()

    model = LogisticRegression(max_iter=1000).fit(represent(train), [row[0] for row in train])
    accuracy = model.score(represent(dev), [row[0] for row in dev])
    assert accuracy <= CEILING, f"{features}: {accuracy:.3f}"
