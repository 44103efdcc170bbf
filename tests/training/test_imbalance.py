"""Class weights, and the figure that chooses the best epoch."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import EncodedPairs, Vocabulary
from esim_fast.training import Checkpoint, EpochMetrics, Recipe
from esim_fast.training.figures import assess, figure_of
from esim_fast.training.losses import class_weights, summed_loss
from esim_fast.training.progress import Progress
from esim_fast.training.trainer import OtherSettingsError
from tests.training.training_tasks import WORDS, new_model, new_trainer, pairs


def rare(count, seed, copies=1):
    """Like pairs(), but one pair in five is swapped and repeated this many times."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.2).astype(int)
    premises = np.stack([generator.integers(2, 6, count), generator.integers(6, 10, count)], 1)
    hypotheses = np.where(labels[:, None] == 1, premises[:, ::-1], premises)
    places = np.repeat(np.arange(count), np.where(labels, copies, 1))
    return EncodedPairs(premises[places].tolist(), hypotheses[places].tolist(), labels[places].tolist())


def model_of(labels):
    torch.manual_seed(0)
    return Classifier(esim_fast.ESIM(8, 12, len(WORDS), len(labels)), Vocabulary(WORDS), labels)


class TestClassWeights:
    @pytest.mark.parametrize("smoothing", [0.0, 0.3])
    def test_the_loss_is_the_weighted_sum(self, smoothing):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(50, 4, generator=generator, dtype=torch.float64) * 3
        targets = torch.randint(4, (50,), generator=generator)
        weights = torch.tensor([0.5, 1.0, 7.0, 0.01], dtype=torch.float64)
        logs = logits - logits.exp().sum(1, keepdim=True).log()
        goals = torch.full_like(logits, smoothing / 4)
        goals[torch.arange(50), targets] += 1 - smoothing
        expected = -(goals * logs * weights).sum()
        torch.testing.assert_close(summed_loss(logits, targets, smoothing, weights)[0], expected, rtol=1e-12, atol=0)

    def test_balanced_matches_scikit_learn(self):
        compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
        model, labels = model_of(["a", "b", "c"]), [0] * 7 + [1] * 2 + [2]
        train = EncodedPairs([[2]] * 10, [[3]] * 10, labels)
        found = class_weights(Recipe(class_weights="balanced"), model, train)
        expected = compute("balanced", classes=np.arange(3), y=np.array(labels))
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
        assert float(found[torch.tensor(labels)].mean()) == pytest.approx(1)

    def test_weights_by_label(self):
        model, train = model_of(["a", "b", "c"]), EncodedPairs([[2]], [[3]], [0])
        recipe = Recipe(class_weights={"c": 2.5, "a": 0.5})
        assert class_weights(recipe, model, train).tolist() == [0.5, 1.0, 2.5]
        assert class_weights(Recipe(), model, train) is None
        with pytest.raises(ValueError, match="class_weights: there is no label 'd', only a, b, c"):
            class_weights(Recipe(class_weights={"d": 1.0}), model, train)

    def test_training_uses_them_and_parts_of_a_batch_add_up(self, tmp_path):
        recipe = Recipe(epochs=1, batch_size=16, class_weights={"swapped": 5.0}, learning_rate=1e-2)
        nets, losses = [], []
        for accumulate in (1, 3):
            model = new_model(dropout=0.0)
            directory = tmp_path / str(accumulate)
            (metrics,) = new_trainer(replace(recipe, accumulate=accumulate), directory, model, rare(160, 1)).run()
            nets.append(model.net)
            losses.append(metrics.train_loss)
        for parameter, expected in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-5)
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        # In a single batch, a pair with weight 5 has the gradient of five pairs.
        nets = []
        for name, found, weights in (("weights", rare(40, 1), {"swapped": 5.0}), ("copies", rare(40, 1, 5), None)):
            model = new_model(dropout=0.0)
            model.net.requires_grad_(False)
            model.net.linear.mlp[-1].requires_grad_(True)
            options = {"batch_size": len(found), "class_weights": weights}
            before = model.net.linear.mlp[-1].bias.clone()
            (metrics,) = new_trainer(Recipe(epochs=1, **options), tmp_path / name, model, found).run()
            nets.append((metrics.train_loss * len(found), (model.net.linear.mlp[-1].bias - before).tolist()))
        assert nets[0][0] == pytest.approx(nets[1][0], rel=1e-5)
        assert nets[0][1] == pytest.approx(nets[1][1], rel=1e-4)  # Adam's step ignores the gradient's scale

    @pytest.mark.parametrize(
        ("weights", "error", "message"),
        [
            ({"a": 0.0}, ValueError, r"class_weights\['a'\] must be positive, got 0"),
            ({"a": float("inf")}, ValueError, r"class_weights\['a'\] must be positive, got inf"),
            ({"a": "2"}, TypeError, r"class_weights\['a'\]"),
            ("even", ValueError, "class_weights must be \"balanced\" or a dict of weights, got 'even'"),
        ],
    )
    def test_bad_weights(self, weights, error, message):
        with pytest.raises(error, match=message):
            Recipe(class_weights=weights)


