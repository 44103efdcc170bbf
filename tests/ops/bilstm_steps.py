"""Each step of a packed BiLSTM's recurrence in fp64, computed from what the kernel itself left for the step before.

So errors do not add up over the steps, and a bound of a few roundings holds for each value.
"""

import torch


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
