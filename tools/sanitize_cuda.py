"""Run the Triton and CUDA kernels, forward and backward, under NVIDIA's compute-sanitizer.

    python -m tools.sanitize_cuda [--tools memcheck racecheck] [--json FILE] [--dry-run]

The batches are small, and every tensor is a separate allocation, so that a read past its end is seen. First, memcheck
must find such a read in a planted kernel. The exit code is 1 if a tool finds something or a result is wrong, and 3 if
compute-sanitizer is not installed or misses the planted read. ``--dry-run`` needs no GPU: the cases run on CPU tensors
with Triton's interpreter, without any tool.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product
from pathlib import Path

from benchmarks.measure import machine
from esim_fast.cli.options import Parser
from esim_fast.files import write_json

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
NOT_THERE = 3
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
# Lengths and widths. The first case has one tile and vector accesses. The second has many tiles and single-element
# accesses, and pooling splits its sentences.
CASES = [([(5, 3), (1, 16), (0, 4), (12, 9)], 600), ([(70, 3), (20, 90)], 37)]


def run_cases(device: str) -> int:
    """Run every kernel in every dtype on small batches; return how many results were compared with the equations."""
    import torch

    kinds = local_inference_cases, masked_pool_cases, bilstm_cases, embedding_cases, loss_cases
    checked = 0
    for what, results, exact, dtype in chain(*(cases(device) for cases in kinds)):
        for result, wanted in zip(results, exact, strict=True):
            wanted = wanted.detach().double()
            error = float((result.detach().cpu().double() - wanted).norm() / wanted.norm().clamp(min=1e-3))
            # Allows products in TF32 and a few roundings to the dtype.
            if not error < 0.01 + 8 * torch.finfo(dtype).eps:
                sys.exit(f"{what}, {dtype}: off by {error:.1e}")
            checked += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return checked


def local_inference_cases(device: str):
    """Yield what was computed, the results, the exact ones and the dtype, as the other kinds of cases do."""
    import torch

    from tests.ops.pairs import Pairs

    for dtype, (lengths, width) in product((torch.float32, torch.bfloat16), CASES):
        pairs = Pairs.draw(lengths, width, dtype=dtype)
        exact = pairs.expected()
        for layout in ("mask", "one tensor"):
            found = pairs.through_the_op(layout, device, "triton")
            for ours, wanted in zip(found, exact, strict=True):
                yield f"local_inference, {layout}, {lengths}, D = {width}", list(ours), list(wanted), dtype


def masked_pool_cases(device: str):
    import torch

    from esim_fast.ops import masked_pool, reference
    from tests.ops.layouts import Layout
    from tests.ops.pairs import Pairs

    for dtype, (lengths, width) in product((torch.float32, torch.bfloat16), CASES):
        sentences = Pairs.draw(lengths, width, dtype=dtype).a
        for layout in ("lengths", "mask", "packed"):
            place = Layout.make(layout, [len(x) for x in sentences], width)
            given_as = {name: value.to(device) for name, value in place.given_as.items()}
            x = place.fill(sentences)
            grad = torch.randn(len(sentences), 2 * width).to(dtype)
            results = []
            for tensor, options in ((x.to(device), given_as), (x.double(), place.given_as)):
                leaf = tensor.requires_grad_()
                pool = masked_pool if tensor.dtype == dtype else reference.masked_pool
                v = pool(leaf, **options)
                results.append([v, torch.autograd.grad(v, leaf, grad.to(v))[0]])
            for result in results:  # padding is NaN, and its gradient zero
                result[1] = torch.cat(place.sentences(result[1]))
            yield f"masked_pool, {layout}, {lengths}, D = {width}", *results, dtype


def bilstm_cases(device: str):
    import torch

    from esim_fast.ops import bilstm, bilstm_backends

    sizes = torch.tensor([4, 3, 3, 1, 1, 1])  # four sentences
    first_row = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(device)
    given_as = {
        "packed": {"batch_sizes": sizes},
        "in a capacity": {"batch_sizes": None, "first_row": first_row, "sentences": 4},
    }
    for units, backend in product((7, 77), ("triton", "cuda") if device == "cuda" else ("triton",)):
        exact_lstm = torch.nn.LSTM(units, units, bidirectional=True).double()
        lstm = torch.nn.LSTM(units, units, bidirectional=True).to(device)
        lstm.load_state_dict(exact_lstm.state_dict())
        x, grad = torch.randn(int(sizes.sum()), units), torch.randn(int(sizes.sum()), 2 * units)
        y = bilstm(exact_lstm, (leaf := x.double().requires_grad_()), sizes, backend="reference")
        exact = [y, *torch.autograd.grad(y, [leaf, *exact_lstm.parameters()], grad.double())]
        for dtype, (name, given) in product((torch.float32, torch.bfloat16, torch.float16), given_as.items()):
            leaf = x.to(device).requires_grad_()
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                if backend not in bilstm_backends(lstm, leaf, sizes):  # not on every GPU
                    continue
                y = bilstm(lstm, leaf, **given, backend=backend)
            results = [y, *torch.autograd.grad(y, [leaf, *lstm.parameters()], grad.to(y))]
            yield f"bilstm, {backend}, {name}, {units} units", results, exact, dtype


def embedding_cases(device: str):
    import torch

    from esim_fast.ops.embedding import add_gradient, occurrences

    tokens = torch.tensor([1, 6, 3, 3, 0, 6, 1, 3])  # 1 is padding
    places = [tokens, *occurrences(tokens, 1)]
    for width in (37, 300):
        grad, table = torch.randn(8, width), torch.randn(7, width)
        wanted = table.double().index_add(0, tokens, torch.where(tokens[:, None] == 1, 0.0, grad).double())
        add_gradient(found := table.to(device), grad.to(device), *(x.to(device) for x in places), backend="triton")
        yield f"embedding, D = {width}", [found], [wanted], torch.float32


def loss_cases(device: str):
    """Dropout with an activation, and cross entropy."""
    import torch

    from esim_fast.ops import cross_entropy, dropout

    key, labels = torch.tensor([3, 5]), torch.tensor([0, 2, -100, 1, 2])
    for dtype, columns in product((torch.float32, torch.bfloat16), (3, 37)):
        x = torch.randn(5, columns).to(dtype)
        for name, run in {
            "dropout": lambda x, to, backend: dropout(x, 0.3, key.to(to), 1, activation="tanh", backend=backend),
            "cross_entropy": lambda x, to, backend: cross_entropy(x, labels.to(to), 0.1, backend=backend)[0],
        }.items():
            found = []
            for leaf, backend in ((x.to(device), "triton"), (x.double(), "reference")):
                y = run(leaf.requires_grad_(), leaf.device, backend)
                found.append([y, torch.autograd.grad(y.sum(), leaf)[0]])
            yield name, *found, dtype


def plant_an_error() -> None:
    """Read far past the end of a tensor."""
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def beyond(x, y):
        tl.store(y, tl.load(x + 1_000_000))

    x, y = torch.zeros(16, device="cuda"), torch.zeros(16, device="cuda")
    beyond[(1,)](x, y)
    torch.cuda.synchronize()


def sanitizer() -> str | None:
    """The path of compute-sanitizer, from PATH or the CUDA toolkit's usual folder."""
    return shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


