"""``esim-fast train`` on scores and on imbalanced pairs: its options, files, messages and errors."""

import json

import pytest

from esim_fast import Classifier
from esim_fast.cli.options import class_weights
from tests.cli.commands import SMALL, esim_fast, fails, succeeds

WORDS = ["man", "dog", "runs", "sleeps", "park"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files with the columns of STS-B, SICK and QQP."""
    folder = tmp_path_factory.mktemp("corpora")
    pairs = [(f"A {WORDS[i % 5]} {WORDS[i * 3 % 5]}.", f"The {WORDS[i % 4]} {WORDS[i * 2 % 5]}.", i) for i in range(30)]
    (folder / "sts.tsv").write_text(
        "index\tsentence1\tsentence2\tscore\n" + "".join(f"{i}\t{p}\t{h}\t{i % 11 / 2:.3f}\n" for p, h, i in pairs)
    )
    (folder / "SICK.txt").write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        + "".join(f"{i}\t{p}\t{h}\t{1 + i % 5 * 0.9:.1f}\t{('NEUTRAL', 'ENTAILMENT')[i % 2]}\n" for p, h, i in pairs)
    )
    (folder / "qqp.tsv").write_text(
        "id\tquestion1\tquestion2\tis_duplicate\n" + "".join(f"{i}\t{p}\t{h}\t{int(i % 4 == 0)}\n" for p, h, i in pairs)
    )
    (folder / "negative.tsv").write_text("question1\tquestion2\tis_duplicate\na\tb\t0\n")
    (folder / "constant.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t2\nb\tb\t2.0\n")
    return folder


def train(folder, corpus, output, *options):
    return ["train", "--train", folder / corpus, "--dev", folder / corpus, "--output", output, *SMALL, *options]


def lines_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def config_of(path):
    return json.loads((path / "config.json").read_text())


class TestRegression:
    def test_messages_and_files(self, folder, tmp_path):
        options = train(folder, "sts.tsv", tmp_path / "m", "--task", "regression", "--test", folder / "sts.tsv")
        result = esim_fast(*options)
        assert result.returncode == 0, result.stderr
        assert "sts.tsv: 30 pairs (scores from 0 to 5, 2.30 on average)\n" in result.stderr
        best = max(lines_of(tmp_path / "m"), key=lambda metrics: metrics["dev_spearman"])
        assert "accuracy" not in result.stdout + result.stderr
        said = f"dev Spearman {best['dev_spearman']:.4f}, dev Pearson {best['dev_pearson']:.4f}, "
        assert said in result.stderr
        assert result.stdout.startswith(f"dev Spearman {best['dev_spearman']:.4f}; the model is in {tmp_path / 'm'}\n")
        test = json.loads((tmp_path / "m" / "test.json").read_text())
        assert list(test) == ["file", "spearman", "pearson"]
        assert test["spearman"] == pytest.approx(best["dev_spearman"])  # of the same file
        assert f"test Spearman {test['spearman']:.4f}, Pearson {test['pearson']:.4f}\n" in result.stdout
        model = Classifier.from_pretrained(tmp_path / "m")
        assert (model.task, model.labels) == ("regression", ["score"])
        assert 1 < model.predict(("A man runs.", "The man sleeps.")) < 4  # training starts at the mean

    def test_the_scores_of_sick(self, folder, tmp_path):
        result = esim_fast(*train(folder, "SICK.txt", tmp_path / "m", "--task", "regression", "--best-by", "pearson"))
        assert "SICK.txt: 30 pairs (scores from 1 to 4.6, 2.80 on average)\n" in result.stderr
        assert result.stdout.startswith("dev Pearson ")
        succeeds(*train(folder, "SICK.txt", tmp_path / "labels"))
        assert json.loads((tmp_path / "labels" / "labels.json").read_text()) == ["ENTAILMENT", "NEUTRAL"]

    def test_resuming_and_seeds(self, folder, tmp_path):
        regression = ["--task", "regression"]
        for name, epochs in (("whole", 3), ("parts", 1), ("parts", 3)):
            succeeds(*train(folder, "sts.tsv", tmp_path / name, *regression, "--epochs", epochs, "--resume"))
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        seeds = ["--seeds", 2, "--epochs", 3]
        output = succeeds(*train(folder, "sts.tsv", tmp_path / "seeds", *regression, *seeds))
        summary = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
        assert summary["dev"]["spearman"][0] == max(metrics["dev_spearman"] for metrics in lines_of(tmp_path / "whole"))
        assert f"dev Spearman {summary['dev']['mean']:.4f} ± " in output

    def test_skipped_rows(self, folder, tmp_path):
        path = tmp_path / "bad.tsv"
        path.write_text((folder / "sts.tsv").read_text() + "30\tA man.\tA dog.\tmany\n")
        options = ["train", "--train", path, "--dev", folder / "sts.tsv", "--output", tmp_path / "m", *SMALL]
        assert "bad.tsv:32: expected a number as the score, got 'many'" in fails(*options, "--task", "regression")
        said = esim_fast(*options, "--task", "regression", "--skip-bad-rows").stderr
        assert "bad.tsv: 30 pairs (scores from 0 to 5, 2.30 on average); skipped 1 bad row:\n" in said


class TestImbalance:
    def test_files_and_messages(self, folder, tmp_path):
        options = ["--class-weights", "balanced", "--best-by", "f1:1", "--calibrate", "--threshold", "f1"]
        command = train(folder, "qqp.tsv", tmp_path / "m", *options, "--test", folder / "qqp.tsv")
        result = esim_fast(*command)
        assert result.returncode == 0, result.stderr
        metrics, config = lines_of(tmp_path / "m"), config_of(tmp_path / "m")
        best = max(value["dev_f1"] for value in metrics)
        assert f", dev F1 of 1 {metrics[0]['dev_f1']:.2%}, " in result.stderr
        first, calibrated, threshold, test, *_ = result.stdout.splitlines()
        assert first == f"dev F1 of 1 {best:.2%}; the model is in {tmp_path / 'm'}"
        assert calibrated.startswith(f"calibrated on dev: temperature {config.get('temperature', 1):.4g}, log loss 0.")
        assert threshold.startswith(
            f"threshold {config['threshold']:.4g}: 1 is predicted from this probability on; dev F1 of 1 "
        )
        assert config["training"]["recipe"]["class_weights"] == "balanced"
        assert config["training"]["recipe"]["best_by"] == "f1:1"
        loss, chosen = config["training"]["calibration"]["log_loss"], config["training"]["threshold"]
        assert loss["after"] <= loss["before"]
        assert chosen["after"] >= chosen["before"]
        figures = json.loads((tmp_path / "m" / "test.json").read_text())
        assert figures["f1"] == chosen["after"]  # of the same file, with the threshold
        assert test == f"test accuracy {figures['accuracy']:.2%}, F1 of 1 {figures['f1']:.2%}"
        model = Classifier.from_pretrained(tmp_path / "m")
        assert (model.temperature, model.threshold) == (config.get("temperature", 1), config["threshold"])
        # A finished run and several seeds give the same results.
        assert succeeds(*command, "--resume").splitlines()[:4] == [first, calibrated, threshold, test]
        assert config_of(tmp_path / "m") == config
        succeeds(*train(folder, "qqp.tsv", tmp_path / "n", *options, "--seeds", 2))
        summary = json.loads((tmp_path / "n" / "seeds.json").read_text())
        assert summary["dev"]["f1"][0] == best
        seed = summary["dev"]["f1"].index(max(summary["dev"]["f1"]))
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "n" / name).read_bytes() == (tmp_path / "n" / f"seed-{seed}" / name).read_bytes()

    def test_options_for_the_end_of_a_run(self, folder, tmp_path):
        """Options for the end of a run may be added to a finished run; a resumed run chooses again."""
        plain = train(folder, "qqp.tsv", tmp_path / "m", "--resume")
        succeeds(*plain)
        weights = (tmp_path / "m" / "last" / "model.safetensors").read_bytes()
        succeeds(*plain, "--threshold", "0.25")
        assert config_of(tmp_path / "m")["threshold"] == 0.25
        assert (tmp_path / "m" / "last" / "model.safetensors").read_bytes() == weights
        succeeds(*plain, "--epochs", 3)
        assert "threshold" not in config_of(tmp_path / "m")

    def test_weights_by_label(self, folder, tmp_path):
        for weights in ("1=3.5", "0=1,1=3.5"):
            succeeds(*train(folder, "qqp.tsv", tmp_path / weights, "--class-weights", weights))
        recipe = config_of(tmp_path / "1=3.5")["training"]["recipe"]
        assert recipe["class_weights"] == {"1": 3.5}
        files = [(tmp_path / weights / "model.safetensors").read_bytes() for weights in ("1=3.5", "0=1,1=3.5")]
        assert files[0] == files[1]
        assert class_weights(" a=b =2 , c=.5") == {"a=b": 2.0, "c": 0.5}

    def test_other_options_are_another_run(self, folder, tmp_path):
        def run(*options):
            return train(folder, "qqp.tsv", tmp_path / "m", "--resume", *options)

        succeeds(*run("--class-weights", "1=2", "--best-by", "auc"))
        for options, message in (
            (["--best-by", "auc"], "began with --class-weights 1=2; resume it with that value"),
            (
                ["--best-by", "auc", "--class-weights", "1=3"],
                "with --class-weights 1=2, not 1=3; resume it with that value",
            ),
            (["--class-weights", "1=2"], "began with --best-by auc; resume it with that value"),
        ):
            assert message in fails(*run(*options))
        succeeds(*train(folder, "qqp.tsv", tmp_path / "n"))
        again = train(folder, "qqp.tsv", tmp_path / "n", "--resume")
        succeeds(*again, "--best-by", "accuracy")
        assert "this run began without --best-by; resume it the same way" in fails(*again, "--best-by", "loss")
        assert "this run began without --task; resume it the same way" in fails(
            *again, "--task", "regression", "--columns", "question1,question2,is_duplicate"
        )

    def test_figures_in_messages(self, folder, tmp_path):
        for best_by, name in (("macro-f1", "macro-F1"), ("auc", "AUC"), ("loss", "loss"), ("accuracy", "accuracy")):
            options = ["--best-by", best_by, "--epochs", 4, "--patience", 1, "--lr", "1e-30"]
            output = succeeds(*train(folder, "qqp.tsv", tmp_path / best_by, *options))
            assert output.startswith(f"dev {name} ")
            # A rate this small changes no prediction.
            assert f"best epoch  1 of 2; stopped after 1 epoch without a better dev {name} (--patience)\n" in output


REGRESSION = ["--task", "regression"]


@pytest.mark.parametrize(
    ("corpus", "options", "message"),
    [
        (
            "sts.tsv",
            [],
            "score; name the columns with --columns (for scores, use train --task regression)",
        ),
        ("qqp.tsv", ["--best-by", "foo"], "expected accuracy, macro-f1, auc, loss, pearson, spearman or f1:LABEL, got"),
        (
            "SICK.txt",
            ["--columns", "sentence_A,sentence_B,entailment_judgment", *REGRESSION],
            "SICK.txt:2: expected a number as the score, got 'NEUTRAL' (regression needs scores, not classes)",
        ),
        ("constant.tsv", REGRESSION, "constant.tsv: expected scores that differ, got only 2"),
        ("sts.tsv", [*REGRESSION, "--label-smoothing", "0.1"], "--label-smoothing: scores have no classes"),
        ("sts.tsv", [*REGRESSION, "--class-weights", "balanced"], "--class-weights: scores have no classes"),
        ("sts.tsv", [*REGRESSION, "--best-by", "auc"], "--best-by: regression has spearman, pearson, loss, but no auc"),
        ("sts.tsv", [*REGRESSION, "--calibrate"], "--calibrate needs classes; scores have no probabilities"),
        ("sts.tsv", [*REGRESSION, "--threshold", "f1"], "--threshold needs two labels; scores have no probabilities"),
        ("qqp.tsv", ["--class-weights", "yes=2"], "--class-weights: there is no label 'yes', only 0, 1"),
        ("qqp.tsv", ["--class-weights", "1=0"], "argument --class-weights: expected a positive number, got '0'"),
        ("qqp.tsv", ["--class-weights", "1=2,1=3"], "expected balanced, or LABEL=WEIGHT,…, each LABEL once, got '1=2,"),
        ("qqp.tsv", ["--class-weights", "1"], "expected balanced, or LABEL=WEIGHT,…, each LABEL once, got '1'"),
        ("qqp.tsv", ["--best-by", "f1:yes"], "--best-by: there is no label 'yes', only 0, 1"),
        ("qqp.tsv", ["--best-by", "pearson"], "--best-by: classification has accuracy, macro-f1, auc, loss, f1:LABEL"),
        (
            "qqp.tsv",
            ["--best-by", "f1:"],
            "argument --best-by: expected accuracy, macro-f1, auc, loss, pearson, ",
        ),
        ("qqp.tsv", ["--threshold", "1.5"], "argument --threshold: expected f1, accuracy or a number from 0 to 1, got"),
        (
            "qqp.tsv",
            ["--dev", "{folder}/negative.tsv", "--best-by", "auc"],
            "negative.tsv: no pair has the label 1, so AUC",
        ),
        ("qqp.tsv", ["--dev", "{folder}/negative.tsv", "--threshold", "f1"], "negative.tsv has the label 1"),
    ],
)
def test_mistakes(folder, tmp_path, corpus, options, message):
    options = [option.format(folder=folder) for option in options]
    assert message in fails(*train(folder, corpus, tmp_path / "m", *options))
    assert not (tmp_path / "m").exists()


def test_three_labels_have_no_threshold_and_no_auc(corpus, tmp_path):
    options = ["train", "--train", corpus, "--dev", corpus, *SMALL, "--output", tmp_path / "m"]
    assert fails(*options, "--threshold", "f1").endswith("--threshold needs two labels; there are 3")
    said = fails(*options, "--best-by", "auc")
    assert said.endswith("--best-by: the AUC needs two labels, and there are 3: contradiction, entailment, neutral")
    assert not (tmp_path / "m").exists()
