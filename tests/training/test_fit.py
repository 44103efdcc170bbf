"""``Classifier.fit`` trains the same model as ``esim-fast train``, from pairs in memory."""

import dataclasses
import inspect
import random

import numpy as np
import pytest
import torch

from esim_fast import Classifier
from esim_fast.data import DataError
from esim_fast.data.tables import labeled_pairs
from esim_fast.training import NotFiniteError, Recipe, evaluate
from tests.cli.commands import fails, succeeds, write_tsv

WORDS = ["man", "dog", "woman", "cat", "child"], ["sleeps", "runs", "eats", "sings"]
LABELS = ["entailment", "neutral"]
SMALL = {"hidden_size": 8, "embedding_dim": 6, "device": "cpu"}


def made_up(count, seed):
    """Pairs whose hypothesis repeats the premise, or says that it may be so."""
    rng = random.Random(seed)
    pairs, labels = [], []
    for _ in range(count):
        who, what = (rng.choice(words) for words in WORDS)
        label = rng.choice(LABELS)
        other = what if label == "entailment" else f"perhaps {what}"
        pairs.append((f"A {who} {what}.", f"The {who} {other}."))
        labels.append(label)
    return pairs, labels


PAIRS, GOLD = made_up(120, 1)
DEV = made_up(40, 2)
FORMS_OF_DEV = "dev must be (pairs, labels), a table with labels, or a share such as 0.1"


def weights(model):
    return {name: value.clone() for name, value in model.net.state_dict().items()}


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def measured(history):
    return [dataclasses.replace(metrics, seconds=0) for metrics in history]


@pytest.fixture(scope="module")
def history():
    return Classifier.fit(PAIRS, GOLD, dev=DEV, epochs=4, learning_rate=3e-2, dropout=0.1, **SMALL)


def test_it_learns_and_has_the_best_epoch(history):
    model, best = history.model, history.best
    assert [metrics.epoch for metrics in history] == [1, 2, 3, 4]
    assert best in history
    assert best.dev_accuracy == max(metrics.dev_accuracy for metrics in history) > 0.9
    labels, _ = model.predict(DEV[0])
    assert np.mean([label == gold for label, gold in zip(labels, DEV[1], strict=True)]) == best.dev_accuracy
    assert model.labels == LABELS
    assert not model.net.training
    assert model.training["best_epoch"] == best.as_dict()
    assert model.training["recipe"]["learning_rate"] == 3e-2


def test_the_weights_are_the_evaluated_ones():
    """They are averaged weights here, and not the last ones."""
    history = Classifier.fit(PAIRS, GOLD, dev=DEV, epochs=2, ema_decay=0.9, learning_rate=3e-2, **SMALL)
    dev = labeled_pairs("dev", *DEV).prepared("nltk").encode(history.model.vocabulary, LABELS)
    assert evaluate(history.model.net, dev).loss == pytest.approx(history.best.dev_loss, rel=1e-6)


def test_the_same_as_the_command(history, tmp_path):
    files = []
    for name, (pairs, labels) in {"train": (PAIRS, GOLD), "dev": DEV}.items():
        rows = [(label, *pair) for pair, label in zip(pairs, labels, strict=True)]
        files += [f"--{name}", write_tsv(tmp_path / f"{name}.tsv", rows)]
    options = [
        "--hidden-size",
        8,
        "--embedding-dim",
        6,
        "--epochs",
        4,
        "--lr",
        3e-2,
        "--dropout",
        0.1,
        "--device",
        "cpu",
    ]
    succeeds("train", *files, *options, "--output", tmp_path / "m")
    model = Classifier.from_pretrained(tmp_path / "m", device="cpu")
    assert equal(weights(model), weights(history.model))
    assert model.vocabulary == history.model.vocabulary


