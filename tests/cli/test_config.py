"""``--config`` reads options from a file; the command line overrides them."""

import json
import sys

import pytest

from esim_fast.cli.arguments import parse
from esim_fast.recipe import PRESETS, Recipe
from tests.cli.commands import SMALL, esim_fast, fails, succeeds, training
from tests.processes import output_of


def parsed(*arguments):
    options = vars(parse(["train", *map(str, arguments)]))
    return {name: value for name, value in options.items() if name not in ("parser", "config")}


@pytest.fixture
def config(tmp_path):
    """``config("lr: 1", name=…)`` writes a file and returns its path."""

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    return write


ALL = {
    "train": ["a.tsv", "b.tsv"],
    "dev": "c.tsv",
    "columns": [1, 2, 3],
    "quoted": True,
    "map-labels": {"yes": "entailment", "no": "neutral"},
    "skip_bad_rows": False,
    "tokenizer": "characters",
    "vectors": "glove.txt",
    "extend_vocabulary": True,
    "output": "model",
    "checkpoint-steps": 10,
    "lr": 0.001,
    "warmup_steps": 5,
    "patience": None,
    "max_tokens": 2000,
    "hidden-size": 32,
    "embedding_dropout": None,
    "freeze_embedding": True,
    "precision": "bf16",
    "limit": 100,
    "log": ["csv"],
}
SAME = [
    *("--train", "a.tsv", "b.tsv", "--dev", "c.tsv", "--columns", "1,2,3", "--quoted", "--map-labels"),
    *("yes=entailment,no=neutral", "--tokenizer", "characters", "--vectors", "glove.txt", "--extend-vocabulary"),
    *("--output", "model", "--checkpoint-steps", "10", "--lr", "1e-3", "--warmup-steps", "5", "--patience", "0"),
    *("--max-tokens", "2000", "--hidden-size", "32", "--freeze-embedding", "--precision", "bf16", "--limit", "100"),
    *("--log", "csv"),
]


def test_same_as_the_command_line(config):
    assert parsed("--config", config(ALL, "run.json")) == parsed(*SAME)
    yaml = pytest.importorskip("yaml")
    assert parsed("--config", config(yaml.safe_dump(ALL))) == parsed(*SAME)
    assert parsed(f"--config={config('')}") == parsed()
    # YAML reads 1e-3 as text; also comments and other forms of values.
    text = "learning_rate: 1e-3  # Adam's\ntrain: a.tsv\nmap_labels: a=b\ncolumns: p,h\n"
    expected = parsed("--lr", "0.001", "--train", "a.tsv", "--map-labels", "a=b", "--columns", "p,h")
    assert parsed("--config", config(text)) == expected


def test_the_command_line_overrides_it(config):
    path = config({**ALL, "log": ["csv"]}, "run.json")

    def with_options(*options):
        with_file, without = parsed("--config", path, *options), parsed(*SAME)
        return {name: value for name, value in with_file.items() if without.get(name, "none") != value}

    assert with_options("--lr", "0.5", "--train", "d.tsv") == {"learning_rate": 0.5, "train": ["d.tsv"]}
    assert with_options("--patience=7") == {"patience": 7}
    gone = parsed("--config", path, "--data", "folder")
    assert (gone["data"], gone["train"], gone["dev"]) == ("folder", None, None)
    batches = parsed("--config", path, "--batch-size", "7")
    assert (batches["batch_size"], "max_tokens" in batches) == (7, False)
    narrow = parsed("--config", path, "--embedding-dim", "9")
    assert (narrow["embedding_dim"], narrow["vectors"], narrow["extend_vocabulary"]) == (9, None, None)
    cached = config({"no_cache": True}, "cached.json")
    assert parsed("--config", cached, "--cache", "there")["no_cache"] is False
    # A preset is several options at once.
    recipe = config({"learning_rate": 0.5, "ema_decay": 0.1, "epochs": 3}, "recipe.json")
    preset = parsed("--config", recipe, "--preset", "small-data")
    assert (preset["epochs"], "learning_rate" in preset, "ema_decay" in preset) == (3, False, False)
    assert PRESETS["small-data"].learning_rate != Recipe().learning_rate
    assert parsed("--log", "csv", "--config", path)["log"] == ["csv"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_sise": 3}, "hidden_sise: not an option of train; did you mean hidden_size?"),
        ({"seeed": 3}, "seeed: not an option of train; did you mean seed?"),
        ({"config": "other.json"}, "config: not an option of train"),
        ({"lr": "fast"}, "lr: expected a positive number, got 'fast'"),
        ({"epochs": 2.5}, "epochs: expected an integer from 1 to 1000000, got '2.5'"),
        ({"epochs": True}, "epochs: expected text or a number, got true (text needs quotes)"),
        ({"epochs": [3]}, "epochs: expected text or a number, got list"),
        ({"output": {"a": 1}}, "output: expected text or a number, got dict"),
        ({"train": []}, "train: expected one value or more, got none"),
        ({"train": [None]}, "train: expected text or a number, got NoneType"),
        ({"quoted": "yes"}, "quoted: expected true or false, got 'yes'"),
        ({"preset": "paper2"}, "preset: expected one of paper, small-data, "),
        ({"map-labels": {"a,b": "c"}}, "map-labels: expected values without commas, got a,b=c"),
        ({"columns": ["a", 1]}, "columns: expected names or numbers, not both, got 'a,1'"),
        ({"lr": 1, "learning-rate": 2}, "lr and learning-rate are the same option"),
        ({"batch_size": 1, "max_tokens": 2}, "batch_size and max_tokens exclude each other"),
        ({"log": "excel"}, "log: expected csv, tensorboard, wandb, or several of them, got 'excel'"),
        ({"model": "ESIM"}, "expected the config.json of a model trained by esim-fast train"),
        (
            {"model": "ESIM", "training": {"recipe": {"speed": 3}, "files": {"train": ["a.tsv"]}}},
            "speed: not an option of train; did you mean seed?",
        ),
        ({"model": "ESIM", "training": {"recipe": {}}}, "names no training files; use --train and --dev"),
        ([1], "expected options with values, such as lr: 0.001"),
        ("{", "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"lr": 1, "lr": 2}', "not valid JSON: lr occurs twice"),
        ("[" * 100_000, "not valid JSON: "),
    ],
)
def test_mistakes_in_it(config, values, message):
    path = config(values, "run.json")
    found = fails("train", "--config", path)
    assert found.startswith(f"esim-fast train: {path}: {message}"), found


