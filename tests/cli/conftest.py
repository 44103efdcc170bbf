"""A corpus and a model trained on it, for the tests of all commands."""

import pytest

from tests.cli.commands import SMALL, TRAIN, succeeds, write_tsv


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_tsv(tmp_path_factory.mktemp("corpus") / "pairs.tsv", TRAIN)


@pytest.fixture(scope="session")
def model(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    succeeds("train", "--train", corpus, "--dev", corpus, "--output", output, *SMALL)
    return output
