"""Times of the CUDA kernel of the BiLSTM, of a time step and of a layer against cuDNN and Triton.

    python -m benchmarks.bilstm_steps [--json FILE] [--dry-run]

A time step's time is the slope over sentences of 8, 16 and 32 words. The numbers of sentences are those for which the
kernel takes 8, 16 and 64 of them at once on a GPU with room for 16 clusters of eight blocks. --dry-run tries everything
at a small size without a GPU, with PyTorch's LSTM in the kernel's place.
"""

import time
from functools import partial
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measure import DEVICE, FULL_SIZE, gpu_options, machine, precision_set
from esim_fast.cli.options import Parser
from esim_fast.files import write_json
from esim_fast.ops import bilstm, bilstm_backends

BACKEND = "cuda" if DEVICE.type == "cuda" else "reference"
UNITS, WORDS = (300, [8, 16, 32]) if FULL_SIZE else (7, [2, 3, 4])
SENTENCES = {8: 64, 16: 128, 64: 512} if FULL_SIZE else {8: 3}  # of a launch, by those that a cluster takes
PRECISIONS = ("bf16", "fp16", "tf32")


def main() -> None:
    parser = Parser(prog="python -m benchmarks.bilstm_steps", description=__doc__.splitlines()[0])
    options = gpu_options(parser)
    figures = {"microseconds_per_step": steps(), "layers": layers()}
    if options.json:
        write_json(options.json, {**machine(), **figures})


class Layer:
    """An LSTM and sentences, with the gradient of their states."""

    def __init__(self, lengths: list[int], units: int = UNITS, precision: str = "bf16") -> None:
        torch.manual_seed(0)
        sizes = (torch.tensor(lengths)[:, None] > torch.arange(max(lengths))).sum(0)
        self.lstm = nn.LSTM(units, units, bidirectional=True).to(DEVICE)
        self.x = torch.randn(sum(lengths), units, device=DEVICE, requires_grad=True)
        self.sizes, self.first_row = sizes, functional.pad(sizes.cumsum(0), (1, 0)).to(DEVICE)
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.grad = torch.randn(sum(lengths), 2 * units, device=DEVICE, dtype=self.dtype)

    def run(self, backend: str, backward: bool = True) -> list[torch.Tensor]:
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype is not None):
            y = bilstm(self.lstm, self.x, self.sizes, first_row=self.first_row, backend=backend)
        return [y, *torch.autograd.grad(y, [self.x, *self.lstm.parameters()], self.grad)] if backward else [y]

    def recurrence(self) -> tuple[float, float]:
        """Microseconds of the recurrence alone, forward and backward; without a GPU, of the layer."""
        if DEVICE.type == "cpu":
            return _microseconds(partial(self.run, BACKEND, False)), _microseconds(partial(self.run, BACKEND))
        gates = torch.randn(len(self.x), 8 * self.lstm.hidden_size, device=DEVICE, dtype=self.dtype)
        weights = self.lstm.weight_hh_l0.detach(), self.lstm.weight_hh_l0_reverse.detach()
        layout = self.first_row, int(self.sizes[0]), self.dtype is None
        ops = torch.ops.esim_fast
        _, c, _ = ops.bilstm_cuda(gates, *weights, *layout)
        return (
            _microseconds(lambda: ops.bilstm_cuda(gates, *weights, *layout)),
            _microseconds(lambda: ops.bilstm_cuda_backward(self.grad, c, gates, *weights, *layout)),
        )


def _microseconds(call) -> float:
    """The median time of a call on the device."""
    if DEVICE.type == "cpu":
        begin = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - begin)
    for _ in range(3):
        call()
    found = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(1000 * begin.elapsed_time(end))
    return median(found)


def steps() -> dict[str, object]:
    """Microseconds of a time step, and of everything outside of the steps, forward and backward."""
    found = {}
    for precision in PRECISIONS if FULL_SIZE else ["fp32"]:
        for at_once, sentences in SENTENCES.items():
            if precision == "tf32" and at_once == 64:
                continue
            with precision_set("tf32" if precision == "tf32" else "fp32"):
                times = [Layer([words] * sentences, UNITS, precision).recurrence() for words in WORDS]
            span = WORDS[-1] - WORDS[0]
            slopes = [(last - first) / span for first, last in zip(times[0], times[-1], strict=True)]
            offsets = [first - WORDS[0] * slope for first, slope in zip(times[0], slopes, strict=True)]
            found[f"{precision}, {at_once} at once"] = {"step": slopes, "offset": offsets, "times": times}
            print(f"{precision}, {sentences} sentences, {at_once} at once: {slopes[0]:.2f} µs forward", end=" ")
            print(f"and {slopes[1]:.2f} µs backward a step, {offsets[0]:.1f} and {offsets[1]:.1f} outside", flush=True)
    return found


def layers() -> dict[str, object]:
    """Microseconds of a layer, forward and backward, by backend, for 32 and 512 pairs of 4 to 40 words."""
    found = {}
    for sentences in (64, 1024) if FULL_SIZE else (3,):
        lengths = sorted((4 + 36 * n * n // sentences**2 for n in range(sentences)), reverse=True)
        for precision in PRECISIONS if FULL_SIZE else ["fp32"]:
            layer = Layer(lengths, UNITS, precision)
            with precision_set("tf32" if precision == "tf32" else "fp32"):
                possible = bilstm_backends(layer.lstm, layer.x, layer.sizes)
                chosen = [name for name in ("cuda", "triton", "cudnn") if name in possible] or ["reference"]
                times = {name: _microseconds(partial(layer.run, name)) for name in chosen}
            found[f"{precision}, {sentences} sentences"] = times
            print(f"{precision}, {sentences} sentences: {', '.join(f'{k} {v:.0f} µs' for k, v in times.items())}")
    return found


if __name__ == "__main__":
    main()
