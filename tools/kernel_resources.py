"""Lists what the Triton kernels and the CUDA BiLSTM need of a GPU, according to the compilers. Needs no GPU.

    python tools/kernel_resources.py [--target sm_90 ...] [--all] [--jobs N]

Compiles the kernels that esim_fast launches by default for every supported GPU generation. Prints a table of shared
memory, registers, spills, and the widths of loads and stores. ``--all`` adds candidates that await timing on a GPU,
other layouts, widths and batch sizes. It also disassembles every kernel, which takes minutes, to count the most bytes
that the programs of a multiprocessor load at the same time. The exit code is 1 if a kernel does not fit: if it needs
too much shared memory, spills registers, or accesses aligned rows in narrow pieces. Where nvcc is installed, the CUDA
kernels of the BiLSTM follow, with the time that a step should take.
"""

import argparse
import contextlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"  # Triton reads it on import

import cuda_resources
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from esim_fast.ops.triton import bilstm, cross_entropy, dropout, embedding, lstm_weights, runtime
from esim_fast.ops.triton import local_inference as kernels
from esim_fast.ops.triton.tokens import Tokens

# Bytes of shared memory that a program can use, from the CUDA C++ Programming Guide, "technical specifications".
SHARED_MEMORY = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448}
DEFAULT_TARGETS = list(SHARED_MEMORY)
SHARED_MEMORY["sm_120"] = 101376  # for Triton only on request: not all kernels have been compiled for it
# Of a multiprocessor: threads, registers, and shared memory that each program takes for the system.
THREADS = {"sm_80": 2048, "sm_86": 1536, "sm_89": 1536, "sm_90": 2048, "sm_100": 2048, "sm_120": 1536}
REGISTERS, RESERVED = 65536, 1024
ARITHMETIC = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "i1"}


class Case(NamedTuple):
    """A batch whose kernels are compiled.

    ``a_length`` and ``b_length`` are the lengths of the longest sentences. Layout "capacity" is that of rows which
    sentences may not fill. Layout "bilstm" is the recurrence, with ``width`` units per direction, "dropout" is
    dropout, "words" the embedding's gradient, and "loss" is cross entropy of ``width`` labels; their kernels do not
    depend on the lengths.
    """

    arithmetic: str
    a_length: int
    b_length: int
    layout: str = "rows"
    width: int = 600
    pairs: int = 32
    candidate: runtime.Config | None = None  # instead of the entry of the tables
    kernel: str = ""  # the candidate's; empty for all


class Resources(NamedTuple):
    case: Case
    kernel: str
    config: str
    target: str
    shared: int
    registers: int
    spilled: int
    widest_load: int
    widest_store: int
    in_flight: int | None  # bytes; None if the kernel was not disassembled

    @property
    def problem(self) -> str | None:
        limit = SHARED_MEMORY[self.target]
        if self.shared > limit:
            return f"{self.shared} bytes of shared memory, but {self.target} has {limit}"
        if self.spilled:
            return f"spills {self.spilled} bytes of registers"
        # In a small tile a thread may get less than 16 bytes, but it should get more than one element.
        if self.case.width % 8 == 0 and min(self.widest_load, self.widest_store) < 8:
            return f"aligned rows are loaded {self.widest_load} and stored {self.widest_store} bytes at a time"
        return None

    def __str__(self) -> str:
        case = self.case
        sizes = f"{case.a_length:>4} x {case.b_length:<4} {case.layout:<7} D={case.width:<5} B={case.pairs:<5}"
        figures = cuda_resources.table_cells(self.shared, self.registers, self.spilled)
        figures += f" {self.widest_load:>3}-byte loads {self.widest_store:>3}-byte stores"
        figures += "" if self.in_flight is None else f" {self.in_flight:>7} in flight"
        return (
            f"{self.target:<7} {case.arithmetic:<5} {sizes} {self.kernel:<20} {self.config:<44} {figures} "
            f"{self.problem or 'fits'}"
        )


