"""What a training step is made of, decided by measurement: the trainer's own step, and it with one thing changed.

Arithmetic, the optimiser's form, and on a GPU the whole step recorded as a CUDA graph and replayed: batches differ in
their time steps, so each has a recording of its own here, and what that saves is the most that graphs could. One change
is no choice, but takes away what it names, and so shows what that costs: the embedding's gradient, its share of Adam.
All begin with the same weights; those that compute the same step are held to its losses, without dropout.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from corpus import VOCABULARY, draw_pairs
from equality import TOLERANCE
from models import precision_set
from timing import interleaved
from torch import Tensor

from esim_fast import ESIM
from esim_fast.data import Batch, batches
from esim_fast.training import Recipe, training_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
SIZES = [32, *(pytest.param(size, marks=pytest.mark.full) for size in (512,))]
BATCHES = 4
STEPS = 3  # whose losses are compared
AS_IT_IS, FROZEN, GRAPH = "as it is, fp32", "embedding not trained (another step)", "a CUDA graph of it, replayed"


@dataclass
class Step:
    """The trainer's step, with a network and an optimiser of its own."""

    batches: list[Batch]
    precision: str = "fp32"
    adam: dict[str, bool] = field(default_factory=lambda: {"fused": True})
    freeze_embedding: bool = False
    recorded: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.net = ESIM(300, 300, VOCABULARY, 3, DEVICE, freeze_embedding=self.freeze_embedding)
        self.initial = {name: value.clone() for name, value in self.net.state_dict().items()}
        parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        adam = {**self.adam, "capturable": True} if self.recorded else self.adam
        self.optimiser = torch.optim.AdamW(parameters, lr=4e-4, weight_decay=0.0, **adam)
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=False)
        self.recipe = Recipe(precision="bf16" if self.precision == "bf16" else "fp32")
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """The sum of the losses."""
        if recording := self.graphs.get(id(batch)):
            recording[0].replay()
            return recording[1]
        with precision_set(self.precision):
            return training_step(self.net, [batch], self.optimiser, self.scaler, self.recipe).loss_sum

    def round(self) -> None:
        for batch in self.batches:
            self(batch)

    def prepare(self, *, dropout: bool) -> None:
        """From the initial weights; where steps are recorded, they are recorded anew."""
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train(dropout)
        self.graphs.clear()
        if not self.recorded:
            self.round()
        else:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.round()
            torch.cuda.current_stream().wait_stream(side)
            recordings = {}
            for batch in self.batches:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    recordings[id(batch)] = graph, self(batch)
            self.graphs = recordings
        with torch.no_grad():  # in place: a recording knows tensors by their addresses
            for name, value in self.net.state_dict().items():
                value.copy_(self.initial[name])
            for state in self.optimiser.state.values():
                for value in state.values():
                    value.zero_()

    def losses(self) -> Tensor:
        self.prepare(dropout=False)
        return torch.stack([self(self.batches[0]).double().cpu() for _ in range(STEPS)])


def steps(inputs: list[Batch]) -> dict[str, Step]:
    plain = Step(inputs)
    variants = {
        AS_IT_IS: plain,
        "Adam for many tensors at once": replace(plain, adam={"foreach": True}),
        "Adam for one after the other": replace(plain, adam={"foreach": False}),
        FROZEN: replace(plain, freeze_embedding=True),
    }
    if ON_GPU:
        variants |= {
            "TF32": replace(plain, precision="tf32"),
            "bf16": replace(plain, precision="bf16"),
            GRAPH: replace(plain, recorded=True),
            f"{GRAPH}, bf16": replace(plain, precision="bf16", recorded=True),
        }
    return variants


def prepared(variants: dict[str, Step]) -> tuple[dict[str, Step], list[str]]:
    """Those that run here, ready to be timed, each found to make the losses smaller in the same way."""
    running, notes = {}, []
    exact = variants[AS_IT_IS].losses()
    for name, step in variants.items():
        try:
            losses = step.losses()
        except RuntimeError as error:
            if not step.recorded:
                raise
            notes.append(f"{name}: does not run here ({str(error).strip().splitlines()[0][:100]})")
            torch.cuda.synchronize()
            continue
        # Adam's first steps are as long for the smallest gradient as for the largest: roundings show.
        error = float(((losses - exact) / exact).abs().max())
        if name != FROZEN:
            assert error < 10 * TOLERANCE[step.precision], f"{name}: losses {losses.tolist()}, not {exact.tolist()}"
        assert losses[-1] < losses[0], f"{name}: losses {losses.tolist()}"
        step.prepare(dropout=True)
        running[name] = step
    return running, notes


@pytest.mark.parametrize("size", SIZES)
def test_choices(size, report):
    corpus = draw_pairs("SNLI", 50 * size, np.random.default_rng(0))
    cut = list(batches(corpus, size, shuffle=False))
    inputs = [cut[(2 * i + 1) * len(cut) // (2 * BATCHES)].to(DEVICE) for i in range(BATCHES)]
    running, notes = prepared(steps(inputs))
    title = f"training step, SNLI at batch {size}, on {DEVICE.type}: what it is made of, {BATCHES} batches"
    calls = {name: step.round for name, step in running.items()}
    comparison = interleaved(title, calls, device=DEVICE, seconds=3.0)
    parameters = {"lengths": "SNLI", "batch": size, "device": DEVICE.type, "batches": BATCHES}
    report(replace(comparison, notes=tuple(notes)).of("choices", **parameters))
