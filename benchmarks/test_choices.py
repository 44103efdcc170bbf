"""What a training step is made of, decided by measurement: the trainer's own step, and it with one thing changed.

Arithmetic, the optimizer's form, and on a GPU the whole step recorded as a CUDA graph and replayed: batches differ in
their time steps, so each has a recording of its own here, and that saves the most that graphs could. One change is no
choice: without training, the embedding shows what its gradient and its share of Adam cost. All begin with the same
weights; those that compute the same step must reach its losses, without dropout.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from corpus import VOCABULARY, training_batches
from equality import TOLERANCE
from models import precision_set
from timing import DEVICE, ON_GPU, Comparison, interleaved, recorded
from torch import Tensor

from esim_fast import ESIM
from esim_fast.data import Batch
from esim_fast.training import Recipe, training_step

SIZES = [32, *(pytest.param(size, marks=pytest.mark.full) for size in (512,))]
BATCHES = 4
STEPS = 3  # whose losses are compared
AS_IT_IS, FROZEN, GRAPH = "as it is", "embedding not trained (another step)", "a CUDA graph of it, replayed"


@dataclass
class Step:
    """The trainer's step, with a network and an optimizer of its own."""

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
        self.optimizer = torch.optim.AdamW(parameters, lr=4e-4, weight_decay=0.0, **adam)
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=False)
        self.recipe = Recipe(precision="bf16" if self.precision == "bf16" else "fp32")
        self.replays: dict[int, Callable[[], object]] = {}
        self.loss_sum = torch.zeros((), device=DEVICE)

    def __call__(self, batch: Batch) -> Tensor:
        """The sum of the losses."""
        if replay := self.replays.get(id(batch)):
            replay()
        else:
            self.issue(batch)
        return self.loss_sum

    def issue(self, batch: Batch) -> None:
        with precision_set(self.precision):
            result = training_step(self.net, [batch], self.optimizer, self.scaler, self.recipe)
        self.loss_sum.copy_(result.loss_sum)  # where a recording leaves it, too

    def round(self) -> None:
        for batch in self.batches:
            self(batch)

    def prepare(self, *, dropout: bool) -> None:
        """From the initial weights; where steps are recorded, they are recorded anew."""
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train(dropout)
        self.replays = {id(x): recorded(lambda x=x: self.issue(x)) for x in self.batches} if self.recorded else {}
        self.round()  # the optimizer has a state now
        with torch.no_grad():  # in place: a recording knows tensors by their addresses
            for name, value in self.net.state_dict().items():
                value.copy_(self.initial[name])
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def losses(self) -> Tensor:
        self.prepare(dropout=False)
        return torch.tensor([float(self(self.batches[0])) for _ in range(STEPS)], dtype=torch.float64)


def variants(inputs: list[Batch]) -> dict[str, Step]:
    plain = Step(inputs)
    found = {
        AS_IT_IS: plain,
        "Adam for many tensors at once": replace(plain, adam={"foreach": True}),
        "Adam for one after the other": replace(plain, adam={"foreach": False}),
        FROZEN: replace(plain, freeze_embedding=True),
    }
    if ON_GPU:
        found |= {"TF32": replace(plain, precision="tf32"), "bf16": replace(plain, precision="bf16")}
    return found


def prepare(steps: dict[str, Step]) -> None:
    """Prepares the steps to be timed, once all are found to reduce the losses in the same way."""
    exact = steps[AS_IT_IS].losses()
    for name, step in steps.items():
        losses = step.losses()
        # Adam's first steps are as long for the smallest gradient as for the largest: roundings show.
        error = float(((losses - exact) / exact).abs().max())
        allowed = 10 * TOLERANCE["fp32"] if step.precision == steps[AS_IT_IS].precision == "fp32" else 0.02
        if name != FROZEN:
            assert error < allowed, f"{name}: losses {losses.tolist()}, not {exact.tolist()}"
        assert losses[-1] < losses[0], f"{name}: losses {losses.tolist()}"
        step.prepare(dropout=True)


def inputs_of(size: int) -> list[Batch]:
    return [batch.to(DEVICE) for batch in training_batches(size, BATCHES)]


def compare(what: str, size: int, steps: dict[str, Step]) -> Comparison:
    prepare(steps)
    title = f"training step, SNLI at batch {size}, on {DEVICE.type}: {what}, {BATCHES} batches"
    comparison = interleaved(title, {name: step.round for name, step in steps.items()}, seconds=3.0)
    return comparison.of("choices", lengths="SNLI", batch=size, device=DEVICE.type, batches=BATCHES)


@pytest.mark.parametrize("size", SIZES)
def test_choices(size, report):
    report(compare("what it is made of", size, variants(inputs_of(size))))


# Last, because a recording that fails leaves PyTorch's random state in disorder.
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_recorded(size, precision, report):
    plain = Step(inputs_of(size), precision)
    steps = {AS_IT_IS: plain, GRAPH: replace(plain, recorded=True)}
    try:
        compared = compare(f"issued and recorded, {precision}", size, steps)
    except RuntimeError as error:
        pytest.skip(f"a step cannot be recorded here: {str(error).strip().splitlines()[0][:200]}")
    report(compared.of("recorded", **compared.parameters, precision=precision))
