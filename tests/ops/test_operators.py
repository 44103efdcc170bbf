"""Operators called directly, without the functions' checks, must not read out of bounds."""

import pytest
import torch
from torch import Tensor

import esim_fast.ops  # noqa: F401 (the operators)
from tests.ops.layouts import packed_rows

LENGTHS = [3, 0, 5]
POOL, POOL_BACKWARD = torch.ops.esim_fast.masked_pool, torch.ops.esim_fast.masked_pool_backward
LOCAL, LOCAL_BACKWARD = torch.ops.esim_fast.local_inference, torch.ops.esim_fast.local_inference_backward


X = torch.zeros(2, 3, 4)


def index(*values):
    return torch.tensor(values)


def spread(x):
    """The same values, without two contiguous ones."""
    return torch.stack([x, torch.full_like(x, 1)], -1)[..., 0]


def pooled(layout):
    """Arguments of masked_pool_backward for three sentences."""
    rows, count = packed_rows(LENGTHS, 4)
    x = torch.randn(count, 4)
    addresses = {"start": rows.start, "step": rows.step, "lengths": rows.lengths, "mask": None}
    if layout == "padded":
        x = torch.randn(3, 6, 4)
        addresses |= {"start": None, "step": None}
    v, argmax, count = POOL(x, *addresses.values())
    return {"grad_v": torch.randn_like(v), "argmax": argmax, "count": count, **addresses, "rows": x.shape[-2]}


class TestRefused:
    @pytest.mark.parametrize("layout", ["padded", "rows"])
    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("grad_v", [lambda x: x[:, :, None], lambda x: x[:2], lambda x: x[:, :6]]),
            ("argmax", [lambda x: x[:, :, None], lambda x: x.long(), lambda x: x[:, :3]]),
            ("count", [lambda x: x[:, None], lambda x: x.long(), lambda x: x[:2]]),
            ("rows", [lambda n: -1]),
        ],
    )
    def test_gradients_of_pooling(self, layout, name, changes):
        given = pooled(layout)
        for change in changes:
            with pytest.raises(RuntimeError, match="masked_pool_backward needs grad_v"):
                POOL_BACKWARD(*{**given, name: change(given[name])}.values())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"start": index(0, 0)}, "one entry for each of the 2"),
            ({"start": index(0, 0), "lengths": index(0, 0)}, "start must have 3 entries, got 2"),
            ({"rows": 7}, "is outside x, which has 28 elements"),
            ({"lengths": None}, "needs lengths"),
            ({"start": None}, "start and step must be given together"),
            ({"step": None}, "start and step must be given together"),
        ],
    )
    def test_gradients_of_pooling_rows(self, changes, message):
        given = pooled("rows")
        with pytest.raises(RuntimeError, match=message):
            POOL_BACKWARD(*{**given, **changes}.values())

    @pytest.mark.parametrize("name", ["start", "step", "lengths"])
    def test_addresses(self, name):
        given = pooled("rows")
        for change in (spread, Tensor.int, lambda x: x[None], Tensor.float):
            with pytest.raises(RuntimeError, match=f"{name} must be a contiguous one-dimensional int64 tensor"):
                POOL_BACKWARD(*{**given, name: change(given[name])}.values())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((X, None, None, index(1, 4), None), "expected 0 to 3"),
            ((X, None, None, index(1), None), "one entry for each"),
            ((X, None, None, torch.tensor([1.0, 2.0]), None), "int64"),
            ((X, None, None, None, torch.ones(2, 2).bool()), r"mask must be a boolean tensor \[2, 3\]"),
            ((X, None, None, None, torch.ones(1, 3).bool()), r"mask must be a boolean tensor \[2, 3\]"),
            ((X, None, None, None, torch.ones(2, 3, 1).bool()), r"mask must be a boolean tensor \[2, 3\]"),
            ((X, None, None, None, torch.ones(2, 3)), r"mask must be a boolean tensor \[2, 3\]"),
            ((X[0], None, None, None, None), r"must be \[B, L, D\]"),
            ((X[0], index(0, 0), None, None, None), "must be given together"),
            ((X[0], index(0), index(0), None, None), "needs lengths"),
            ((X[0], index(2**63 - 1), index(1), index(1), None), "is outside x"),
            ((X[0], index(2**63 - 1), index(0), index(1), None), "is outside x"),
            # The last row is the last addressable one.
            ((X[0], index(9), index(0), index(1), None), "is outside x, which has 12 elements"),
            ((X[0], index(-1), index(0), index(1), None), "is outside x, which has 12 elements"),
            ((X[:, :1, :0].expand(2, 2**31, 0), None, None, None, None), "longer than supported"),
            ((X.long(), None, None, None, None), "float16, bfloat16, float32 or float64"),
        ],
    )
    def test_pooling(self, arguments, message):
        with pytest.raises(RuntimeError, match=message):
            POOL(*arguments)


