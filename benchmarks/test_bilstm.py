"""One BiLSTM layer over sentences of bucketed length: padded and packed nn.LSTM against ops.bilstm.

Each begins with embedded words in its own form. The padded one runs over padding, so its states differ at the end of a
sentence: it is checked on a batch whose sentences are all as long as the longest. Under bf16 autocast PyTorch runs
cuDNN's LSTMs in fp16; esim_fast's, whose gradients must not underflow, multiplies in TF32.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.baselines import EAGER, packed_lstm
from benchmarks.conftest import Variant
from benchmarks.corpus import make_batches
from benchmarks.measure import DEVICE, PRECISIONS, saved_bytes
from benchmarks.models import HIDDEN, TOLERANCE, WIDTH, assert_equal, precision_set
from esim_fast.ops import bilstm

SENTENCES = [64, pytest.param(1024, marks=pytest.mark.full)]  # a layer's call for 32 pairs, and for 512
PASSES = ["forward", "forward + backward"]
PACKED, OURS, CUDNN = "nn.LSTM, packed in each call", "esim_fast, packed", "esim_fast, packed, cudnn"
VARIANTS = [EAGER, PACKED, OURS, CUDNN]
BATCHES = 4


class Embedded:
    """A batch's embedded words, padded and packed, with the gradients of their states."""

    def __init__(self, lengths: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths, self.mask = lengths, torch.arange(int(lengths.max())) < lengths[:, None]

        def draw(width: int) -> tuple[Tensor, Tensor]:
            padded = torch.randn(*self.mask.shape, width, generator=generator) * self.mask[:, :, None]
            packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
            self.batch_sizes, self.rank = packed.batch_sizes, packed.unsorted_indices
            return padded.to(DEVICE), packed.data.to(DEVICE)

        self.padded, self.packed = (x.requires_grad_() for x in draw(WIDTH))
        self.padded_grad, self.packed_grad = draw(2 * HIDDEN)
        self.first_row = self.batch_sizes.cumsum(0) - self.batch_sizes
        self.rows = (self.rank[:, None] + self.first_row)[self.mask].to(DEVICE)  # packed, sentence by sentence
        self.first_row, self.mask = self.first_row.to(DEVICE), self.mask.to(DEVICE)

    def words(self, x: Tensor) -> Tensor:
        """What belongs to words, one sentence behind the other."""
        return x.detach()[self.mask] if x.dim() == 3 else x.detach()[self.rows]


def variants(sentences, precision, which):
    batches = [Embedded(x.p_lengths, seed) for seed, x in enumerate(make_batches("SNLI", sentences, BATCHES))]
    filled = Embedded(torch.full_like(batches[-1].lengths, int(batches[-1].lengths.max())), 0)
    torch.manual_seed(0)
    exact_lstm = nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True).to(DEVICE, torch.float64)
    backward = which == "forward + backward"

    def results(lstm, states, x, dtype=torch.float32):
        start, grad = (x.packed, x.packed_grad) if states in (packed, cudnn) else (x.padded, x.padded_grad)
        start = start.detach().to(dtype).requires_grad_()
        y = states(lstm, x, start)
        grads = torch.autograd.grad(y, (start, *lstm.parameters()), grad.to(y.dtype))
        names = [name for name, _ in lstm.named_parameters()]
        return {"states": x.words(y), "words": x.words(grads[0]), **dict(zip(names, grads[1:], strict=True))}

    def padded(lstm, x, start):
        return lstm(start)[0]

    def packing(lstm, x, start):
        return packed_lstm(lstm, start, x.lengths)

    def packed(lstm, x, start):
        return bilstm(lstm, start, x.batch_sizes, first_row=x.first_row)

    def cudnn(lstm, x, start):
        return bilstm(lstm, start, x.batch_sizes, backend="cudnn")

    exact = {x: results(exact_lstm, packing, x, torch.float64) for x in (filled, batches[-1])}

    def variant(states):
        lstm = nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True).to(DEVICE)
        lstm.load_state_dict(exact_lstm.state_dict())

        @precision_set("fp32")
        def check():
            for x in (filled,) if states is padded else (filled, batches[-1]):
                assert_equal(results(lstm, states, x), exact[x], TOLERANCE["fp32"])

        @precision_set(precision)
        def call():
            with nullcontext() if backward else torch.no_grad():
                for x in batches:
                    y = forward(x)
                    if backward:
                        start, grad = (x.padded, x.padded_grad) if y.dim() == 3 else (x.packed, x.packed_grad)
                        torch.autograd.grad(y, (start, *lstm.parameters()), grad.to(y.dtype))

        def forward(x):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
                return states(lstm, x, x.packed if states in (packed, cudnn) else x.padded)

        saves = (lambda: saved_bytes(lambda: forward(batches[-1]), lstm.parameters())) if backward else None
        products = 2 * 2 * 4 * HIDDEN * (WIDTH + HIDDEN) * sum(len(x.packed) for x in batches)
        return Variant(call, check, multiplies=((1 + 2 * backward) * products, precision), saves=saves)

    on_gpu = variant(cudnn) if DEVICE.type == "cuda" else "cuDNN needs an NVIDIA GPU"
    return {EAGER: variant(padded), PACKED: variant(packing), OURS: variant(packed), CUDNN: on_gpu}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sentences", SENTENCES)
def test_bilstm(variant, which, precision, sentences, race):
    race(variant, lambda: variants(sentences, precision, which))
