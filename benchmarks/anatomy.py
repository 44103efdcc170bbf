"""A training step taken apart: what its parts take, forward and backward, and what the GPU does meanwhile.

    python -m benchmarks.anatomy [--batch-size 32] [--precision fp32] [--tf32] [--json FILE]

run in the repository's root. The step is the trainer's, on batches of SNLI's lengths and vocabulary. Parts are timed by
hooks, on a GPU by events in its stream. There, the profiler then lists the kernels: what the GPU is busy with, how long
it waits between them, and whether the host is behind: it is, where issuing a step takes longer than the step's kernels.
On a CPU the profiler lists PyTorch's operators.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.corpus import VOCABULARY, training_batches
from benchmarks.timing import DEVICE, ON_GPU, Stopwatch, environment, synchronize
from esim_fast import ESIM
from esim_fast.data import Batch
from esim_fast.training import PRECISIONS, Recipe, training_step

# The parts, and the module whose forward pass ends each.
PARTS = {
    "embedding": "embedding_dropout",
    "encoder": "encoder",
    "local inference": "inference",
    "projection": "infercomposition.composition.dropout",
    "composition": "infercomposition.composition",
    "pooling": "infercomposition.pooling",
    "classifier": "linear",
}
BATCHES = 4
PROFILED = 2  # rounds over them
MOST_KERNELS = 30


class Step:
    """The trainer's step on batches that are on the device already."""

    def __init__(self, batch_size: int, precision: str) -> None:
        self.recipe = Recipe(epochs=1, batch_size=batch_size, precision=precision)
        torch.manual_seed(self.recipe.seed)
        self.net = ESIM(300, 300, VOCABULARY, 3, DEVICE).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=4e-4, weight_decay=0.0, fused=True)
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == "fp16")
        self.batches = [batch.to(DEVICE) for batch in training_batches(batch_size, BATCHES)]

    def __call__(self, batch: Batch) -> None:
        training_step(self.net, [batch], self.optimizer, self.scaler, self.recipe)

    def round(self) -> None:
        for batch in self.batches:
            self(batch)


