"""One BiLSTM layer over sentences of bucketed length: padded and packed nn.LSTM against ops.bilstm.

The padded LSTM runs over padding, so it is checked only on a batch without any. All variants are checked in fp32,
because under bf16 autocast PyTorch runs cuDNN's LSTMs in fp16 and esim_fast does not.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.baselines import EAGER, packed_lstm
from benchmarks.corpus import make_batches
from benchmarks.measure import DEVICE, PRECISIONS, Variant, precision_set, saved_bytes
from benchmarks.models import HIDDEN, TOLERANCE, WIDTH, assert_equal
from esim_fast.ops import bilstm

SENTENCES = [64, pytest.param(1024, marks=pytest.mark.full)]  # in a layer's call for 32 and for 512 pairs
OURS, CUDNN = "esim_fast, packed", "esim_fast, packed, cudnn"
BATCHES = 4


class Embedded:
    """A batch's embedded words, padded and packed, with the gradients of their states."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths, mask = lengths, torch.arange(int(lengths.max())) < lengths[:, None]

        def draw(width: int) -> tuple[Tensor, Tensor]:
            padded = torch.randn(*mask.shape, width) * mask[:, :, None]
            packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
            self.batch_sizes, self.rank = packed.batch_sizes, packed.unsorted_indices
            return padded.to(DEVICE), packed.data.to(DEVICE)

        self.words, self.grads = draw(WIDTH), draw(2 * HIDDEN)
        first_row = self.batch_sizes.cumsum(0) - self.batch_sizes
        # The words' indices in each form, sentence by sentence.
        self.places = mask.to(DEVICE), (self.rank[:, None] + first_row)[mask].to(DEVICE)
        self.first_row = first_row.to(DEVICE)

    def results(self, lstm: nn.LSTM, states, form: int) -> dict[str, Tensor]:
        """States and gradients, words in order of sentences; ``form`` is 0 for padded words and 1 for packed ones."""
        x = self.words[form].to(lstm.weight_ih_l0.dtype, copy=True).requires_grad_()
        y, (names, parameters) = states(lstm, self, x), zip(*lstm.named_parameters(), strict=True)
        of_words, *others = torch.autograd.grad(y, (x, *parameters), self.grads[form].to(y.dtype))
        place = self.places[form]
        return {"states": y.detach()[place], "words": of_words[place], **dict(zip(names, others, strict=True))}


# A function from the LSTM, a batch and its words in some form to the states in that form, and the form's index.
STATES = {
    EAGER: (lambda lstm, x, words: lstm(words)[0], 0),
    "nn.LSTM, packed in each call": (lambda lstm, x, words: packed_lstm(lstm, words, x.lengths), 0),
    OURS: (lambda lstm, x, words: bilstm(lstm, words, x.batch_sizes, first_row=x.first_row), 1),
    CUDNN: (lambda lstm, x, words: bilstm(lstm, words, x.batch_sizes, backend="cudnn"), 1),
}


def variants(sentences, precision, which):
    torch.manual_seed(0)
    batches = [Embedded(x.p_lengths) for x in make_batches(sentences, BATCHES)]
    last = batches[-1]
    filled = Embedded(torch.full_like(last.lengths, int(last.lengths.max())))
    exact_lstm = nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True).to(DEVICE, torch.float64)
    exact = {
        x: x.results(exact_lstm, lambda lstm, x, words: packed_lstm(lstm, words, x.lengths), 0) for x in (filled, last)
    }
    backward = which == "forward + backward"

    def variant(name):
        states, form = STATES[name]
        lstm = nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True).to(DEVICE)
        lstm.load_state_dict(exact_lstm.state_dict())

        @precision_set("fp32")
        def check():
            for x in (filled,) if name == EAGER else (filled, last):
                assert_equal(x.results(lstm, states, form), exact[x], TOLERANCE["fp32"])
            lstm.train(backward)

        def forward(x):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
                return states(lstm, x, x.words[form].requires_grad_(backward))

        @precision_set(precision)
        def call():
            with nullcontext() if backward else torch.no_grad():
                for x in batches:
                    y = forward(x)
                    if backward:
                        torch.autograd.grad(y, (x.words[form], *lstm.parameters()), x.grads[form].to(y.dtype))

        products = 2 * 2 * 4 * HIDDEN * (WIDTH + HIDDEN) * sum(len(x.words[1]) for x in batches)
        saves = (lambda: saved_bytes(lambda: forward(last), lstm.parameters())) if backward else None
        return Variant(call, check, multiplies=((1 + 2 * backward) * products, precision), saves=saves)

    no_gpu = {} if DEVICE.type == "cuda" else {CUDNN: "cuDNN needs an NVIDIA GPU"}
    return {name: variant(name) for name in STATES} | no_gpu


@pytest.mark.parametrize("variant", STATES)
@pytest.mark.parametrize("which", ["forward", "forward + backward"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sentences", SENTENCES)
def test_bilstm(variant, which, precision, sentences, race):
    race(variant, lambda: variants(sentences, precision, which))
