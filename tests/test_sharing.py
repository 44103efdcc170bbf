"""Models on the Hugging Face Hub, with a folder in place of the hub, so nothing leaves this machine."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import DataError, Vocabulary
from esim_fast.model_card import model_card, without_folders
from tests.cli.commands import SMALL, TRAIN, fails, succeeds, write_tsv
from tests.processes import start

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

PAIR = ("a b", "b a")
FILES = {"model.safetensors", "config.json", "vocabulary.txt", "labels.json"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", *"abc"]
    return Classifier(esim_fast.ESIM(6, 5, len(words), 3), Vocabulary(words), ["yes", "no", "a`|b\n#"])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake of the hub's library, with the folders in ``hub.place`` as repositories; it records its calls."""
    place, asked = tmp_path / "hub", []

    class Api:
        def __init__(self, token, library_name, library_version):
            asked.append(("token", token))

        def create_repo(self, name, private, exist_ok):
            (place / name).mkdir(parents=True, exist_ok=exist_ok)
            asked.append(("private", private))

        def model_info(self, name):
            return SimpleNamespace(private=(place / name / "private").exists())

        def file_exists(self, name, file):
            return (place / name / file).exists()

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)
            asked.append(("message", commit_message))
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def snapshot_download(name, revision, token, allow_patterns, **_):
        asked.append(("fetched", name, revision, token, sorted(allow_patterns)))
        target = tmp_path / "cache" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            if (place / name / file).exists():
                shutil.copy(place / name / file, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return SimpleNamespace(place=place, asked=asked)


def test_pushed_and_fetched(model, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = model.push_to_hub("user/name", private=False, token="secret", commit_message="First")
    assert address == "https://huggingface.co/user/name/commit/1"
    assert hub.asked == [("token", "secret"), ("private", False), ("message", "First")]
    assert {path.name for path in (hub.place / "user/name").iterdir()} == FILES | {"README.md"}
    (hub.place / "user/name" / "tokenizer.py").write_text("raise SystemExit")
    hub.asked.clear()
    fetched = Classifier.from_pretrained("user/name", revision="v1", token="secret", device="cpu")
    assert hub.asked == [("fetched", "user/name", "v1", "secret", sorted(FILES))]
    assert torch.equal(fetched.predict(PAIR).probabilities, model.predict(PAIR).probabilities)
    assert "secret" not in "".join(path.read_text(errors="replace") for path in (hub.place / "user/name").iterdir())
    line = json.loads(succeeds("predict", "user/name", "--premise", PAIR[0], "--hypothesis", PAIR[1]))
    assert line["label"] == model.predict(PAIR).label


def test_a_directory_comes_first(model, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("user/name")
    assert Classifier.from_pretrained("user/name", device="cpu").directory == Path("user/name")
    assert hub.asked == []
    with pytest.raises(ValueError, match=r"^revision v1 needs a model on the Hub, but user/name is a local directory$"):
        Classifier.from_pretrained("user/name", revision="v1")
    with pytest.raises(DataError, match=r"^user/other: not an esim_fast model; config.json is missing on the Hub$"):
        Classifier.from_pretrained("user/other")


@pytest.mark.parametrize(
    "name", ["nowhere", "./a/b", "../b", "a/../b", "/a/b", "a/b/c", "a/b ", ".a/b", "a\n/b", "a/ä"]
)
def test_other_names_are_not_looked_up(model, hub, name):
    with pytest.raises(DataError, match=r": no such model directory$"):
        Classifier.from_pretrained(name)
    with pytest.raises(ValueError, match=r"^name must have the form user/name, got '"):
        model.push_to_hub(name)
    assert hub.asked == []


def test_private_and_public(model, hub):
    (hub.place / "user/name").mkdir(parents=True)
    with pytest.raises(DataError, match=r"^user/name: the model exists and is public; change that in its settings"):
        model.push_to_hub("user/name", private=True)
    assert not any((hub.place / "user/name").iterdir())
    (hub.place / "user/name" / "private").touch()
    with pytest.raises(DataError, match=r"^user/name: the model exists and is private; change that"):
        model.push_to_hub("user/name", private=False)
    model.push_to_hub("user/name")
    (hub.place / "user/name" / "README.md").write_text("What I have to say")
    model.push_to_hub("user/name", private=True)
    assert (hub.place / "user/name" / "README.md").read_text() == "What I have to say"


FROM_THE_HUB = "user/name: not a directory here, and not found on the Hugging Face Hub"
UNREACHABLE = "the Hub cannot be reached"
MISSING = "there is no such model, or it is private and you must give a token (token=, HF_TOKEN or `hf auth login`)"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (errors.RepositoryNotFoundError, "404 Client Error.\n\nRepository Not Found for url", MISSING),
        (errors.GatedRepoError, "403", "the model is gated: request access from its owner, then give a token"),
        (errors.RevisionNotFoundError, "404", "there is no such revision"),
        (errors.LocalEntryNotFoundError, "Cannot find\nit", UNREACHABLE),
        (errors.OfflineModeIsEnabled, "offline", UNREACHABLE),
        (ConnectionError, "no route", UNREACHABLE),
        (errors.HfHubHTTPError, "500 Server Error\nmore", "HfHubHTTPError: 500 Server Error"),
        (RuntimeError, "\x1b[31mwhatever", r"RuntimeError: \x1b[31mwhatever"),
    ],
)
def test_errors_of_the_hub(model, hub, monkeypatch, kind, text, message):
    def fail(*_, **__):
        raise type(kind.__name__, (kind,), {"__init__": lambda self: None, "__str__": lambda self: text})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(DataError) as caught:
        Classifier.from_pretrained("user/name", revision="v1")
    assert str(caught.value).startswith(f"{FROM_THE_HUB}: {message}")
    with pytest.raises(DataError) as caught:
        model.push_to_hub("user/name")
    assert str(caught.value).startswith(f"user/name: {message}")
    assert fails("evaluate", "user/name", "pairs.tsv").startswith(
        "esim-fast: user/name: not a directory here, and not f"
    )


def test_without_its_library(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hint = r'needs huggingface_hub; pip install "esim_fast\[hub\]"$'
    with pytest.raises(DataError, match=rf"^{FROM_THE_HUB}: {hint}"):
        Classifier.from_pretrained("user/name")
    with pytest.raises(DataError, match=rf"^user/name: {hint}"):
        model.push_to_hub("user/name")


def test_offline(tmp_path):
    """With the library itself."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    options = ["predict", "user/name", "--premise", "a", "--hypothesis", "b"]
    with start(*options, environment={**os.environ, **environment}, directory=tmp_path) as command:
        code, stdout, stderr = command.finish()
    assert (code, stdout) == (2, "")
    assert stderr.startswith(
        "esim-fast: user/name: not a directory here, and not found on the Hugging Face Hub: the Hub cannot be reached"
    )
    assert stderr.count("\n") == 1


class TestCard:
    def figures(self, card):
        return dict(re.findall(r"^\| ([\w ]+) \| `(.*)` \|$", card, re.M))

    def test_of_a_run(self, tmp_path):
        corpus = write_tsv(tmp_path / "pairs.tsv", TRAIN)
        succeeds("train", "--train", corpus, "--dev", corpus, "--test", corpus, *SMALL, "--output", tmp_path / "m")
        model = Classifier.from_pretrained(tmp_path / "m", device="cpu")
        card = model_card(model, "user/name")
        yaml = pytest.importorskip("yaml")
        _, about, text = card.split("---\n", 2)
        about = yaml.safe_load(about)
        assert (about["library_name"], about["pipeline_tag"]) == ("esim_fast", "text-classification")
        assert about["metrics"] == ["accuracy"]
        assert "esim" in about["tags"]
        assert text.startswith("\n# user/name\n")
        assert 'Classifier.from_pretrained("user/name")' in text
        assert "## Labels\n\n- `contradiction`\n- `entailment`\n- `neutral`\n" in text
        figures = self.figures(card)
        epochs = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
        best = max(epochs, key=lambda epoch: (epoch["dev_accuracy"], -epoch["dev_loss"]))
        test = json.loads((tmp_path / "m" / "test.json").read_text())
        assert figures["best epoch"] == str(best["epoch"])
        assert figures["dev accuracy"] == f"{best['dev_accuracy']:.4f}"
        assert figures["test accuracy"] == f"{test['accuracy']:.4f}"
        assert (figures["learning rate"], figures["train"], figures["hidden size"]) == ("0.0004", "pairs.tsv", "8")
        assert figures["parameters"] == f"{sum(weight.numel() for weight in model.net.parameters()):,}"
        assert str(tmp_path) not in card

    def test_of_scores(self, tmp_path):
        pairs = [("a b", "b a"), ("a", "c"), ("c", "a b"), ("b", "b")] * 3
        history = Classifier.fit(pairs, [0.5, 1.0, 2.5, 3.0] * 3, dev=0.5, epochs=1, hidden_size=4, device="cpu")
        card = model_card(history.model, "user/name")
        assert "\n- spearmanr\n" in card
        assert "It predicts a score for a pair of sentences." in card
        assert "## Labels" not in card
        assert self.figures(card)["dev spearman"] == f"{history.best.dev_spearman:.4f}"
        history.model.save_pretrained(tmp_path)
        assert model_card(Classifier.from_pretrained(tmp_path, device="cpu"), "user/name") == card

    def test_with_others_text(self, model, tmp_path):
        model.training = {"recipe": {"a|b": "`x` | <script>\n# y", "c": ["d\n"]}, "files": "none", "best_epoch": 3}
        model.directory = tmp_path
        for content in ("", "[]", "{", '{"epoch": "x"}', "\x00"):
            (tmp_path / "metrics.jsonl").write_text(content)
            (tmp_path / "test.json").write_text(content)
            card = model_card(model, "user/name")
            assert "## Figures" not in card
            assert "| a|b | `'x' \\| <script>\\n# y` |" in card
            assert "\n- `a'|b\\n#`\n" in card
        model.tokenizer = str.split
        assert 'from_pretrained("user/name", tokenizer="module:function")' in model_card(model, "user/name")
        model.training = None
        assert "## Training" not in model_card(model, "user/name")

    def test_folders_are_not_published(self, model, hub):
        model.training = {
            "recipe": {},
            "files": {"train": ["/home/me/secret/train.tsv", "hub:a/b#train"], "dev": "C/dev.tsv", "test": None},
            "before": {"files": {"vectors": "/home/me/glove.txt"}},
        }
        model.push_to_hub("user/name")
        config = json.loads((hub.place / "user/name" / "config.json").read_text())["training"]
        assert config["files"] == {"train": ["train.tsv", "hub:a/b#train"], "dev": "dev.tsv", "test": None}
        assert config["before"] == {"files": {"vectors": "glove.txt"}}
        assert model.training["files"]["dev"] == "C/dev.tsv"
        assert without_folders(None) is None
