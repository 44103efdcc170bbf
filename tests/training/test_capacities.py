"""The plan of captured steps: few capacities that hold nearly every step and add few rows."""

from itertools import combinations

import numpy as np
import pytest

from benchmarks import capacities as benchmark
from benchmarks.corpus import draw_lengths, draw_pairs
from esim_fast.data import EncodedPairs, batches
from esim_fast.training.capacities import Size, capacity_of, plan_capacities, row_capacities, step_sizes


def added(rows, capacities):
    """Rows that all steps are padded with."""
    return int((capacities[np.searchsorted(capacities, rows)] - rows).sum())


def snli_sizes(pairs=32, steps=400, epoch=1):
    corpus = draw_pairs(pairs * steps - 3, np.random.default_rng(epoch))
    return step_sizes(batches(corpus, pairs, shuffle=True, epoch=epoch))


class TestRowCapacities:
    @pytest.mark.parametrize("most", [1, 2, 3])
    def test_no_choice_adds_fewer_rows(self, most):
        random = np.random.default_rng(most)
        for _ in range(20):
            rows = random.integers(1, 200, random.integers(1, 12))
            found = row_capacities(rows, most)
            possible = np.unique(-(-rows // 16) * 16)
            choices = combinations(possible[:-1], min(most, len(possible)) - 1)
            assert added(rows, found) == min(added(rows, np.array([*choice, possible[-1]])) for choice in choices)
            assert len(found) <= most
            assert (np.diff(found) > 0).all()
            assert (found % 16 == 0).all()

    def test_a_capacity_for_each_size_if_there_are_few(self):
        assert row_capacities(np.array([40, 33, 1, 160, 48])).tolist() == [16, 48, 160]

    def test_a_corpus_of_very_different_batches(self):
        rows = np.arange(1, 200_000, 7)
        found = row_capacities(rows)
        assert len(found) == 12
        assert added(rows, found) < 0.1 * rows.sum()


class TestPlan:
    def test_it_holds_every_step_without_long_sentences(self):
        sizes = snli_sizes()
        capacities = plan_capacities(sizes)
        assert len(capacities) <= 24
        assert len({capacity.rows for capacity in capacities}) <= 12
        held = [(size, capacity_of(size, capacities)) for size in sizes]
        assert all(capacity is not None and capacity.holds(size) for size, capacity in held if max(size[2:]) <= 64)
        assert all(capacity is None for size, capacity in held if max(size[2:]) > 64)
        assert any(max(size[2:]) > 64 for size in sizes)
        fitting = [(size.rows, capacity.rows) for size, capacity in held if capacity is not None]
        rows, padded = np.array(fitting).sum(0)
        assert padded < 1.08 * rows

    def test_it_depends_on_the_sizes_alone(self):
        sizes = snli_sizes()
        mixed = [sizes[index] for index in np.random.default_rng(0).permutation(len(sizes))]
        assert (
            plan_capacities(sizes)
            == plan_capacities(sizes)
            == plan_capacities(mixed)
            != plan_capacities(snli_sizes(epoch=2))
        )

    def test_longest_sentences_are_those_of_kernels(self):
        assert plan_capacities([Size(3, 30, 5, 0)]) == [Size(3, 32, 16, 16)]
        assert plan_capacities([Size(3, 90, 17, 16)]) == [Size(3, 96, 32, 16)]
        assert plan_capacities([Size(3, 200, 33, 64)]) == [Size(3, 208, 64, 64)]

    def test_small_batches_get_pairs_without_words(self):
        assert plan_capacities([Size(8, 100, 9, 9), Size(3, 40, 9, 9)]) == [Size(8, 48, 16, 16), Size(8, 112, 16, 16)]

    def test_rare_sizes_share_a_capacity(self):
        """80 sizes are possible; those that many steps use keep their own."""
        sides = [(16, 16), (32, 16), (16, 32), (32, 32), (64, 16), (16, 64), (64, 32), (64, 64)]
        possible = [Size(32, 160 * (1 + index), *longest) for index in range(10) for longest in sides]
        frequent = possible[::8]
        capacities = plan_capacities([*possible, *frequent * 50])
        assert len(capacities) == 24
        assert {*frequent} <= {*capacities}
        assert Size(32, 1600, 64, 64) in capacities
        assert capacity_of(Size(20, 100, 10, 10), capacities) == frequent[0]

    def test_nothing_to_plan(self):
        assert (
            plan_capacities([]) == [] == plan_capacities([Size(4, 0, 0, 0)]) == plan_capacities([Size(4, 100, 65, 3)])
        )

    def test_new_lengths(self):
        capacities = plan_capacities(snli_sizes())
        assert capacity_of(Size(33, 700, 20, 10), capacities) is None
        assert capacity_of(Size(32, 10**6, 20, 10), capacities) is None
        assert capacity_of(Size(32, 700, 20, 65), capacities) is None
        assert capacity_of(Size(1, 1, 1, 0), capacities) == capacities[0]


class TestStepSizes:
    @pytest.mark.parametrize("parts", [1, 3])
    def test_they_are_those_of_the_batches(self, parts):
        lengths = draw_lengths(100, np.random.default_rng(0))
        lengths[3] = 0
        ends = lengths.ravel().cumsum()
        pairs = EncodedPairs.of_tokens(np.zeros(ends[-1], dtype=np.int64), None, ends.reshape(-1, 2) - lengths, lengths)
        loader = batches(pairs, 8, shuffle=True, parts=parts)
        made = [Size(len(batch), len(batch.pairs.tokens), *batch.pairs.longest) for batch in loader]
        assert step_sizes(loader, parts) == [Size.largest(made[step::1][:parts]) for step in range(0, len(made), parts)]

    def test_a_batch_without_pairs(self):
        loader = batches(EncodedPairs([[2]], [[3, 4]], [0]), 1, shuffle=False, parts=2)
        assert step_sizes(loader) == [Size(1, 3, 1, 2), Size(0, 0, 0, 0)]
        assert step_sizes(loader, 2) == [Size(1, 3, 1, 2)]


def test_the_table(monkeypatch):
    monkeypatch.setattr(benchmark, "PAIRS", 4000)
    _, size, steps, rows, graphs, padded, replayed, uncaptured, _ = benchmark.line(
        benchmark.resampled(draw_lengths(500, np.random.default_rng(0))), 32
    ).split("|")
    assert (int(size), int(steps)) == (32, 125)
    assert int(rows) <= 12
    assert int(graphs) <= 24
    assert 0 < float(padded.strip(" %")) < 10
    assert 50 < float(replayed.strip(" %")) < 100
    assert float(uncaptured.strip(" %")) < 20