def default_cases() -> list[Case]:
    """All tiles that the selector picks, and many tiles, on packed rows of ESIM's width; some also on padded batches.

    fp16 is skipped, because its kernels differ from bf16's only in the name of the products.
    """
    tiles = list(itertools.combinations_with_replacement(kernels.TILES[::-1], 2))
    arithmetics = [arithmetic for arithmetic in ARITHMETIC if arithmetic != "fp16"]
    packed = [Case(arithmetic, *lengths) for arithmetic in arithmetics for lengths in [*tiles, (200, 200)]]
    packed += [
        Case(arithmetic, *lengths, "capacity") for arithmetic in arithmetics for lengths in [*tiles[-3:], (200, 200)]
    ]
    padded = [Case("bf16", *lengths, layout) for lengths in [(32, 16), (200, 200)] for layout in ("lengths", "mask")]
    recurrence = [Case(arithmetic, 16, 16, "bilstm", 300) for arithmetic in arithmetics]
    masks = [Case(arithmetic, 16, 16, "dropout", 2400) for arithmetic in ("bf16", "ieee")]
    losses = [Case(arithmetic, 16, 16, "loss", labels) for arithmetic in ("bf16", "ieee") for labels in (3, 1000)]
    return packed + padded + recurrence + masks + losses + [Case("ieee", 16, 16, "words", 300)]


def candidates() -> list[Case]:
    """Those of benchmarks/sweep.py, for batches of which each pair gets one program."""
    return [
        Case("bf16" if arithmetic == "half" else arithmetic, a, b, pairs=1024, candidate=config, kernel=kernel)
        for (kernel, arithmetic, a, b), configs in kernels.CANDIDATES.items()
        for config in configs
    ]


def other_cases() -> list[Case]:
    """fp16, more padded layouts, odd and large widths, and batches that split differently."""
    lengths = [(16, 16), (32, 16), (64, 64), (200, 100)]
    return [
        case
        for arithmetic, (a, b) in itertools.product(ARITHMETIC, lengths)
        for case in (
            Case(arithmetic, a, b, "lengths"),
            Case(arithmetic, a, b, "mask"),
            Case(arithmetic, a, b, width=601),
            Case(arithmetic, a, b, width=64),
            Case(arithmetic, a, b, width=2048),
            Case(arithmetic, a, b),
            Case(arithmetic, a, b, pairs=1),
            Case(arithmetic, a, b, pairs=1024),
        )
    ]


def launches(case: Case) -> list[runtime.Launch]:
    """The launches of forward and backward, planned on meta tensors."""
    if case.layout == "bilstm":
        return _recurrence(case)
    if case.layout == "dropout":
        return _dropout(case)
    if case.layout == "loss":
        return _loss(case)
    if case.layout == "words":
        return _words(case)

    def new(*shape, dtype=torch.int64):
        return torch.empty(*shape, dtype=dtype, device="meta")

    def side(length):
        dtype, mask = ARITHMETIC[case.arithmetic], None
        if case.layout in ("rows", "capacity"):
            x = new(case.pairs * length, case.width, dtype=dtype)
            return kernels.Side(Tokens(x, new(case.pairs), new(length), new(case.pairs), None, 0), length, 0, length)
        if case.layout == "mask":
            mask = new(case.pairs, length, dtype=torch.bool)
        x = new(case.pairs, length, case.width, dtype=dtype)
        tokens = Tokens(x, None, None, None if mask is not None else new(case.pairs), mask, x.stride(1))
        return kernels.Side(tokens, length, x.stride(0), length)

    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.arithmetic == "tf32" else "ieee"
    # The plan of a small batch depends on the GPU's size, but only in how often a loop runs.
    runtime.multiprocessors = lambda _: 132
    a, b = side(case.a_length), side(case.b_length)
    x, filled = a.tokens.x, new(1) if case.layout == "capacity" else None
    table, entry = kernels.ONE_TILE, {}
    if case.candidate:
        table = table if case.candidate.block_k else kernels.ON_CHIP
        arithmetic = "half" if x.element_size() == 2 else case.arithmetic
        entry = {(case.kernel, arithmetic, a.tile, b.tile): case.candidate}
    with mock.patch.dict(table, entry):
        planned = kernels.plan_forward(a, b, x, x, filled) + kernels.plan_backward(a, b, x, x, x, x, filled)
    return [launch for launch in planned if launch.kernel.__name__ == (case.kernel or launch.kernel.__name__)]


