"""Operators called without the Python checks, as in compiled graphs, never read or write outside their tensors.

tools/sanitize.py runs this file with sanitizers, which detect a single byte out of bounds.
"""

import random

import pytest
import torch

from esim_fast.ops import int8  # importing the ops defines the operators

OPERATORS = torch.ops.esim_fast
HUGE = 2**62


def index(*values):
    return torch.tensor(values, dtype=torch.int64)


def bilstm_int8_call(batch_sizes, hidden):
    """Arguments for an LSTM of at most ``int8.LANES`` units."""
    rows, width = int(batch_sizes.sum()), (2, 1, 4, int8.LANES)
    random = torch.Generator().manual_seed(0)
    gates, bias = (torch.randn(size, generator=random) for size in ((rows, *width), width))
    weight = torch.randint(-127, 128, (2, 1, (hidden + 3) // 4, 4, int8.LANES, 4), generator=random, dtype=torch.int8)
    offset = 128 * weight.sum((2, 5), dtype=torch.int32)
    return [gates, torch.ones(rows), bias, weight, torch.full(width, 1e-3), offset, hidden, batch_sizes]


def int8_products_call(rows, width, outputs):
    random = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, width), generator=random, dtype=torch.int8)
    blocks, offset = int8._in_terms(weight)
    return [torch.randn(rows, width, generator=random), blocks, torch.rand(outputs, generator=random), offset]


def valid_calls():
    """Small valid arguments of each operator, with every optional tensor."""
    torch.manual_seed(0)
    rows, starts, steps, lengths = torch.randn(7, 4), index(0, 12), index(0, 4, 8), index(3, 2)
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]]).bool()
    gates, weights = [torch.randn(5, 12) for _ in range(2)], [torch.randn(12, 3) for _ in range(2)]
    padded, grad_padded = [torch.randn(2, 3, 4) for _ in range(2)], [torch.randn(2, 3, 16) for _ in range(2)]
    argmax, count = torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    of_padded = [*padded, *[None, None, lengths, mask] * 2, 3, 3, False]
    of_rows = [rows, rows.clone(), *[starts, steps, lengths, mask] * 2, 3, 3, False]
    of_packed = [rows, *[starts, steps, lengths, mask] * 2, 3, 3, False]
    calls = {
        "masked_pool": [padded[0], None, None, lengths, mask],
        "masked_pool of rows": [rows, starts, steps, lengths, mask],
        "masked_pool_backward": [torch.randn(2, 8), argmax, count, None, None, lengths, mask, 3],
        "masked_pool_backward of rows": [torch.randn(2, 8), argmax, count, starts, steps, lengths, mask, 7],
        "local_inference": of_padded,
        "local_inference of rows": of_rows,
        "local_inference_packed": of_packed,
        "local_inference_backward": [*grad_padded, *of_padded],
        "local_inference_backward of rows": [torch.randn(7, 16), torch.randn(7, 16), *of_rows],
        "local_inference_packed_backward": [torch.randn(7, 16), *of_packed],
        "bilstm": [*gates, *weights, index(3, 2)],
        "bilstm_pack": weights,
        "bilstm_states": [torch.randn(5, 24), torch.randn(2, 1, 3, 64), index(3, 2)],
        "bilstm_backward": [*(torch.randn(5, 6) for _ in range(3)), *gates, *weights, index(3, 2)],
        "embedding_backward": [torch.randn(6, 4), torch.randn(3, 4), index(1, 5, 1), 5],
        "quantize_rows": [torch.randn(3, 5)],
    }
    calls["local_inference_packed without difference"] = [*of_packed, False]
    calls["local_inference_packed_backward without difference"] = [torch.randn(7, 12), *of_packed, False]
    if int8.LANES:
        calls["bilstm_int8"] = bilstm_int8_call(index(3, 2), 3)
        calls["int8_products"] = int8_products_call(3, 5, 7)
    if hasattr(OPERATORS, "local_inference_triton") and not torch.cuda.is_available():
        for name in [name for name in calls if name.startswith("local_inference") and "without" not in name]:
            operator = "local_inference_packed" if name.startswith("local_inference_packed") else "local_inference"
            calls[name.replace(operator, f"{operator}_triton")] = calls[name]
        of_gates = [torch.randn(5, 24), torch.randn(2, 12, 4), index(0, 3, 5)]
        of_states = [torch.randn(5, 6) for _ in range(3)]
        calls["bilstm_triton"] = [*of_gates, 3, "tf32x3"]
        of_direction = [torch.randn(12, 4), weights[0], torch.randn(12), torch.randn(12)]
        packed = [torch.empty(24, 4), torch.empty(24), torch.empty(2, 12, 4)]
        calls["bilstm_triton_weights"] = [*of_direction * 2, *packed]
        calls["bilstm_triton_backward"] = [*of_states, *of_gates, 3, "tf32x3"]
    return calls


