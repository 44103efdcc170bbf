"""What the library is meant to reach on a GPU, held against what was measured there: a line for each aim.

Each is a median of one run. A ratio is a peer's time over ours on the same batches, launches included: on a
GPU small batches spend most of their time on them, in training, too.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

Measured = list[dict[str, Any]]  # comparisons as timing.Comparison is written in JSON

EAGER, COMPILED = "eager, as in the notebook", "torch.compile of it"
LAYOUTS = ("esim_fast, mask", "esim_fast, packed rows")
STEP = "esim_fast, packed batches"
EPOCH_SECONDS, SNLI_PAIRS = 20.0, 549_367


class Target(NamedTuple):
    """An aim and what came of it.

    Attributes:
        wanted: the least that is wanted, or with ``at_most`` the most.
        measured: None where it was not.
    """

    what: str
    wanted: float
    measured: float | None
    unit: str = "x"
    at_most: bool = False

    @property
    def outcome(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.wanted if self.at_most else self.measured >= self.wanted
        return "met" if met else "missed"

    def row(self) -> str:
        def written(value: float) -> str:
            return f"{value:.0%}" if self.unit == "%" else f"{value:,.2f} {self.unit}"

        sign = "≤" if self.at_most else "≥"
        measured = "" if self.measured is None else written(self.measured)
        return f"| {self.what} | {sign} {written(self.wanted)} | {measured} | {self.outcome} |"


def targets(measured: Measured, epochs: list[dict[str, Any]]) -> list[Target]:
    """All aims; of ``measured`` comparisons and of what `benchmarks.epoch` wrote."""
    return [
        *_local_inference(measured),
        *_masked_pool(measured),
        *_training(measured),
        *(_epoch(epochs, size, precision) for size, precision in ((32, "bf16"), (32, "fp32"), (512, "bf16"))),
    ]


def _epoch(epochs: list[dict[str, Any]], size: int, precision: str) -> Target:
    what = f"an epoch of SNLI's size through loader and trainer, batches of {size}, {precision}"
    found = (
        epoch["seconds"]
        for epoch in epochs
        if (epoch["batch_size"], epoch["precision"]) == (size, precision) and epoch["pairs"] >= SNLI_PAIRS
    )
    return Target(what, EPOCH_SECONDS, next(found, None), "s", at_most=True)


def table(found: Iterable[Target]) -> list[str]:
    return ["| aim | wanted | measured | |", "| --- | ---: | ---: | --- |", *(target.row() for target in found)]


def _local_inference(measured: Measured) -> list[Target]:
    found = []
    for which, eager, compiled, share in (("forward", 5, 2, 0.70), ("forward + backward", 4, 1.5, 0.55)):
        at_256 = _find(measured, "local_inference", batch=256, lengths="SNLI", precision="bf16", **{"pass": which})
        what = f"local_inference, SNLI at batch 256, bf16, {which}"
        found.append(Target(f"{what}: eager", eager, _slowest(at_256, EAGER, LAYOUTS)))
        found.append(Target(f"{what}: torch.compile", compiled, _slowest(at_256, COMPILED, LAYOUTS)))
        on_device = {"batch": 1024, "lengths": "SNLI", "pass": f"{which}, device time"}
        for precision in ("bf16", "fp32"):
            at_1024 = _find(measured, "local_inference", precision=precision, **on_device)
            what = f"local_inference, SNLI at batch 1024, {precision}, {which}: share of the copy's bandwidth"
            found.append(Target(what, share, _share(at_1024, "esim_fast, packed rows"), "%"))
    everywhere = [
        _slowest(comparison, COMPILED, LAYOUTS)
        for comparison in measured
        if comparison["group"] == "local_inference" and COMPILED in comparison["values"]
    ]
    what = "local_inference against torch.compile at every shape, the worst"
    return [*found, Target(what, 1, _least(everywhere))]


def _masked_pool(measured: Measured) -> list[Target]:
    found = []
    for precision in ("fp32", "bf16"):
        copy = _find(measured, "masked_pool against a copy", batch=1024, precision=precision)
        what = f"masked_pool, [1024, 64, 600], {precision}, forward: share of the copy's bandwidth"
        found.append(Target(what, 0.80, _share(copy, "esim_fast"), "%"))
    against_peers = []
    for comparison in measured:
        if comparison["group"] == "masked_pool" and comparison["parameters"]["pass"] == "forward + backward":
            ours = max(value for name, value in comparison["values"].items() if name.startswith("esim_fast"))
            peers = min(value for name, value in comparison["values"].items() if not name.startswith("esim_fast"))
            against_peers.append(peers / ours)
    return [*found, Target("masked_pool against the fastest peer, forward + backward", 1, _least(against_peers))]


def _training(measured: Measured) -> list[Target]:
    found = []
    for batch, eager in ((32, 3), (512, 2)):
        for precision in ("fp32", "tf32", "bf16"):
            step = {"batch": batch, "lengths": "SNLI", "precision": precision, "pass": "training step"}
            comparison = _find(measured, "training", **step)
            what = f"training step, SNLI at batch {batch}, {precision}"
            found.append(Target(f"{what}: eager", eager, _slowest(comparison, EAGER, (STEP,))))
            compiled = _slowest(comparison, "torch.compile of eager", (STEP,))
            found.append(Target(f"{what}: torch.compile", 1.5, compiled))
    for precision in ("fp32", "tf32", "bf16"):
        memory = _find(measured, "memory", batch=512, lengths="SNLI", precision=precision)
        ratio = _slowest(memory, EAGER, (STEP,))
        what = f"peak memory of a step at batch 512, {precision}, of eager's"
        found.append(Target(what, 0.60, 1 / ratio if ratio else None, "%", at_most=True))
    return found


def _find(measured: Measured, group: str, **parameters: str | int) -> dict[str, Any] | None:
    def fits(comparison: dict[str, Any]) -> bool:
        return comparison["group"] == group and parameters.items() <= comparison["parameters"].items()

    return next(filter(fits, measured), None)


def _slowest(comparison: dict[str, Any] | None, peer: str, ours: Iterable[str]) -> float | None:
    """How many times as long as the slowest of ours the peer takes."""
    values = comparison["values"] if comparison else {}
    times = [values[name] for name in ours if name in values]
    return values[peer] / max(times) if times and peer in values else None


def _share(comparison: dict[str, Any] | None, ours: str) -> float | None:
    if not comparison or not comparison.get("floor") or ours not in comparison["values"]:
        return None
    return comparison["floor"] / comparison["values"][ours]


def _least(values: list[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