def parts_of(step: Step, rounds: int) -> dict[str, float]:
    """Seconds of each part of a step, on average over the batches, medians over the rounds.

    Backward, a part ends when the gradient of its input is known; there the part before it begins.
    """
    net, names = step.net, list(PARTS)
    hooks: list[torch.utils.hooks.RemovableHandle] = []
    stopwatch = Stopwatch()

    def part_ends(index: int) -> Callable[[nn.Module, tuple, Tensor | tuple[Tensor, ...]], None]:
        following = f"{names[index + 1]}, backward" if index + 1 < len(names) else "loss"

        def hook(module: nn.Module, arguments: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            stopwatch.end(names[index])
            tensor = output if isinstance(output, Tensor) else output[0]
            tensor.register_hook(lambda gradient: stopwatch.end(following))

        return hook

    for index, module in enumerate(PARTS.values()):
        hooks.append(net.get_submodule(module).register_forward_hook(part_ends(index)))
    words = net.embedding.weight
    hooks += [
        net.register_forward_pre_hook(lambda *_: stopwatch.end("metrics, zero_grad")),
        words.register_post_accumulate_grad_hook(lambda _: stopwatch.end("embedding, backward")),
        step.optimizer.register_step_pre_hook(lambda *_: stopwatch.end("clipping")),
        step.optimizer.register_step_post_hook(lambda *_: stopwatch.end("Adam")),
    ]
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        stopwatch = Stopwatch()
        step.round()
        for part, seconds in stopwatch.seconds().items():
            samples.setdefault(part, []).append(seconds / len(step.batches))
    for hook in hooks:
        hook.remove()
    return {part: median(values) for part, values in samples.items()}


def step_times(step: Step, rounds: int) -> dict[str, float]:
    """Seconds of a step among others, and, on a GPU, seconds that the host takes to issue one while the GPU is idle."""
    whole, issued = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        step.round()
        synchronize()
        whole.append((time.perf_counter() - begin) / len(step.batches))
        for batch in step.batches if ON_GPU else ():
            begin = time.perf_counter()
            step(batch)
            issued.append(time.perf_counter() - begin)
            synchronize()
    return {"step": median(whole), **({"issued by the host": median(issued)} if issued else {})}


def profiled(step: Step) -> tuple[dict[str, float], list[dict[str, object]]]:
    """What the profiler says of a step: seconds of the GPU's work, and the kernels, or operators, by their time."""
    steps = PROFILED * len(step.batches)
    activities = [ProfilerActivity.CUDA if DEVICE.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        for _ in range(PROFILED):
            step.round()
        synchronize()
    if not ON_GPU:
        operators = sorted(found.key_averages(), key=lambda operator: -operator.self_cpu_time_total)
        listed = [
            {
                "name": operator.key,
                "seconds": operator.self_cpu_time_total / 1e6 / steps,
                "times": operator.count / steps,
            }
            for operator in operators
        ]
        return {}, listed
    kernels: dict[str, list[float]] = {}
    spans = []
    for event in found.events():
        if event.device_type != DeviceType.CUDA or event.is_user_annotation:
            continue
        kernels.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
        spans.append((event.time_range.start, event.time_range.end))
    listed = [
        {"name": name, "seconds": sum(seconds) / steps, "times": len(seconds) / steps}
        for name, seconds in sorted(kernels.items(), key=lambda item: -sum(item[1]))
    ]
    busy = covered(spans) / 1e6 / steps
    return {"GPU busy": busy, "kernels": sum(kernel["times"] for kernel in listed)}, listed


def covered(spans: list[tuple[float, float]]) -> float:
    """How much of the time line lies in any of the spans; two kernels at once count once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def measure(batch_size: int, precision: str, rounds: int) -> dict[str, object]:
    step = Step(batch_size, precision)
    for _ in range(3):
        step.round()  # initializes libraries, chooses and compiles kernels
    times = step_times(step, rounds)
    parts = parts_of(step, rounds)
    of_gpu, listed = profiled(step)
    words = sum(len(batch.pairs.tokens) for batch in step.batches) / len(step.batches)
    return {"words": words, "times": {**times, **of_gpu}, "parts": parts, "kernels": listed}


def page(result: dict) -> str:
    times, parts, listed = result["times"], result["parts"], result["kernels"]
    lines = [f"a step of {result['words']:,.0f} words takes {1e6 * times['step']:,.0f} µs"]
    if ON_GPU and not times["kernels"]:
        lines.append("  the profiler saw nothing of the GPU")
    elif ON_GPU:
        idle = max(0.0, times["step"] - times["GPU busy"])
        behind = "the host is behind" if times["issued by the host"] > times["GPU busy"] else "the GPU is"
        lines += [
            f"  the GPU is busy for {1e6 * times['GPU busy']:,.0f} µs of it, with {times['kernels']:,.0f} kernels and "
            f"copies, and waits for {1e6 * idle:,.0f} µs, {idle / times['step']:.0%}",
            f"  the host issues it in {1e6 * times['issued by the host']:,.0f} µs: {behind}",
        ]
    total = sum(parts.values())
    lines += [f"  {part:<28} {1e6 * value:>10,.1f} µs {value / total:>6.1%}" for part, value in parts.items()]
    lines.append(f"{'kernels' if ON_GPU else 'operators'} by their time in a step")
    for entry in listed[:MOST_KERNELS]:
        lines.append(f"  {1e6 * entry['seconds']:>10,.1f} µs {entry['times']:>7.1f} times  {entry['name'][:90]}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.anatomy", description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument("--tf32", action="store_true", help="products and LSTMs of fp32 tensors in TF32")
    parser.add_argument("--rounds", type=positive, default=20, help="over the batches; default: %(default)s")
    add_json(parser)
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = options.tf32 or options.precision != "fp32"  # LSTMs, as is PyTorch's default
    print(environment(), flush=True)
    result = measure(options.batch_size, options.precision, options.rounds)
    print(page(result))
    precision = "tf32" if options.tf32 and options.precision == "fp32" else options.precision
    write_json(
        parser,
        options.json,
        {"batch_size": options.batch_size, "device": DEVICE.type, "precision": precision, **result},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