def _recurrence(case: Case) -> list[runtime.Launch]:
    H, dtype = case.width, ARITHMETIC[case.arithmetic]
    vector, sentences = 16 // dtype.itemsize, 2 * case.pairs
    gates = torch.empty(sentences * case.a_length, 8 * H, dtype=dtype, device="meta")
    weights = gates.new_empty(2, 4 * H, -(-H // vector) * vector)
    first_row, y = gates.new_empty(case.a_length + 1, dtype=torch.int64), gates.new_empty(len(gates), 2 * H)
    c = torch.empty_like(y, dtype=torch.float32)
    precision = "tf32" if case.arithmetic == "tf32" else "tf32x3"
    of_direction = [torch.empty(4 * H, width, device="meta") for width in (H, H, 1, 1)]
    return [
        lstm_weights.plan(*of_direction * 2, gates.new_empty(8 * H, H), gates[0], weights),
        bilstm.plan_forward(gates, weights, first_row, y, c, sentences, precision),
        bilstm.plan_backward(y, y, c, gates, weights, first_row, gates, y, sentences, precision),
    ]


def _dropout(case: Case) -> list[runtime.Launch]:
    """Without an activation, with either, and the gradient of the costlier one."""
    x = torch.empty(2 * case.pairs * case.a_length, case.width, device="meta")
    y, key, sentence = x.to(ARITHMETIC[case.arithmetic]), x.new_empty(2, dtype=torch.int64), x[:, 0].long()
    forward = [(x, None, key, sentence, y, None), (y, None, key, None, y, "relu"), (y, None, key, None, y, "tanh")]
    launches = [*forward, (y, y, key, None, y, "tanh")]
    return [dropout.plan(*tensors, 0, 2**31, activation) for *tensors, activation in launches]


def _loss(case: Case) -> list[runtime.Launch]:
    logits = torch.empty(case.pairs, case.width, dtype=ARITHMETIC[case.arithmetic], device="meta")
    labels, weights = logits[:, 0].long(), logits[0].float()
    given = logits, labels, weights, 0.1
    return [
        cross_entropy.plan_forward(*given, weights[0], labels[0]),
        cross_entropy.plan_backward(weights[0], *given, logits),
    ]


def _words(case: Case) -> list[runtime.Launch]:
    grad = torch.empty(2 * case.pairs * case.a_length, case.width, device="meta")
    numbers = torch.empty(len(grad) + 1, dtype=torch.int64, device="meta")
    return [embedding.plan(grad, grad, numbers[1:], numbers[1:], numbers)]


def compile_for(case: Case, planned: runtime.Launch, target: str, disassembled: bool = False) -> Resources:
    """Compile a launch like a call would, with pointers aligned like an allocator's."""
    names = planned.kernel.arg_names
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def describe(value, path):
        if isinstance(value, torch.Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return f"*{_TYPES[value.dtype]}"
        if isinstance(value, Tokens):
            return Tokens(*(describe(field, (*path, i)) for i, field in enumerate(value)))
        if value is None:
            constants[path] = None
            return "constexpr"
        return "i32"

    for i, value in enumerate(planned.arguments):
        signature[names[i]] = describe(value, (i,))
    for name, value in planned.constants.items():
        signature[name] = "constexpr"
        constants[(names.index(name),)] = value
    source = ASTSource(planned.kernel, signature, constants, attributes)
    log = io.StringIO()
    # With a new cache, because ptxas reports nothing about cached kernels.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(log):
        triton.knobs.cache.dir = folder
        triton.knobs.nvidia.dump_ptxas_log = True
        gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
        compiled = triton.compile(source, target=gpu, options=planned.options)
    ptxas = log.getvalue()
    if "Used" not in ptxas:
        raise RuntimeError(f"ptxas reported nothing about {planned.kernel.__name__}: {ptxas!r}")
    registers, spilled = cuda_resources.registers_and_spills(ptxas)
    shown = ("A_TILE", "B_TILE", "TILE", "GROUP", "BLOCK_K", "BLOCK_D", "BLOCK_H", "SPLITS", "ACTIVATION")
    parts = [f"{name.lower()}={planned.constants[name]}" for name in shown if name in planned.constants]
    config = " ".join(part.replace("block_", "").replace("_tile", "") for part in parts)
    warps = planned.options["num_warps"]
    programs = _programs(target, warps, registers, compiled.metadata.shared)
    return Resources(
        case,
        planned.kernel.__name__,
        f"{config} warps={warps} stages={planned.options['num_stages']}",
        target,
        compiled.metadata.shared,
        registers,
        spilled,
        _widest(r"(?:ld\.global|cp\.async\.c[ag]\.shared\.global)", compiled.asm["ptx"]),
        _widest(r"st\.global", compiled.asm["ptx"]),
        32 * warps * _in_flight(_sass(compiled)) * programs if disassembled else None,
    )


def _programs(target: str, warps: int, registers: int, shared: int) -> int:
    """How many programs run on a multiprocessor at the same time."""
    by_registers = REGISTERS // (32 * warps * (-(-registers // 8) * 8))
    by_shared = (SHARED_MEMORY[target] + RESERVED) // (shared + RESERVED)
    return min(by_registers, by_shared, THREADS[target] // (32 * warps))


def _sass(compiled: Any) -> str:
    # Triton runs cuobjdump, which warns about every kernel for GPUs older than 9.0.
    silent = partial(subprocess.check_output, stderr=subprocess.DEVNULL)
    with mock.patch.object(subprocess, "check_output", silent):
        return compiled.asm["sass"]


def _in_flight(sass: str) -> int:
    """The most bytes that a thread has asked of global memory and not waited for, with every instruction run once.

    A load names the barrier that its arrival releases, and each instruction the barriers (bits) that it waits for.
    Asynchronous copies are counted in groups, of which an instruction leaves the latest few to arrive.
    """
    loads, groups, most = dict.fromkeys("012345", 0), [0], 0
    for line in re.finditer(r"^(\S\S):[^:]*:(.):[^:]*:\S+\s+(.*)", sass, re.MULTILINE):
        waits, barrier, instruction = line.groups()
        if waits != "--":
            loads = {name: 0 if int(waits, 16) >> int(name) & 1 else moved for name, moved in loads.items()}
        if copied := re.search(r"\b(LDG|LDGSTS)\.E\S*?(?:\.(U8|S8|U16|64|128))?(?= )", instruction):
            moved = {"U8": 1, "S8": 1, "U16": 2, "64": 8, "128": 16}.get(copied[2], 4)
            if copied[1] == "LDGSTS":
                groups[-1] += moved
            elif barrier in loads:
                loads[barrier] += moved
        elif "LDGDEPBAR" in instruction:
            groups.append(0)
        elif left := re.search(r"\bDEPBAR\.LE SB0, (\w+)", instruction):
            groups = groups[-int(left[1], 16) - 1 :]
        most = max(most, sum(loads.values()) + sum(groups))
    return most


def _widest(instruction: str, ptx: str) -> int:
    """Bytes moved by the widest of these instructions."""
    widest = 0
    for line in re.findall(rf"{instruction}.*", ptx):
        if copied := re.search(r"\], 0x([0-9a-f]+)|\], (\d+)", line):
            bytes_moved = int(copied[1], 16) if copied[1] else int(copied[2])
        elif vector := re.search(r"(?:\.v(\d))?\.[bfsu](\d+)\b", line):
            bytes_moved = int(vector[1] or 1) * int(vector[2]) // 8
        else:
            continue
        widest = max(widest, bytes_moved)
    return widest


def resources(task: tuple[Case, int, str], disassembled: bool) -> Resources:
    case, number, target = task
    return compile_for(case, launches(case)[number], target, disassembled)


def compile_all(cases: list[Case], targets: list[str], disassembled: bool, jobs: int) -> list[Resources]:
    different: dict[str, tuple[Case, int]] = {}
    for case in cases:
        for number, planned in enumerate(launches(case)):
            kernel = f"{case.arithmetic} {case.layout} {planned.kernel.__module__} {planned.kernel.__name__}"
            given = [value is not None for value in planned.arguments]
            different.setdefault(f"{kernel} {given} {planned.constants} {planned.options}", (case, number))
    tasks = [(*task, target) for target in targets for task in different.values()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(resources, disassembled=disassembled), tasks))


def compile_cuda(targets: list[str], jobs: int) -> list[cuda_resources.Resources]:
    """What the kernels of csrc/bilstm_cuda*.cu need on each target; nothing without nvcc."""
    if not shutil.which("nvcc"):
        return []
    listed = cuda_resources.variants()
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda target: cuda_resources.resources(target, SHARED_MEMORY[target], listed), targets)
        return [*itertools.chain.from_iterable(found)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compiles the GPU kernels for all supported GPUs; needs none.")
    parser.add_argument(
        "--target", nargs="+", choices=SHARED_MEMORY, help="default: all, but Triton's kernels not for 12.0"
    )
    parser.add_argument("--all", action="store_true", help="also candidates, other sizes, bytes in flight")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    cases = default_cases() + (candidates() + other_cases() if options.all else [])
    for_triton, for_cuda = options.target or DEFAULT_TARGETS, options.target or list(SHARED_MEMORY)
    found = [*compile_all(cases, for_triton, options.all, options.jobs), *compile_cuda(for_cuda, options.jobs)]
    for result in found:
        print(result)
    problems = sum(result.problem is not None for result in found)
    print(f"Triton {triton.__version__}: {len(found)} kernels for {' '.join(for_cuda)}, {problems} do not fit")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
