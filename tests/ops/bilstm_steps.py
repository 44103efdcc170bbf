"""Each step of a packed BiLSTM's recurrence in fp64, computed from what the kernel itself left for the step before.

So errors do not add up over the steps, and a bound of a few roundings holds for each value.
"""

import math
from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


def rounded(x, precision):
    """The operand of a product, in fp64."""
    if precision == "tf32":  # the nearest, ties away from zero
        return ((x.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()
    if precision in ("bf16", "fp16"):
        return x.to(torch.bfloat16 if precision == "bf16" else torch.float16).double()
    return x.double()


class Rows:
    """Rows of sorted, packed sentences, in the order of each direction."""

    def __init__(self, lengths):
        lengths = torch.tensor(sorted(lengths, reverse=True))
        steps = int(lengths.max()) if len(lengths) else 0
        self.sizes = (lengths[:, None] > torch.arange(steps)).sum(0)
        self.first = self.sizes.cumsum(0) - self.sizes
        self.count = int(lengths.sum())
        time = torch.repeat_interleave(torch.arange(steps), self.sizes)
        sentence = torch.arange(self.count) - self.first[time]
        row = torch.full((steps + 2, len(lengths)), -1)  # -1: no such row
        row[time + 1, sentence] = torch.arange(self.count)
        # For each direction, the row of the step before, and of the step after.
        self.before = torch.stack([row[time, sentence], row[time + 2, sentence]])
        self.after = self.before.flip(0)

    def at(self, x, where):
        """Values of x ``[N, 2, ...]`` in other rows of each direction, zero where there are none."""
        values = torch.stack([x[:, direction][where[direction]] for direction in (0, 1)], 1)
        missing = (where < 0).t()
        return values.masked_fill(missing.view(*missing.shape, *[1] * (x.dim() - 2)), 0)


def states(rows, inputs, weights, y, c, precision):
    """From the products with the input ``[N, 2, H, 4]``: gates, cells, states and states before each step.

    weights: W_hh of both directions, ``[2, 4, H, H]``. y and c ``[N, 2, H]`` are the kernel's results.
    """
    previous = rows.at(y.double(), rows.before)
    products = torch.einsum("ndk,dghk->ndhg", rounded(previous, precision), rounded(weights, precision))
    i, f, g, o = (inputs.double() + products).unbind(3)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cells = f * rows.at(c.double(), rows.before) + i * g
    return torch.stack([i, f, g, o], 3), cells, o * cells.tanh(), previous


def gradients(rows, grad_y, gates, c, weights, grad_gates, precision):
    """Gradients of the products with the input, ``[N, 2, H, 4]``, and of cells. grad_gates: the kernel's results."""
    i, f, g, o = gates.double().unbind(3)
    later = rounded(rows.at(grad_gates, rows.after), precision)
    grad_state = grad_y.double() + torch.einsum("ndhg,dghk->ndk", later, rounded(weights, precision))
    tangent = c.double().tanh()
    grad_cell = grad_state * o * (1 - tangent**2)
    for direction in (0, 1):  # from the state computed last to the first
        steps = range(len(rows.sizes))
        for t in steps if direction else reversed(steps):
            here = torch.arange(int(rows.first[t]), int(rows.first[t] + rows.sizes[t]))
            there = rows.after[direction][here]
            here, there = here[there >= 0], there[there >= 0]
            grad_cell[here, direction] += grad_cell[there, direction] * f[there, direction]
    before = rows.at(c.double(), rows.before)
    grads = grad_cell * g * i * (1 - i), grad_cell * before * f * (1 - f)
    grads += grad_cell * i * (1 - g**2), grad_state * tangent * o * (1 - o)
    return torch.stack(grads, 3)


@dataclass
class Batch:
    """Random arguments of the operators. What lies beyond the batch is NaN, or no row."""

    rows: Rows
    inputs: torch.Tensor  # [N, 2, H, 4], products with the input
    weights: torch.Tensor  # [2, 4, H, H]
    grad_y: torch.Tensor  # [N, 2, H]
    precision: str
    spare: int
    sentences: int

    @classmethod
    def draw(cls, lengths, units, precision, spare=0, seed=0):
        generator, dtype = torch.Generator().manual_seed(seed), DTYPES[precision]
        rows = Rows(lengths)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        inputs, grad_y = normal(rows.count, 2, units, 4).to(dtype), normal(rows.count, 2, units).to(dtype)
        weights = 1.5 * normal(2, 4, units, units) / units**0.5
        return cls(rows, inputs, weights, grad_y, precision, spare, sum(length > 0 for length in lengths))

    def padded(self, x):
        """``[N, 2, ...]`` as ``[N + spare, ...]``."""
        return torch.cat([x.flatten(1), x.new_full((self.spare, math.prod(x.shape[1:])), math.nan)])

    def layer(self):
        """The arguments that both operators have."""
        units = self.weights.shape[-1]
        first_row = torch.cat([self.rows.first, self.rows.first.new_full((1 + self.spare,), self.rows.count)])
        weights = self.weights.reshape(2, 4 * units, units)
        return weights[0].clone(), weights[1].clone(), first_row, self.sentences, self.precision == "tf32"

    def run(self, operators, device="cpu"):
        """The results of both operators: gates, y, c, previous and the gates' gradients."""
        layer = [x.to(device) if isinstance(x, torch.Tensor) else x for x in self.layer()]
        gates, grad_y = (self.padded(x).to(device) for x in (self.inputs, self.grad_y))
        y, c, previous = operators["bilstm_cuda"](gates, *layer)
        grad_gates = operators["bilstm_cuda_backward"](grad_y, c, gates, *layer)
        return [result.cpu() for result in (gates, y, c, previous, grad_gates)]


def assert_every_step(batch, results, error=2.0**-20):
    """error: of sums and functions, except a tanh in bf16."""
    count, units = batch.rows.count, batch.weights.shape[-1]
    for rest in (results[1], results[3], results[4]):
        assert (rest[count:] == 0).all(), "rows after the batch are not clear"
    gates, y, c, previous, grad_gates = (
        result[:count].view(count, 2, units, *[4] * (result.shape[1] > 2 * units)) for result in results
    )
    exact = states(batch.rows, batch.inputs, batch.weights, y, c, batch.precision)
    exact_grad = gradients(batch.rows, batch.grad_y, gates, c, batch.weights, grad_gates, batch.precision)
    assert torch.equal(previous.double(), exact[3])
    # A tanh in bf16 has a relative error of 2^-11, and some gates are computed from two.
    function = 2.0**-10 if batch.precision == "bf16" else error
    rounding = 0.51 * torch.finfo(gates.dtype).eps
    for name, mine, wanted, eps in (
        ("gates", gates, exact[0], rounding),
        ("cells", c, exact[1], 0),
        ("states", y, exact[2], rounding),
        ("gradients", grad_gates, exact_grad, rounding),
    ):
        scale = function * (2 if name == "gradients" else 1)
        excess = (mine.double() - wanted).abs() - (eps * wanted.abs() + scale * (1 + wanted.abs()))
        assert (excess <= 0).all(), f"{name}: {excess.max():.1e} too far away"
