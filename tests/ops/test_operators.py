"""The operators called directly, without the checks that the functions make: nothing may be read out of bounds."""

import pytest
import torch
from torch import Tensor

import esim_fast  # noqa: F401 (the operators)
from tests.ops.layouts import packed_rows

LENGTHS = [3, 0, 5]
POOL, POOL_BACKWARD = torch.ops.esim_fast.masked_pool, torch.ops.esim_fast.masked_pool_backward
LOCAL, LOCAL_BACKWARD = torch.ops.esim_fast.local_inference, torch.ops.esim_fast.local_inference_backward


def spread(x):
    """The same values, no two of them one behind the other."""
    return torch.stack([x, torch.full_like(x, 1)], -1)[..., 0]


def pooled(layout):
    """What masked_pool_backward takes, of three sentences."""
    if layout == "padded":
        lengths, x = torch.tensor(LENGTHS), torch.randn(3, 6, 4)
        addresses = {"start": None, "step": None, "lengths": lengths, "mask": None}
    else:
        rows, count = packed_rows(LENGTHS, 4)
        x = torch.randn(count, 4)
        addresses = {"start": rows.start, "step": rows.step, "lengths": rows.lengths, "mask": None}
    v, argmax, count = POOL(x, *addresses.values())
    return {"grad_v": torch.randn_like(v), "argmax": argmax, "count": count, **addresses, "rows": x.shape[-2]}


class TestRefused:
    @pytest.mark.parametrize("layout", ["padded", "rows"])
    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("grad_v", lambda x: x[:, :, None]),
            ("grad_v", lambda x: x[:2]),
            ("grad_v", lambda x: x[:, :6]),
            ("argmax", lambda x: x[:, :, None]),
            ("argmax", lambda x: x.long()),
            ("argmax", lambda x: x[:, :3]),
            ("count", lambda x: x[:, None]),
            ("count", lambda x: x.long()),
            ("count", lambda x: x[:2]),
            ("rows", lambda n: -1),
        ],
    )
    def test_gradients_of_pooling(self, layout, name, change):
        given = pooled(layout)
        with pytest.raises(RuntimeError, match="masked_pool_backward needs grad_v"):
            POOL_BACKWARD(*{**given, name: change(given[name])}.values())

    def test_gradients_of_pooling_rows(self):
        given = pooled("rows")
        for name, value, message in (
            ("start", given["start"][:2], "one entry for each of the 2"),
            ("rows", given["rows"] - 1, "is outside x"),
            ("lengths", None, "needs lengths"),
        ):
            with pytest.raises(RuntimeError, match=message):
                POOL_BACKWARD(*{**given, name: value}.values())
        given |= {"start": given["start"][:2], "lengths": given["lengths"][:2]}
        with pytest.raises(RuntimeError, match="start has 2 entries for 3 sequences"):
            POOL_BACKWARD(*given.values())

    @pytest.mark.parametrize("name", ["start", "step", "lengths"])
    @pytest.mark.parametrize("change", [spread, Tensor.int, lambda x: x[None], Tensor.float])
    def test_addresses(self, name, change):
        given = pooled("rows")
        with pytest.raises(RuntimeError, match=f"{name} must be a contiguous one-dimensional int64 tensor"):
            POOL_BACKWARD(*{**given, name: change(given[name])}.values())

    @pytest.mark.parametrize("missing", ["start", "step"])
    def test_half_of_an_address(self, missing):
        given = pooled("rows")
        with pytest.raises(RuntimeError, match="start and step must be given together"):
            POOL_BACKWARD(*{**given, missing: None}.values())

    @pytest.mark.parametrize(
        "mask",
        [torch.ones(3, 6), torch.ones(2, 6).bool(), torch.ones(3, 5).bool(), torch.ones(3, 6, 1).bool()],
        ids=lambda mask: f"{mask.dtype}-{list(mask.shape)}",
    )
    def test_masks(self, mask):
        with pytest.raises(RuntimeError, match=r"mask must be a boolean tensor \[3, 6\]"):
            POOL(torch.randn(3, 6, 4), None, None, None, mask)

    def test_one_padded_tensor_for_both_sides(self):
        lengths = torch.tensor([0, 0, 0])
        with pytest.raises(RuntimeError, match="only a row-addressed tensor can hold both sides"):
            torch.ops.esim_fast.local_inference_packed(
                torch.randn(3, 6, 4), *[None, None, lengths, None] * 2, 3, 3, False
            )

    def test_the_last_row_is_the_last_that_can_be_addressed(self):
        x = torch.randn(5, 4)
        for start, fits in ((16, True), (17, False), (0, True), (-1, False)):
            given = x, torch.tensor([start]), torch.tensor([0]), torch.tensor([1]), None
            if fits:
                assert torch.equal(POOL(*given)[0], x[start // 4].repeat(1, 2))
            else:
                with pytest.raises(RuntimeError, match="is outside x, which has 20 elements"):
                    POOL(*given)


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
        assert torch.equal(
            POOL_BACKWARD(*{**given, name: spread(given[name])}.values()), POOL_BACKWARD(*given.values())
        )

    def test_input_and_mask(self):
        x, mask = torch.randn(3, 6, 4), torch.rand(3, 6) < 0.6
        for got, expected in zip(
            POOL(spread(x), None, None, None, spread(mask)), POOL(x, None, None, None, mask), strict=True
        ):
            assert torch.equal(got, expected)
        rows, count = packed_rows(LENGTHS, 4)
        x = torch.randn(count, 4)
        given = rows.start, rows.step, rows.lengths, None
        for got, expected in zip(POOL(spread(x), *given), POOL(x, *given), strict=True):
            assert torch.equal(got, expected)

    @pytest.mark.parametrize("spread_out", range(4))
    def test_local_inference(self, spread_out):
        """Input, masks and gradients, one of them at a time."""
        a, b = torch.randn(3, 6, 4), torch.randn(3, 5, 4)
        masks = torch.rand(3, 6) < 0.6, torch.rand(3, 5) < 0.6
        grad_m = [torch.randn(3, 6, 16), torch.randn(3, 5, 16)]

        def results(a, b, a_mask, b_mask, *grad_m):
            given = a, b, None, None, None, a_mask, None, None, None, b_mask, 6, 5, False
            return [*LOCAL(*given), *LOCAL_BACKWARD(*grad_m, *given)]

        tensors = [a, b, *masks, *grad_m]
        these = ([0, 1], [2], [3], [4, 5])[spread_out]
        changed = [spread(x) if number in these else x for number, x in enumerate(tensors)]
        for got, expected in zip(results(*changed), results(*tensors), strict=True):
            assert torch.equal(got, expected)
