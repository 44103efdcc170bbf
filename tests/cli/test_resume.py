"""``esim-fast train --resume``: bit for bit, and never with other settings or data."""

import json
import shutil

from tests.cli.commands import TRAIN, fails, succeeds, training, write_tsv


def test_resume(corpus, tmp_path):
    def parts(epochs, *options, output="parts"):
        return training(corpus, tmp_path / output, "--epochs", epochs, "--resume", *options)

    succeeds(*parts(3, output="whole"))
    succeeds(*parts(1))  # nothing to resume: starts from scratch
    succeeds(*parts(3))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    metrics = [
        [json.loads(line) | {"seconds": 0} for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert metrics[0] == metrics[1]
    before = (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    assert succeeds(*parts(3)).startswith("dev accuracy ")
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == before
    for option, message in (
        (["--lr", "0.1"], "with --lr 0.0004, not 0.1; resume it with that value"),
        (["--freeze-embedding"], "without --freeze-embedding; resume it the same way"),
        (["--tokenizer", "whitespace"], "with --tokenizer nltk, not whitespace; resume it with that value"),
        (["--dropout", "0.1"], "with --dropout 0.5, not 0.1; resume it with that value"),
    ):
        assert f"this run began {message}" in fails(*parts(3, *option))
    assert "already holds a run: resume it (--resume)" in fails(*training(corpus, tmp_path / "parts", "--epochs", 3))


def test_resuming_with_other_data(corpus, tmp_path):
    data, vectors = write_tsv(tmp_path / "pairs.tsv", TRAIN), tmp_path / "glove.txt"
    vectors.write_text("man 1 2 3\nis 2 3 4\n")
    options = training(corpus, tmp_path / "m", "--resume", "--train", data)
    for _ in range(2):
        succeeds(*options, "--vectors", vectors)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    # The same numbers of words and pairs, but other words: ids would silently change their meaning.
    others = [(label, p.replace("man", "boy"), h.replace("man", "boy")) for label, p, h in TRAIN]
    for rows in (others, [*TRAIN, ("neutral", "Many new words here.", "No.")]):
        write_tsv(data, rows)
        assert "this run began with different training or dev pairs" in fails(*options, "--vectors", vectors)
    write_tsv(data, TRAIN)
    assert "this run began with different word vectors" in fails(*options, "--embedding-dim", 3)
    for content in ("man 1 2 4\nis 2 3 4\n", "man 1 2\nis 2 3\n"):
        vectors.write_text(content)
        assert "this run began with different word vectors" in fails(*options, "--vectors", vectors)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


def test_damage(corpus, model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "metrics.jsonl").write_text("")  # a lost line is restored
    succeeds(*training(corpus, tmp_path / "m", "--resume"))
    assert (tmp_path / "m" / "metrics.jsonl").read_bytes() == (model / "metrics.jsonl").read_bytes()
    path = tmp_path / "m" / "checkpoint" / "last.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert "last.pt: not a checkpoint of esim-fast" in fails(*training(corpus, tmp_path / "m", "--resume"))