def epoch(number, **figures):
    usual = {"train_loss": 1.0, "train_accuracy": 0.5, "dev_loss": 1.0, "dev_accuracy": 0.5, "learning_rate": 1e-3}
    return EpochMetrics(
        number, **{**usual, "seconds": 1.0, **{f"dev_{name}": value for name, value in figures.items()}}
    )


class TestBestBy:
    HISTORY = (
        epoch(1, accuracy=0.9, loss=0.9, macro_f1=0.1, f1=0.3, auc=None),
        epoch(2, accuracy=0.8, loss=0.2, macro_f1=0.2, f1=0.3, auc=0.4),
        epoch(3, accuracy=0.9, loss=0.3, macro_f1=0.7, f1=0.2, auc=0.6),
        epoch(4, accuracy=0.1, loss=0.9, macro_f1=0.3, f1=0.4, auc=None),
    )

    @pytest.mark.parametrize(
        ("best_by", "best", "better"),
        [
            (None, 3, [1, 0, 0, 0]),  # a tie: the lower loss wins
            ("accuracy", 3, [1, 0, 0, 0]),
            ("loss", 2, [1, 1, 0, 0]),
            ("macro-f1", 3, [1, 1, 1, 0]),
            ("f1:yes", 4, [1, 0, 0, 1]),
            ("auc", 3, [0, 1, 1, 0]),
        ],
    )
    def test_one_order_for_best_epoch_patience_and_learning_rate(self, best_by, best, better):
        figure, progress = figure_of(best_by, ["no", "yes"]), Progress(history=list(self.HISTORY))
        assert progress.best(figure).epoch == best
        ranks = progress.ranks(figure)
        recipe = Recipe(learning_rate=1.0, lr_decay=0.5, patience=1)
        assert recipe.rate(99, ranks) == 0.5 ** (4 - sum(better))
        assert [recipe.is_over(ranks[: i + 1]) for i in range(4)] == [not b for b in better]

    def test_a_history_without_a_defined_figure(self):
        figure, progress = figure_of("auc", ["no", "yes"]), Progress(history=[epoch(1, loss=2.0), epoch(2, loss=1.0)])
        assert progress.best(figure).epoch == 2
        assert Progress().best(figure) is None

    @pytest.mark.parametrize("best_by", ["macro-f1", "f1:swapped", "f1:same", "auc", "loss"])
    def test_the_figure_matches_scikit_learn_and_chooses_the_epoch(self, tmp_path, best_by):
        metrics_of = pytest.importorskip("sklearn.metrics")
        dev, logits = rare(80, 2), []
        dev.labels[40:] = 1 - dev.labels[40:]  # so that figures do not only rise
        options = {"patience": None, "learning_rate": 1e-2, "lr_decay": 1.0, "batch_size": 16}
        recipe = Recipe(epochs=5, best_by=best_by, class_weights="balanced", **options)

        def keep(_):
            logits.append(trainer.model.logits(dev).double())

        trainer = new_trainer(recipe, tmp_path, train=rare(160, 1), dev=dev, on_epoch=keep)
        history = trainer.run()
        key = {"macro-f1": "dev_macro_f1", "auc": "dev_auc", "loss": "dev_loss"}.get(best_by, "dev_f1")
        expected = {
            "macro-f1": lambda x: metrics_of.f1_score(dev.labels, x.argmax(1), average="macro", zero_division=0),
            "f1:swapped": lambda x: metrics_of.f1_score(dev.labels, x.argmax(1), pos_label=1, zero_division=0),
            "f1:same": lambda x: metrics_of.f1_score(dev.labels, x.argmax(1), pos_label=0, zero_division=0),
            "auc": lambda x: metrics_of.roc_auc_score(dev.labels, x.softmax(1)[:, 1]),
            "loss": lambda x: metrics_of.log_loss(dev.labels, x.softmax(1)),
        }[best_by]
        values = [getattr(metrics, key) for metrics in history]
        assert values == pytest.approx([expected(x) for x in logits], abs=1e-6 if best_by == "loss" else 1e-9)
        best = values.index((min if best_by == "loss" else max)(values))
        assert trainer.best == history[best]
        assert best < 4  # otherwise the last model would pass too
        for directory, epoch in (("", best), ("last", 4)):
            found = Classifier.from_pretrained(tmp_path / directory).logits(dev).double()
            assert torch.equal(found, logits[epoch])
        line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
        assert {name for name in line if name.startswith("dev")} == {"dev_loss", "dev_accuracy", key}

    def test_accuracy_with_a_threshold(self):
        model, dev = new_model(), pairs(80, 2)
        usual, figure = assess(figure_of(None, model.labels), model, dev), figure_of("f1:swapped", model.labels)
        model.threshold = 0.0
        assert assess(figure_of(None, model.labels), model, dev)["accuracy"] == dev.labels.mean()
        assert assess(figure, model, dev)["loss"] == usual["loss"]
        model.threshold = 1.0
        assert assess(figure, model, dev)["f1"] == 0

    @pytest.mark.parametrize(
        ("best_by", "labels", "message"),
        [
            ("auc", ["a", "b", "c"], "best_by: the AUC needs two labels, and there are 3: a, b, c"),
            ("f1:d", ["a", "b"], "best_by: there is no label 'd', only a, b"),
            (
                "spearman",
                ["a", "b"],
                "best_by: classification has accuracy, macro-f1, auc, loss, f1:LABEL, but no spea",
            ),
        ],
    )
    def test_figures_of_other_tasks(self, best_by, labels, message):
        with pytest.raises(ValueError, match=message):
            figure_of(best_by, labels)

    def test_unknown_figures(self):
        for best_by in ("f1", "recall", "", 3):
            with pytest.raises(
                ValueError, match="best_by must be one of accuracy, macro-f1, auc, loss, pearson, spear"
            ):
                Recipe(best_by=best_by)

    def test_figures_undefined_on_dev(self, tmp_path):
        one = EncodedPairs([[2]] * 3, [[3]] * 3, [0, 0, 0])
        for best_by in ("auc", "f1:swapped"):
            with pytest.raises(ValueError, match=r"dev: no pair has the label swapped, so (AUC|F1 of swapped) is not"):
                new_trainer(Recipe(best_by=best_by), tmp_path, dev=one)
        new_trainer(Recipe(best_by="f1:same"), tmp_path, dev=one)