def under(tool: str | None, case: str) -> tuple[int, int, str]:
    """Run a case in a new process; return the exit code, the tool's number of errors, and the end of the output."""
    command = [sys.executable, "-m", "tools.sanitize_cuda", "--case", case]
    if tool:
        options = ["--tool", tool, "--error-exitcode", "86", "--target-processes", "application-only"]
        command = [sanitizer() or "", *options, "--report-api-errors", "no", "--print-limit", "5", *command]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": path}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    errors = sum(int(count or hazards) for count, hazards in SUMMARY.findall(done.stdout))
    return done.returncode, errors, done.stdout[-4000:]


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.sanitize_cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=["memcheck", "racecheck"])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--case", choices=("all", "planted"), help="for the processes that this program starts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args(arguments)

    import torch

    on_gpu = torch.cuda.is_available()
    if options.case == "planted":
        plant_an_error()
        return 0
    if options.case == "all":
        print(f"{run_cases('cuda' if on_gpu else 'cpu')} results are correct")
        return 0
    if not on_gpu and not options.dry_run:
        parser.error("there is no NVIDIA GPU here (--dry-run needs none)")
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # First without a tool, which would also watch the compilers.
    with ThreadPoolExecutor() as pool:
        if not options.dry_run:
            pool.submit(under, None, "planted")
        code, _, output = pool.submit(under, None, "all").result()
    print(output.strip())
    if code or options.dry_run:
        return 1 if code else 0
    if sanitizer() is None:
        print("compute-sanitizer is not installed: results are correct, but memory accesses were not checked")
        return NOT_THERE
    with ThreadPoolExecutor() as pool:  # side by side, because a tool mostly uses one core
        planted = pool.submit(under, "memcheck", "planted")
        running = {tool: pool.submit(under, tool, "all") for tool in options.tools}
    _, errors, output = planted.result()
    if not errors:
        print(f"{output}\nthe planted error was not found: compute-sanitizer does not work on this machine")
        return NOT_THERE
    print(f"memcheck finds the planted error ({errors})")
    found = {}
    for tool, done in running.items():
        code, errors, output = done.result()
        found[tool] = {"exit_code": code, "errors": errors}
        print(f"{tool}: {errors} errors, exit code {code}")
        if code or errors:
            print(output)
    if options.json:
        try:
            write_json(options.json, {**machine(), "tools": found})
        except OSError as error:
            parser.error(str(error))
    return 1 if any(outcome["exit_code"] or outcome["errors"] for outcome in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