def test_mistakes_in_yaml(config, tmp_path, monkeypatch):
    pytest.importorskip("yaml")
    path = config("epochs: 3\nlr: [1\n")
    assert fails("train", "--config", path).startswith(f"esim-fast train: {path}:3: not valid YAML: ")
    path = config("map-labels: {yes: entailment}\n")
    assert "map-labels: expected text or a number, got true (text needs quotes)" in fails("train", "--config", path)
    path = config("1: 2\n")
    assert "expected options with values" in fails("train", "--config", path)
    for code in ("!!python/object/apply:os.system [ls]", "a: !!python/name:os.system"):
        assert "not valid YAML" in fails("train", "--config", config(code))
    path = config("", "run.toml")
    assert f"--config {path}: expected a name that ends in .json, .yaml or .yml" in fails("train", "--config", path)
    missing = tmp_path / "none.json"
    assert f"--config {missing}: No such file or directory" in fails("train", "--config", missing)
    (tmp_path / "latin.json").write_bytes(b'{"output": "\xe9"}')
    assert "expected text in UTF-8" in fails("train", "--config", tmp_path / "latin.json")
    monkeypatch.setitem(sys.modules, "yaml", None)
    message = fails("train", "--config", config("epochs: 3\n"))
    assert message.startswith(f'esim-fast train: --config {tmp_path / "run.yaml"}: needs PyYAML: pip install "esim_f')


def test_repeating_a_run_from_its_config(corpus, tmp_path):
    """The same weights bit for bit, unless the command line overrides an option."""
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("man 1 2 3\nrun 2 3 4\ndogs 5 5 5\n")
    renamed = ["--map-labels", "neutral=contradiction", "--columns", "sentence2,sentence1,gold_label"]
    for name, options in {
        "plain": ["--max-tokens", "20", "--dropout", "0.3", "--seed", "5", "--limit", "5", *renamed],
        "vectors": ["--vectors", vectors, "--extend-vocabulary", "--freeze-embedding", "--forget-bias", "0.5"],
    }.items():
        first, again, other = (tmp_path / f"{name}-{part}" for part in ("first", "again", "other"))
        files = ["--train", corpus, "--dev", corpus, "--output", first]
        succeeds("train", *files, "--hidden-size", 8, "--epochs", 2, "--device", "cpu", *options)
        result = esim_fast("train", "--config", first / "config.json", "--output", again, "--device", "cpu")
        assert result.returncode == 0, result.stderr
        for file in ("model.safetensors", "config.json", "labels.json"):
            assert (again / file).read_bytes() == (first / file).read_bytes()
        succeeds("train", "--config", first / "config.json", "--output", other, "--seed", 6, "--device", "cpu")
        config = json.loads((other / "config.json").read_text())
        assert config["training"]["recipe"]["seed"] == 6
        assert (other / "model.safetensors").read_bytes() != (first / "model.safetensors").read_bytes()


def test_options_at_the_start_of_the_run(corpus, config, tmp_path):
    path = config({"train": str(corpus), "dev": str(corpus), "output": str(tmp_path / "m"), "hidden_size": 8}, "a.json")
    succeeds("train", "--config", path, *SMALL[2:])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["hidden_size"] == 8


def test_nothing_slow_is_imported():
    program = """
import sys
from esim_fast.cli.arguments import parse
parse(["train", "--limit", "5", "--log", "csv"])
print({"torch", "yaml", "wandb", "tensorboard"} & {*sys.modules})
"""
    assert output_of(program) == "set()\n"


def test_limit(corpus, tmp_path):
    options = training(corpus, tmp_path / "m", "--limit", 4)
    result = esim_fast(*options)
    assert "--limit 4: reading only the first 4 pairs of each file\n" in result.stderr
    assert result.stderr.count("pairs.tsv: 4 pairs (") == 2  # train and dev
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["training"]["options"] == {"limit": 4}
    assert (config["num_labels"], "dogs" in (tmp_path / "m" / "vocabulary.txt").read_text().split()) == (3, True)
    succeeds(*options, "--resume")
    other = training(corpus, tmp_path / "m", "--resume", "--limit", 3)
    assert fails(*other).endswith("m: this run began with --limit 4, not 3; resume it with that value")
    without = training(corpus, tmp_path / "m", "--resume")
    assert fails(*without).endswith("m: this run began with --limit 4; resume it with that value")
    succeeds(*training(corpus, tmp_path / "all"))
    limited = training(corpus, tmp_path / "all", "--resume", "--limit", 4)
    assert fails(*limited).endswith("all: this run began without --limit; resume it the same way")
    damaged = tmp_path / "damaged.tsv"  # after the limit
    damaged.write_bytes(corpus.read_bytes() + b"entailment\n")
    assert "expected 3 columns" in fails(*training(damaged, tmp_path / "n"))
    succeeds("train", "--train", damaged, "--dev", corpus, *SMALL, "--limit", 5, "--output", tmp_path / "n")
    assert "expected an integer from 1 to 1000000, got '0'" in fails("train", "--limit", 0)
