"""The work around the network: from files to batches, and from a file of pairs to predictions."""

import random
import shutil
from importlib import resources

import numpy as np
import pytest
import torch
from nltk.tokenize import word_tokenize

from benchmarks.corpus import VOCABULARY, draw_lengths
from benchmarks.measure import Variant
from esim_fast import ESIM, Classifier, data
from esim_fast.data.preparing import ROWS  # in a process's unit of work
from esim_fast.streaming import predict_file


def with_cache(alone, ours, check, new_folder):
    expected, kept = alone(), new_folder()
    calls = [lambda: ours(new_folder()), lambda: ours(kept)]
    return [Variant(alone, lambda: None), *(Variant(call, lambda call=call: check(call(), expected)) for call in calls)]


def preparing(pairs, new_folder):
    path, sample = new_folder() / "corpus.tsv", resources.files(data) / "sample" / "train.tsv"
    rows = random.Random(0).choices(sample.read_text("utf-8").splitlines()[1:], k=pairs)
    path.write_text("\n".join(rows), "utf-8")
    sentences = [sentence for row in rows for sentence in row.split("\t")[1:]]

    def alone():
        return [word.lower() for sentence in sentences for word in word_tokenize(sentence, preserve_line=True)]

    def to_first_batch(cache):
        corpus = data.prepare(path, cache=cache)
        vocabulary = data.Vocabulary.build(corpus.word_counts(labeled=True))
        next(iter(data.batches(corpus.encode(vocabulary, sorted(corpus.label_names)), 32, shuffle=True)))
        return corpus

    def check(corpus, expected):
        assert [corpus.words[place] for place in corpus.tokens] == expected

    return with_cache(alone, to_first_batch, check, new_folder)


def vectors(rows, new_folder):
    path, rng = new_folder() / "vectors.txt", np.random.default_rng(0)
    numbers = [" ".join(f"{x:.5g}" for x in row) for row in rng.normal(0, 0.4, (1999, 300))]  # reused in turn
    if shutil.disk_usage(path.parent).free < (needed := rows * (len(numbers[0]) + 100)):
        pytest.skip(f"{path.parent}: needs {needed / 1e9:.1f} GB")
    with open(path, "w") as file:
        file.writelines(f"word{place} {numbers[place % len(numbers)]}\n" for place in range(rows))
    # All of SNLI's words with all rows of GloVe 840B, or fewer in proportion. One word in twenty is not in the file.
    places = rng.choice(rows * 20 // 19, VOCABULARY * rows // 2_200_000, replace=False)
    vocabulary = data.Vocabulary([data.UNKNOWN, data.PADDING, *(f"word{place}" for place in places)])

    def alone():
        with open(path) as file:
            parsed = ((word, np.array(fields, np.float32)) for word, *fields in map(str.split, file))
            return {word: vector for word, vector in parsed if word in vocabulary}

    def check(result, expected):
        assert result.found == len(expected)
        assert result.matrix[vocabulary.encode(expected)].numpy().tobytes() == np.stack([*expected.values()]).tobytes()

    return with_cache(alone, lambda cache: data.load_vectors(path, vocabulary, cache=cache), check, new_folder)


def predicting(pairs, new_folder):
    path, rng = new_folder() / "pairs.tsv", np.random.default_rng(0)
    vocabulary = data.Vocabulary([data.UNKNOWN, data.PADDING, *(f"word{index}" for index in range(2, 20_000))])
    ids = [[rng.integers(2, 20_000, n).tolist() for n in pair] for pair in draw_lengths(pairs, rng)]
    rows = ["\t".join(" ".join(f"word{index}" for index in sentence) for sentence in pair) for pair in ids]
    path.write_text("\n".join(rows))
    model = Classifier(ESIM(128, 100, 20_000, 3).eval(), vocabulary, ["entailment", "neutral", "contradiction"])
    parts = [data.EncodedPairs(*zip(*ids[at : at + ROWS], strict=True), None) for at in range(0, pairs, ROWS)]

    def alone():  # with as many threads as predict_file has processes by default
        return torch.cat([model.logits(part) for part in parts])

    def check():
        answers = list(predict_file(model, path))
        assert ["\t".join(answer.pair[:2]) for answer in answers] == rows
        torch.testing.assert_close(torch.tensor([answer.probabilities for answer in answers]), alone().softmax(1))

    return [Variant(alone, lambda: None), Variant(lambda: sum(1 for _ in predict_file(model, path)), check)]


def raced(variants, small, full, names):
    @pytest.mark.parametrize("variant", names)
    @pytest.mark.parametrize("rows", [small, pytest.param(full, marks=pytest.mark.full)])
    def test(variant, rows, race, tmp_path_factory):
        race(variant, lambda: dict(zip(names, variants(rows, lambda: tmp_path_factory.mktemp("data")), strict=True)))

    return test


CACHED = ["esim_fast, the first time", "esim_fast, again"]
test_preparing = raced(preparing, 4 * ROWS, 550_000, ["NLTK's tokenizer alone, one process", *CACHED])
test_vectors = raced(vectors, 20_000, 2_200_000, ["every row parsed in Python", *CACHED])
test_predicting = raced(predicting, 2 * ROWS, 1_000_000, ["the bare network, one process", "esim_fast, predict_file"])
