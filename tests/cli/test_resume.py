"""``esim-fast train --resume``: to the bit, and never with other settings or data."""

import json
import shutil

from tests.cli.commands import SMALL, TRAIN, esim_fast, fails, succeeds, write_tsv


def test_resume(corpus, tmp_path):
    def options(epochs):
        small = ["--hidden-size", "8", "--epochs", epochs, "--batch-size", "2", "--device", "cpu"]
        return ["train", "--train", corpus, "--dev", corpus, *small]

    succeeds(*options(3), "--output", tmp_path / "whole")
    succeeds(*options(1), "--output", tmp_path / "parts", "--resume")  # nothing to resume: starts afresh
    succeeds(*options(3), "--output", tmp_path / "parts", "--resume")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    metrics = [
        [json.loads(line) | {"seconds": 0} for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert metrics[0] == metrics[1]

    before = (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    result = esim_fast(*options(3), "--output", tmp_path / "parts", "--resume")
    assert result.returncode == 0
    assert result.stdout.startswith("dev accuracy ")
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == before
    message = fails(*options(3), "--lr", "0.1", "--output", tmp_path / "parts", "--resume")
    assert "this run began with --lr 0.0004, not 0.1: resume it with that" in message
    message = fails(*options(3), "--freeze-embedding", "--output", tmp_path / "parts", "--resume")
    assert "this run began without --freeze-embedding: resume it so" in message
    message = fails(*options(3), "--tokenizer", "whitespace", "--output", tmp_path / "parts", "--resume")
    assert "this run began with --tokenizer nltk, not whitespace: resume it with that" in message
    message = fails(*options(3), "--dropout", "0.1", "--output", tmp_path / "parts", "--resume")
    assert "this run began with --dropout 0.5, not 0.1: resume it with that" in message
    assert "already holds a run: resume it (--resume)" in fails(*options(3), "--output", tmp_path / "parts")


def test_resuming_with_other_vectors(corpus, tmp_path):
    vectors = tmp_path / "glove.txt"
    vectors.write_text("man 1 2 3\nis 2 3 4\n")
    options = ["train", "--train", corpus, "--dev", corpus, "--output", tmp_path / "m", "--resume", *SMALL]
    succeeds(*options, "--vectors", vectors)
    succeeds(*options, "--vectors", vectors)
    assert "this run began with other word vectors" in fails(*options, "--embedding-dim", 3)
    for content in ("man 1 2 4\nis 2 3 4\n", "man 1 2\nis 2 3\n"):
        vectors.write_text(content)
        assert "this run began with other word vectors" in fails(*options, "--vectors", vectors)


def test_resuming_with_other_data(corpus, tmp_path):
    data = write_tsv(tmp_path / "pairs.tsv", TRAIN)
    options = ["train", "--train", data, "--dev", corpus, "--output", tmp_path / "m", "--resume", *SMALL]
    succeeds(*options)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    # The same number of words and pairs, but other ones: ids would silently mean something else.
    write_tsv(data, [(label, p.replace("man", "boy"), h.replace("man", "boy")) for label, p, h in TRAIN])
    assert "this run began with other training or dev pairs" in fails(*options)
    write_tsv(data, [*TRAIN, ("neutral", "Many new words here.", "No.")])
    assert "this run began with other training or dev pairs" in fails(*options)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


def test_a_lost_line_of_metrics_comes_back(corpus, model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "metrics.jsonl").write_text("")
    options = ["train", "--train", corpus, "--dev", corpus, "--output", tmp_path / "m", *SMALL]
    succeeds(*options, "--resume")
    assert (tmp_path / "m" / "metrics.jsonl").read_bytes() == (model / "metrics.jsonl").read_bytes()