def test_the_first_and_the_last_row_can_be_addressed():
    x = torch.randn(3, 4)
    for start in (0, 8):
        assert torch.equal(POOL(x, index(start), index(0), index(1), None)[0], x[start // 4].repeat(1, 2))


def test_where_the_maxima_are():
    x = torch.tensor([[1.0, 5.0], [7.0, 5.0], [7.0, 2.0]]).expand(3, 3, 2)
    _, argmax, count = POOL(x, None, None, torch.tensor([3, 0, 1]), None)
    assert argmax.tolist() == [[1, 0], [-1, -1], [0, 0]]
    assert count.tolist() == [3, 0, 1]
    _, argmax, count = POOL(x[..., :0], None, None, torch.tensor([3, 0, 1]), None)
    assert argmax.shape == (3, 0)
    assert count.tolist() == [0, 0, 0]


class TestStrides:
    @pytest.mark.parametrize("layout", ["padded", "rows"])
    @pytest.mark.parametrize("name", ["grad_v", "argmax", "count"])
    def test_gradients_of_pooling(self, layout, name):
        given = pooled(layout)
        changed = {**given, name: spread(given[name])}
        assert torch.equal(POOL_BACKWARD(*changed.values()), POOL_BACKWARD(*given.values()))

    def test_input_and_mask(self):
        x, mask = torch.randn(3, 6, 4), torch.rand(3, 6) < 0.6
        rows, count = packed_rows(LENGTHS, 4)
        of_rows, flat = (rows.start, rows.step, rows.lengths, None), torch.randn(count, 4)
        for changed, given in (
            ((spread(x), None, None, None, spread(mask)), (x, None, None, None, mask)),
            ((spread(flat), *of_rows), (flat, *of_rows)),
        ):
            assert all(torch.equal(*both) for both in zip(POOL(*changed), POOL(*given), strict=True))

    @pytest.mark.parametrize("spread_out", range(4))
    def test_local_inference(self, spread_out):
        """Strides of input, masks and gradients, one at a time."""
        a, b = torch.randn(3, 6, 4), torch.randn(3, 5, 4)
        masks = torch.rand(3, 6) < 0.6, torch.rand(3, 5) < 0.6
        grad_m = [torch.randn(3, 6, 16), torch.randn(3, 5, 16)]

        def results(a, b, a_mask, b_mask, *grad_m):
            given = a, b, None, None, None, a_mask, None, None, None, b_mask, 6, 5, False
            return [*LOCAL(*given), *LOCAL_BACKWARD(*grad_m, *given)]

        tensors = [a, b, *masks, *grad_m]
        these = ([0, 1], [2], [3], [4, 5])[spread_out]
        changed = [spread(x) if number in these else x for number, x in enumerate(tensors)]
        assert all(torch.equal(*both) for both in zip(results(*changed), results(*tensors), strict=True))
