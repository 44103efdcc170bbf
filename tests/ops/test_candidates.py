"""Configurations that no GPU has timed yet compute the same as those in use, and are chosen where they should be."""

import pytest
import torch

from tests.ops.numerics import error_norm
from tests.ops.pairs import Pairs

pytestmark = pytest.mark.interpreter
kernels = pytest.importorskip("esim_fast.ops.triton.local_inference")
from esim_fast.ops.triton import on_chip, one_tile, runtime  # noqa: E402

DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
RAGGED = [(1, 1), (0, 0.1), (0.4, 0.7)]  # parts of the longest sentences
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def offer(monkeypatch):
    """Puts a candidate into its table."""

    def put(case, config):
        monkeypatch.setitem(kernels.ONE_TILE if config.block_k else kernels.ON_CHIP, case, config)
        torch.backends.cuda.matmul.fp32_precision = "tf32" if case[1] == "tf32" else before

    before = torch.backends.cuda.matmul.fp32_precision
    yield put
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture
def launched(monkeypatch):
    """All kernels that are started."""
    kernels, start = [], runtime.Launch.start

    def recorded(launch):
        kernels.append(launch.kernel)
        start(launch)

    monkeypatch.setattr(runtime.Launch, "start", recorded)
    return kernels


def ragged(case, width, score=1.0):
    """Pairs of which the first needs the whole tile."""
    lengths = [tuple(round(part * tile) for part, tile in zip(parts, case[2:], strict=True)) for parts in RAGGED]
    return Pairs.draw(lengths, width, score=score, dtype=DTYPES[case[1]])


def assert_right(pairs, score=1.0):
    got, expected = pairs.through_the_op("one tensor", "cpu", "triton"), pairs.expected()
    for results, values, bounds in zip(got, expected, pairs.bounds(EPS), strict=True):
        for result, value, bound in zip(results, values, bounds, strict=True):
            assert ((result.double() - value).abs() <= bound).all()
    if score == 1.0:  # rounded scores of 1e4 change the weights
        for ours, exact in zip(zip(*got, strict=True), zip(*expected, strict=True), strict=True):
            assert error_norm(ours, exact) <= 3 * torch.finfo(ours[0].dtype).eps * float(torch.cat(exact).norm())


CASES = [(case, config) for case, configs in kernels.CANDIDATES.items() for config in configs]


@pytest.mark.parametrize(
    ("multiprocessors", "width", "score"), [(1, 72, 1e4), (2, 131, 1.0)], ids=["whole, extreme", "split"]
)
@pytest.mark.parametrize(("case", "config"), CASES, ids=str)
def test_equations(case, config, multiprocessors, width, score, offer, launched, poisoned, monkeypatch):
    """With ragged and empty sentences, extreme scores, an odd width, and features that two programs share."""
    offer(case, config)
    monkeypatch.setattr(runtime, "multiprocessors", lambda _: multiprocessors)
    assert_right(ragged(case, width, score), score)
    assert getattr(one_tile if config.block_k else on_chip, case[0]) in launched


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_width_of_the_model(kernel, offer, launched, poisoned):
    case = (kernel, "half", 16, 16)
    offer(case, kernels.CANDIDATES[case][0])
    assert_right(ragged(case, 600))
    assert getattr(on_chip, kernel) in launched


def test_wider_rows_stay_off_chip(offer, launched):
    case = ("forward", "half", 16, 16)
    offer(case, kernels.CANDIDATES[case][0])
    assert_right(ragged(case, kernels.WIDEST_ON_CHIP + 1))
    assert one_tile.forward in launched
    assert on_chip.forward not in launched


def test_no_candidate_is_a_default():
    """Before a GPU has timed it."""
    assert not kernels.ON_CHIP
    assert all(config != kernels.ONE_TILE.get(case) for case, config in CASES)