CALLS = valid_calls()


def call(name, arguments):
    return getattr(OPERATORS, name.split()[0])(*arguments)


def mutated(value, rng):
    """Another argument of the same type, mostly invalid: another shape, dtype or layout, other values, or None."""
    if isinstance(value, bool):
        return not value
    if value is None or isinstance(value, int):
        return rng.choice([None, -1, 0, 1, 2, 8, 2**31, -(2**31) - 1, HUGE, -HUGE, 2**63 - 1, -(2**63)])
    if isinstance(value, str):
        return rng.choice(["", "ieee", "tf32", "bf16", value.upper()])
    assert isinstance(value, torch.Tensor)
    shapes = [
        lambda: value[..., :-1],
        lambda: value[:-1],
        lambda: value[:0],
        lambda: value[..., :0],
        lambda: torch.cat([value, value]),
        lambda: torch.cat([value, value], -1),
        lambda: value[None],
        lambda: value[0],
        lambda: value.transpose(0, -1),
        lambda: value[..., :1].expand(value.shape),
        lambda: value[:1].expand(value.shape),
        lambda: value.new_empty_strided(value.shape, [2 * stride + 1 for stride in value.stride()]).fill_(1),
        lambda: value.to(rng.choice([torch.float16, torch.float64, torch.int32, torch.int64, torch.bool])),
        lambda: value[..., :0].expand(*value.shape[:-1], 0),
        lambda: value.new_empty(0).expand(HUGE, 0) if value.dim() == 2 else value.new_empty(0),
        lambda: None,
    ]
    if value.dtype in (torch.int64, torch.int32):
        huge = [HUGE, -HUGE, 2**63 - 1, -(2**63)] if value.dtype == torch.int64 else []
        numbers = [-1, 0, 1, 2, 3, 5, 6, 7, 25, 2**31 - 1, *huge]
        changed = value.clone()
        changed.view(-1)[rng.randrange(value.numel())] = rng.choice(numbers)
        if rng.random() < 0.7:
            return changed
    return rng.choice(shapes)()


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_of_every_kind(name):
    rng = random.Random(name)
    cases = 40 if "triton" in name else 400
    call(name, CALLS[name])  # the unchanged arguments are valid
    refused = 0
    for _ in range(cases):
        arguments = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in CALLS[name]]
        for number in rng.sample(range(len(arguments)), min(len(arguments), rng.choice([1, 1, 2]))):
            arguments[number] = mutated(arguments[number], rng)
        try:
            call(name, arguments)
        except (RuntimeError, ValueError, TypeError):  # from the operator or its schema
            refused += 1
    assert cases / 4 < refused < cases + (name == "bilstm_pack")  # it accepts nothing else


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        # The count of these rows overflows 64 bits, to exactly the 5 existing ones.
        ("bilstm", {4: index(HUGE, HUGE, HUGE, HUGE, 5)}, "overflows the number of rows"),
        ("bilstm_backward", {7: index(HUGE, HUGE, HUGE, HUGE, 5)}, "overflows the number of rows"),
        ("bilstm", {4: index(3, 3)}, "of the right shape"),
        ("bilstm", {4: index(2, 3)}, "non-increasing"),
        ("bilstm", {4: index(5, 0)}, "positive"),
        ("bilstm", {4: index(-1, 6)}, "positive"),
        ("bilstm", {4: index()}, "T > 0"),
        ("bilstm", {2: torch.empty(0, HUGE), 3: torch.empty(0, HUGE)}, r"must be \[4H, H\]"),
        ("bilstm", {place: torch.empty(0, 0) for place in (2, 3)}, r"must be \[4H, H\]"),
        ("bilstm_states", {0: torch.empty(5, 0), 1: torch.empty(2, 0, 0, 64)}, "must come from bilstm_pack"),
        ("bilstm_states", {1: torch.empty(2, 0, 1, 64).expand(2, 0, HUGE, 64)}, "of the right shape"),
        ("bilstm_states", {2: index(HUGE, HUGE, HUGE, HUGE, 5)}, "overflows the number of rows"),
        ("bilstm_int8", {6: 2**20 + 1}, "supports 1 to 65536 hidden units"),
        ("bilstm_int8", {6: 0}, "supports 1 to 65536 hidden units"),
        ("int8_products", {0: torch.empty(0, 2**20)}, "rows of up to 65536 elements, got 1048576"),
        ("int8_products", {0: torch.empty(3, 9)}, "weight must be"),
        ("int8_products", {2: torch.empty(700)}, "weight must be"),
        ("bilstm_int8", {7: index(HUGE, HUGE, HUGE, HUGE, 5)}, "overflows the number of rows"),
        ("masked_pool_backward", {1: torch.zeros(2, 1, dtype=torch.int32).expand(2, HUGE // 2)}, "needs grad_v"),
        ("masked_pool", {0: torch.empty(0, 1, HUGE), 3: None, 4: None}, "wider than supported"),
        ("local_inference", {0: torch.empty(0, 1, HUGE), **dict.fromkeys((4, 5, 8, 9))}, "wider than supported"),
        ("embedding_backward", {2: index(1, 6, 1)}, r"tokens\[1\] = 6, expected 0 to 5"),
        ("embedding_backward", {2: index(1, -1, 1)}, r"tokens\[1\] = -1, expected 0 to 5"),
        ("embedding_backward", {2: index(1, 1)}, "esim_fast: "),
    ],
)
def test_wrong_sizes(name, changes, message):
    if name not in CALLS:
        pytest.skip("this processor has no VNNI")
    arguments = [changes.get(number, argument) for number, argument in enumerate(CALLS[name])]
    with pytest.raises(RuntimeError, match=message):
        call(name, arguments)


def test_tables_without_elements():
    for shape in ((6, 0), (0, 4)):
        OPERATORS.embedding_backward(torch.empty(shape), torch.empty(0, shape[1]), index(), None)
    OPERATORS.embedding_backward(torch.empty(6, 0), torch.empty(2, 0), index(0, 5), None)


def test_masks_that_are_views_of_other_integers():
    """Bytes other than 0 and 1 are true, as in torch; in C++ such a bool would be undefined behavior."""
    mask = torch.tensor([[2, 0, 255]], dtype=torch.uint8).view(torch.bool)
    x, clean = torch.randn(1, 3, 4), torch.tensor([[True, False, True]])
    for run in (
        lambda mask: OPERATORS.masked_pool(x, None, None, None, mask),
        lambda mask: OPERATORS.local_inference(x, x, *[None, None, None, mask] * 2, 3, 3, False),
    ):
        assert all(torch.equal(ours, wanted) for ours, wanted in zip(run(mask), run(clean), strict=True))