def test_vectors_and_output(tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("man 1 2 3\nruns 2 3 4\n")
    options = {"dev": DEV, "epochs": 1, "hidden_size": 8, "device": "cpu", "freeze_embedding": True, "seed": 3}
    seen = []
    model = Classifier.fit(PAIRS, GOLD, vectors=vectors, output=tmp_path / "m", on_epoch=seen.append, **options).model
    assert len(seen) == 1
    row = model.net.embedding.weight[model.vocabulary.encode(["man"])[0]]
    assert row.tolist() == [1, 2, 3]
    there = Classifier.from_pretrained(tmp_path / "m", device="cpu")
    assert equal(weights(there), weights(model))
    assert there.training["recipe"]["seed"] == 3
    assert there.training["files"] == {"vectors": str(vectors)}
    with pytest.raises(FileExistsError):
        Classifier.fit(PAIRS, GOLD, output=tmp_path / "m", **options)


class TestForms:
    """All forms of input give the same model, bit for bit."""

    def fit(self, pairs, labels=None, **options):
        return Classifier.fit(pairs, labels, **{"dev": DEV, "epochs": 1, **SMALL, **options}).model

    @pytest.fixture(scope="class")
    def expected(self):
        return weights(self.fit(PAIRS, GOLD))

    def columns(self):
        return {
            "id": list(range(len(PAIRS))),
            "Sentence1": [pair[0] for pair in PAIRS],
            "sentence2": [pair[1] for pair in PAIRS],
            "gold_label": GOLD,
        }

    def test_lists(self, expected):
        assert equal(weights(self.fit(iter(map(list, PAIRS)), tuple(GOLD))), expected)
        assert equal(weights(self.fit(np.array(PAIRS), np.array(GOLD))), expected)
        assert equal(weights(self.fit(self.columns())), expected)

    def test_data_frames(self, expected):
        pandas = pytest.importorskip("pandas")
        table = pandas.DataFrame(self.columns()).sample(frac=1, random_state=0).sort_values("id")
        dev = pandas.DataFrame({"premise": [pair[0] for pair in DEV[0]], "hypothesis": [pair[1] for pair in DEV[0]]})
        assert equal(weights(self.fit(table, dev=dev.assign(label=DEV[1]))), expected)
        assert equal(weights(self.fit(table, dev=(dev, pandas.Series(DEV[1])))), expected)
        assert equal(weights(self.fit(table.drop(columns="gold_label"), table["gold_label"])), expected)

    def test_data_sets(self, expected):
        datasets = pytest.importorskip("datasets")
        columns = self.columns()
        rows = datasets.Dataset.from_dict(columns)
        assert equal(weights(self.fit(rows)), expected)
        names = ["neutral", "contradiction", "entailment"]
        columns["gold_label"] = [names.index(label) for label in GOLD]
        features = rows.features.copy()
        features["gold_label"] = datasets.ClassLabel(names=names)
        columns = {name: [*values, values[0]] for name, values in columns.items()}
        columns["gold_label"][-1] = -1  # no gold label
        model = self.fit(datasets.Dataset.from_dict(columns, features=features))
        assert model.labels == ["neutral", "entailment"]  # in the data set's order, without unused labels
        assert len(model.vocabulary) == len(self.fit(PAIRS, GOLD).vocabulary)
        label = model.predict(PAIRS[0]).label
        assert label in LABELS
        with pytest.raises(ValueError, match=r"^pairs: expected a column sentence1.*, got train, test; rename yours"):
            self.fit(datasets.DatasetDict({"train": rows, "test": rows}))

    @pytest.mark.parametrize("numbers", [list, np.array, torch.tensor, lambda ids: [np.int32(label) for label in ids]])
    def test_numbers(self, numbers):
        ids = [LABELS.index(label) for label in GOLD]
        dev = (DEV[0], [LABELS.index(label) for label in DEV[1]])
        model = self.fit(PAIRS, numbers(ids), dev=dev)
        assert model.labels == ["0", "1"]
        assert equal(weights(model), weights(self.fit(PAIRS, GOLD)))

    def test_pairs_without_a_gold_label(self, expected):
        more = [*PAIRS, ("Unknown words", "in here"), ("more", "of them"), ("and", "these")]
        for missing in ([None, None, None], ["-", "-1", None], [float("nan"), "-", "-"]):
            assert equal(weights(self.fit(more, [*GOLD, *missing])), expected)


class TestScores:
    def fit(self, labels, dev_labels=None, **options):
        dev = (DEV[0], dev_labels or [0.5 + (label == "entailment") for label in DEV[1]])
        return Classifier.fit(PAIRS, labels, dev=dev, **{"epochs": 2, "learning_rate": 1e-2, **SMALL, **options})

    def test_floats_are_scores(self):
        history = self.fit([0.5 + (label == "entailment") for label in GOLD])
        assert history.model.task == "regression"
        assert history.model.labels == ["score"]
        scores = history.model.predict(DEV[0])
        gold = [0.5 + (label == "entailment") for label in DEV[1]]
        assert ((scores - torch.tensor(gold)) ** 2).mean().item() == pytest.approx(history.best.dev_loss, rel=1e-4)
        assert history.best.dev_spearman is not None
        table = {"premise": [pair[0] for pair in PAIRS], "hypothesis": [pair[1] for pair in PAIRS]}
        table["score"] = [0.5 + (label == "entailment") for label in GOLD]
        gold = [0.5 + (label == "entailment") for label in DEV[1]]
        same = Classifier.fit(table, dev=(DEV[0], gold), epochs=2, learning_rate=1e-2, **SMALL)
        assert equal(weights(same.model), weights(history.model))
        with pytest.raises(ValueError, match=r"^the model is for regression, got task='classification'$"):
            same.model.fit(PAIRS, GOLD, dev=DEV, task="classification")

    def test_an_explicit_task(self):
        ids = [float(label == "entailment") for label in GOLD]
        dev = [float(label == "entailment") for label in DEV[1]]
        assert self.fit([0.5 * label for label in ids], dev).model.labels == ["score"]
        assert self.fit(ids, dev, task="classification").model.labels == ["0", "1"]
        assert self.fit(list(map(int, ids)), dev, task="regression").model.labels == ["score"]
        with pytest.raises(ValueError, match=r"^pairs: labels are whole numbers as floats, which may be scores"):
            self.fit(ids, dev)
        assert self.fit([*ids[:-1], None], dev, task="classification").model.labels == ["0", "1"]

    def test_minus_one_is_a_score(self):
        train = labeled_pairs("pairs", PAIRS[:3], [-1.0, 0.5, None]).prepared("nltk")
        assert train.labeled.tolist() == [True, True]  # a score of -1 is not a missing label
        assert train.scores().tolist() == [-1, 0.5]
        train = labeled_pairs("pairs", PAIRS[:3], [-1.0, 0.5, 1.0]).prepared("nltk")
        assert train.scores().tolist() == [-1, 0.5, 1]


class TestShareOfDev:
    def test_the_seed_draws_it_and_it_is_not_trained_on(self):
        first, second, other = (
            Classifier.fit(PAIRS, GOLD, dev=0.25, epochs=1, seed=seed, **SMALL) for seed in (1, 1, 2)
        )
        assert measured(first) == measured(second)
        assert measured(first) != measured(other)
        train, dev = labeled_pairs("pairs", PAIRS, GOLD).split(0.25, 1)
        assert (len(train), len(dev)) == (90, 30)
        rows = [row for part in (train, dev) for row in zip(part.pairs, part.labels, strict=True)]
        assert sorted(rows) == sorted(zip(PAIRS, GOLD, strict=True))
        assert len(first.model.vocabulary) == 2 + len(train.prepared("nltk").words)
        held = dev.prepared("nltk").encode(first.model.vocabulary, LABELS)
        assert evaluate(first.model.net, held).accuracy == first.best.dev_accuracy

    def test_a_label_that_only_dev_has(self):
        pairs, labels = [*PAIRS[:10], ("one", "of its own")], [*GOLD[:10], "contradiction"]
        found = {
            tuple(Classifier.fit(pairs, labels, dev=0.5, epochs=1, seed=seed, **SMALL).model.labels)
            for seed in range(3)
        }
        assert found == {("contradiction", *LABELS)}

    @pytest.mark.parametrize(("share", "held"), [(0.001, 0), (0.999, 120)])
    def test_nothing_left(self, share, held):
        with pytest.raises(ValueError, match=rf"^dev={share}: expected a share .* both sides, got {held} of 120$"):
            Classifier.fit(PAIRS, GOLD, dev=share)


class TestFurtherTraining:
    def test_a_model_is_trained_further(self, history, tmp_path):
        history.model.save_pretrained(tmp_path)
        model = Classifier.from_pretrained(tmp_path, device="cpu")
        model.temperature, model.threshold = 2.0, 0.7
        before, words = weights(model), model.vocabulary
        more, labels = made_up(40, 5)
        again = model.fit([*more, ("new words", "in it")], [*labels, "neutral"], dev=DEV, epochs=2, learning_rate=1e-3)
        assert again.model is model
        assert model.vocabulary is words
        assert (model.temperature, model.threshold) == (1.0, None)
        assert not equal(weights(model), before)
        assert model.training["before"]["recipe"]["learning_rate"] == 3e-2
        assert model.training["recipe"]["learning_rate"] == 1e-3
        right = [label == gold for label, gold in zip(model.predict(DEV[0]).labels, DEV[1], strict=True)]
        assert np.mean(right) == again.best.dev_accuracy
        untrained = Classifier.fit(made_up(40, 5)[0], labels, dev=DEV, epochs=1, **SMALL)
        assert again[0].dev_loss < untrained[0].dev_loss

    def test_a_run_that_fails_changes_nothing(self, history):
        model = history.model
        before, training = weights(model), model.training
        with pytest.raises(NotFiniteError):
            model.fit(PAIRS, GOLD, dev=DEV, learning_rate=1e38)
        with pytest.raises(DataError, match=r"^pairs:2: expected a label among entailment, neutral, got 'maybe'"):
            model.fit(PAIRS[:2], ["neutral", "maybe"], dev=DEV)
        assert equal(weights(model), before)
        assert model.training is training

    @pytest.mark.parametrize(
        "options", [{"vectors": "glove.txt"}, {"hidden_size": 3}, {"tokenizer": "nltk"}, {"device": "cpu"}]
    )
    def test_options_of_new_models_only(self, history, options):
        with pytest.raises(TypeError, match=rf"^{next(iter(options))} is for a new model, and this one has its own"):
            history.model.fit(PAIRS, GOLD, dev=DEV, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PAIRS, GOLD[:-1]), ValueError, "pairs: expected as many labels as pairs, got 119 for 120"),
        (([], []), ValueError, "pairs: expected labeled pairs, got none"),
        ((PAIRS, [None] * 120), DataError, "pairs: expected labeled pairs, got 120 without a gold label"),
        ((PAIRS, ["same"] * 120), ValueError, "pairs: expected 2 to 1000 labels, got only 'same'"),
        ((PAIRS, [1, -1] * 60), ValueError, "pairs: expected 2 to 1000 labels, got only '1' (None, \"-\" and -1 mean"),
        ((PAIRS,), TypeError, "pairs: expected labels as well, or a table with a label column"),
        ((PAIRS, "neutral"), TypeError, "pairs: expected a list of labels, got str"),
        ((PAIRS, [*GOLD[:-1], 1]), TypeError, "pairs: expected labels that are all strings or all numbers, got 119 st"),
        ((PAIRS, [*GOLD[:-1], [1]]), TypeError, "pairs: labels[119] must be a string or a number, got [1]"),
        (("A man.", GOLD), TypeError, "pairs: expected (premise, hypothesis) pairs or a table, got str"),
        (([*PAIRS[:1], ("A man.",)], GOLD[:2]), TypeError, "pairs[1] must be a (premise, hypothesis) pair of strings"),
        (
            ([*PAIRS[:1], "ab"], GOLD[:2]),
            TypeError,
            "pairs[1] must be a (premise, hypothesis) pair of strings, got 'ab'",
        ),
        (
            ({"a": ["x"], "b": ["y"]}, ["z"]),
            ValueError,
            "pairs: expected a column sentence1, premise, question1 or text",
        ),
        (
            ({"premise": ["x"], "hypothesis": ["y"], "c": [1]},),
            ValueError,
            "pairs: expected a column gold_label, label, ",
        ),
        (({"premise": [["x"]], "hypothesis": ["y"]}, [1]), TypeError, "pairs: expected a sentence in row 0, got ['x']"),
        (([("\ud800", "x"), ("y", "z")], ["a", "b"]), DataError, "pairs:1: premise: not valid Unicode at character 1"),
        (([("x", "y"), ("y", "z")], ["a", ""]), DataError, "pairs:2: empty label"),
    ],
)
def test_mistakes_in_pairs(arguments, error, message):
    with pytest.raises(error) as caught:
        Classifier.fit(*arguments, dev=DEV, **SMALL)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"dev": None},
            TypeError,
            "dev must be (pairs, labels), a table with labels, or a share such as 0.1, got None",
        ),
        (
            {"dev": DEV[0]},
            TypeError,
            "dev must be (pairs, labels), a table with labels, or a share such as 0.1, got list",
        ),
        ({"dev": (1, 2, 3)}, TypeError, "dev must be (pairs, labels), got a tuple of 3"),
        ({"dev": 1.5}, ValueError, "dev must lie between 0 and 1 if it is a share of the pairs, got 1.5"),
        ({"dev": (DEV[0], ["x"] * 40)}, DataError, "dev:1: expected a label among entailment, neutral, got 'x'"),
        ({"dev": (DEV[0], [0.5] * 40)}, DataError, "dev:1: expected a label among entailment, neutral, got '0.5'"),
        ({"dev": ([], [])}, ValueError, "dev: expected labeled pairs, got none"),
        ({"epoch": 3}, TypeError, "fit has no option epoch; did you mean epochs?"),
        ({"epochs": 0}, ValueError, "epochs must be positive, got 0"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be positive, got 0"),
        ({"task": "ranking"}, ValueError, "task must be one of None, 'classification', 'regression', got 'ranking'"),
        ({"task": "regression"}, DataError, "pairs:1: expected a number as the score, got '"),
        ({"preset": "fast"}, ValueError, "preset must be one of paper, small-data, batch-128"),
        ({"preset": "paper", "recipe": Recipe()}, TypeError, "preset and recipe exclude each other"),
        ({"recipe": {"epochs": 3}}, TypeError, "recipe must be an esim_fast.training.Recipe, got dict"),
        ({"device": "cuda"}, ValueError, "device cuda: torch finds no usable GPU here"),
        ({"vectors": "none.txt"}, DataError, "none.txt: No such file or directory"),
        ({"tokenizer": "words"}, ValueError, "tokenizer must be one of nltk, "),
        ({"best_by": "f1:maybe"}, ValueError, "best_by: there is no label 'maybe', only entailment, neutral"),
    ],
)
def test_mistakes_in_options(options, error, message):
    how = {"dev": DEV, **SMALL, **options}
    if "vectors" in options:
        with pytest.raises(TypeError, match=r"^embedding_dim and vectors exclude each other"):
            Classifier.fit(PAIRS, GOLD, **how)
        del how["embedding_dim"]
    with pytest.raises(error) as caught:
        Classifier.fit(PAIRS, GOLD, **how)
    assert str(caught.value).startswith(message)