class TestResuming:
    def test_other_weights_or_figures_do_not_resume(self, tmp_path):
        new_trainer(Recipe(epochs=1), tmp_path / "plain").run()
        used = Recipe(epochs=1, class_weights={"swapped": 2.0}, best_by="macro-f1")
        history = new_trainer(used, tmp_path / "used").run()
        for directory, recipe, name in (
            ("plain", replace(used, best_by=None), "class_weights"),
            ("plain", replace(used, class_weights=None), "best_by"),
            ("used", replace(used, class_weights="balanced"), "class_weights"),
            ("used", replace(used, best_by=None), "best_by"),
        ):
            with pytest.raises(OtherSettingsError) as caught:
                new_trainer(recipe, tmp_path / directory, resume=True)
            assert caught.value.name == name
        assert new_trainer(replace(used, epochs=2), tmp_path / "used", resume=True).run()[0] == history[0]
        new_trainer(Recipe(epochs=2, best_by="accuracy"), tmp_path / "plain", resume=True).run()

    def test_checkpoints_of_the_previous_version(self, tmp_path):
        """They lack the recipe's new options and an epoch's new figures."""
        recipe = Recipe(epochs=2)
        new_trainer(replace(recipe, epochs=1), tmp_path / "parts").run()
        path = tmp_path / "parts" / "checkpoint" / "last.pt"
        checkpoint = Checkpoint.load(path)
        for name in ("class_weights", "best_by"):
            del checkpoint.settings[name]
        for metrics in checkpoint.progress["history"]:
            for field in ("dev_macro_f1", "dev_f1", "dev_auc", "dev_pearson", "dev_spearman"):
                del metrics[field]
        checkpoint.save(path)
        resumed = new_trainer(recipe, tmp_path / "parts", new_model(seed=7), resume=True).run()
        whole = new_trainer(recipe, tmp_path / "whole").run()
        assert [replace(m, seconds=0) for m in resumed] == [replace(m, seconds=0) for m in whole]

    def test_a_checkpoint_with_bad_values(self, tmp_path):
        new_trainer(Recipe(epochs=1), tmp_path).run()
        path = tmp_path / "checkpoint" / "last.pt"
        checkpoint = Checkpoint.load(path)
        for value in ("high", 1.5, float("nan"), 1):
            checkpoint.progress["history"][0]["dev_auc"] = value
            dataclasses.replace(checkpoint).save(path)
            with pytest.raises(esim_fast.data.DataError, match=r"last\.pt: not a checkpoint of esim-fast: dev_auc ="):
                new_trainer(Recipe(epochs=1), tmp_path, resume=True)


def test_recipes_without_the_options_are_saved_as_before():
    assert not {"class_weights", "best_by"} & Recipe().as_dict().keys()
    used = Recipe(class_weights={"a": 2}, best_by="loss")
    assert Recipe(**json.loads(json.dumps(used.as_dict()))) == used
    assert list(epoch(1).as_dict()) == [
        *("epoch", "train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "learning_rate", "seconds")
    ]
