"""Padding costs nothing: a ragged batch takes the floating-point operations of its single pairs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import esim_fast.ops
from benchmarks.baselines import NotebookESIM

HIDDEN, WIDTH = 20, 12
LENGTHS = [(30, 4), (3, 25), (1, 1), (9, 8), (14, 6), (2, 17)]


def raw(formula):
    """Marks a formula that takes an operator's arguments and not their shapes."""
    formula._get_raw = True
    return formula


def linear(x, weight, bias, *_, **__):
    return 2 * x.shape[0] * weight.shape[0] * weight.shape[1]


def recurrent(rows, batch_sizes, weight):
    """Two directions; the first step of a sentence has no previous state to multiply."""
    return 2 * 2 * weight.numel() * (rows - int(batch_sizes[0]))


def scores(arguments):
    """La x Lb x D multiplications and additions for each pair."""
    x, _, _, a_lengths, _, _, _, b_lengths, *_ = arguments
    return 2 * int((a_lengths * b_lengths).sum()) * x.shape[1]


# Operators that the counter does not know, counted by hand: the kernels loop over the tokens given by lengths.
FORMULAS = {
    torch.ops.mkldnn._linear_pointwise: raw(linear),
    torch.ops.esim_fast.bilstm: raw(lambda gates, _, w, __, sizes, **___: recurrent(len(gates), sizes, w)),
    torch.ops.esim_fast.bilstm_backward: raw(
        lambda grad_y, _y, _c, _g, _r, w, _w, sizes, **__: recurrent(len(grad_y), sizes, w)
    ),
    # Scores and two alignments; backward repeats them and has a product for each operand of each.
    torch.ops.esim_fast.local_inference_packed: raw(lambda *arguments, **_: 3 * scores(arguments)),
    torch.ops.esim_fast.local_inference_packed_backward: raw(lambda *arguments, **_: 9 * scores(arguments[1:])),
}


def flops(net, *arguments, train=True):
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter, torch.set_grad_enabled(train):
        logits = net(*arguments)
        if train:
            logits.sum().backward()
    return counter.get_total_flops()


def batch(lengths):
    p_lengths, h_lengths = torch.tensor(lengths).unbind(1)
    words = [torch.arange(int(n.max())) < n[:, None] for n in (p_lengths, h_lengths)]
    return *(torch.where(mask, torch.randint(2, 50, mask.shape), 1) for mask in words), p_lengths, h_lengths


def by_hand(lengths, train):
    """Multiplications and additions of ESIM on these pairs, from the paper's equations."""
    words, sentences, pairs = sum(p + h for p, h in lengths), 2 * len(lengths), len(lengths)
    H = HIDDEN
    lstms = sum(2 * 4 * H * (size * words + H * (words - sentences)) for size in (WIDTH, H))
    projection = 8 * H * H * words
    attention = 3 * sum(p * h for p, h in lengths) * 2 * H
    classifier = pairs * (8 * H * H + H * 3)
    if not train:
        return 2 * (lstms + projection + attention + classifier)
    # Each product has two operands with gradients. The recurrent weights' gradient is one product over all rows, and
    # so includes the zero states before sentences. Attention is recomputed and then has six products.
    lstms = 3 * lstms + 2 * 2 * 4 * H * H * sentences
    return 2 * (lstms + 3 * projection + (1 + 3) * attention + 3 * classifier)


@pytest.mark.parametrize("train", [False, True])
def test_a_ragged_batch_costs_only_its_words(train):
    net = esim_fast.ESIM(HIDDEN, WIDTH, 50, 3)
    p, h, p_lengths, h_lengths = batch(LENGTHS)
    together = flops(net, esim_fast.pack_pairs(p, h, p_lengths, h_lengths), train=train)
    assert together == by_hand(LENGTHS, train)
    assert together == flops(net, p, h, train=train) == flops(net, p, h, p_lengths, h_lengths, train=train)
    assert together == sum(flops(net, *batch([pair]), train=train) for pair in LENGTHS)
    padded = [(max(p for p, _ in LENGTHS), max(h for _, h in LENGTHS))] * len(LENGTHS)
    assert by_hand(padded, train) > 2 * together


def test_the_counter_counts():
    """It counts padding in the eager model, whose projection and attention run over it."""
    net = NotebookESIM(HIDDEN, WIDTH, 50, 3)
    ragged = flops(net, *batch(LENGTHS)[:2])
    assert ragged > sum(flops(net, *batch([pair])[:2]) for pair in LENGTHS)