def test_recipes():
    fitted = Classifier.fit(PAIRS, GOLD, dev=DEV, preset="small-data", epochs=1, **SMALL).model
    assert fitted.training["recipe"]["ema_decay"] == 0.999
    assert fitted.net.config.embedding_dropout == 0.2
    fitted = Classifier.fit(PAIRS, GOLD, dev=DEV, recipe=Recipe(epochs=1, batch_size=7), label_smoothing=0.1, **SMALL)
    recipe = fitted.model.training["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["label_smoothing"]) == (1, 7, 0.1)


def test_help():
    for owner in (Classifier, Classifier.fit(PAIRS, GOLD, dev=DEV, epochs=1, **SMALL).model):
        assert list(inspect.signature(owner.fit).parameters)[:3] == ["pairs", "labels", "dev"]
        assert owner.fit.__doc__.startswith("Train a model: ")


def test_configuration_from_a_run_of_fit(tmp_path):
    """It records no files, and must not be mistaken for a run on the sample."""
    Classifier.fit(PAIRS, GOLD, dev=DEV, output=tmp_path / "m", epochs=1, **SMALL)
    said = fails("train", "--config", tmp_path / "m" / "config.json", "--output", tmp_path / "n")
    assert "config.json: names no training files; use --train and --dev" in said


def test_a_failed_fit_restores_the_mode():
    model = Classifier.fit(PAIRS, GOLD, dev=DEV, epochs=1, **SMALL).model
    model.net.eval()
    with pytest.raises(ZeroDivisionError):
        model.fit(PAIRS, GOLD, dev=DEV, epochs=1, on_epoch=lambda metrics: 1 / 0)
    assert not model.net.training


def test_columns_of_different_lengths():
    with pytest.raises(ValueError, match=r"^pairs: expected as many hypotheses as premises, got 1 for 2$"):
        labeled_pairs("pairs", {"premise": ["a", "b"], "hypothesis": ["c"], "label": ["x", "y"]})
