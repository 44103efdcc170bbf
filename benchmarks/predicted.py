"""What the machine code of a compiled Triton kernel predicts of its time, where no GPU has timed it.

Two limits, in seconds: issuing the instructions, and the latency of as many programs as run at once. They tell in which
order to try configurations, no more: nothing here is a measurement.
"""

import math
import re
import subprocess
import tempfile
from typing import Any, NamedTuple

import triton

from esim_fast.ops.triton.runtime import Launch

# An H100 as its data sheet and the CUDA Programming Guide have it.
MULTIPROCESSORS, SCHEDULERS, CLOCK = 132, 4, 1.7e9
WARPS, REGISTERS, SHARED, PROGRAMS = 64, 65536, 228 * 1024, 32  # of a multiprocessor
# Rough cycles of one warp: an instruction that depends on those before it, a barrier, and waiting for memory.
INSTRUCTION, BARRIER, MEMORY = 3.0, 30.0, 700.0
_LABEL = re.compile(r"^(\$L__BB\w+|\.L_\w+):")
_BRANCH = re.compile(r"\b(?:bra|BRA)\b.*?(\$L__BB\w+|\.L_\w+)")


class Code(NamedTuple):
    """What one program takes. Counts are of one warp, over all turns of the loops.

    Attributes:
        spills: instructions that move registers to memory and back.
        products: matrix products of the tensor cores, or without them fused multiply-adds.
        waits: for global memory, one after the other; loads that were issued turns ahead count in part.
    """

    warps: int
    registers: int
    shared: int
    spills: int
    instructions: float
    products: float
    barriers: float
    waits: float

    @property
    def occupancy(self) -> int:
        """Programs that a multiprocessor runs at once."""
        registers = self.warps * 32 * 8 * math.ceil(self.registers / 8)
        return min(PROGRAMS, WARPS // self.warps, REGISTERS // registers, SHARED // (self.shared + 1024))

    def limits(self, programs: int, multiprocessors: int = MULTIPROCESSORS) -> dict[str, float]:
        """Predicted seconds, by what may bind."""
        each = math.ceil(programs / multiprocessors)
        alone = INSTRUCTION * self.instructions + BARRIER * self.barriers + MEMORY * self.waits
        return {
            "issue": each * self.warps * self.instructions / SCHEDULERS / CLOCK,
            "latency": max(1.0, each / max(1, self.occupancy)) * alone / CLOCK,
        }


class Loop(NamedTuple):
    first: int
    last: int

    def holds(self, line: int) -> bool:
        return self.first <= line <= self.last


def examine(compiled: Any, planned: Launch) -> Code:
    """Reads the machine code of ``planned``, as ``kernel.warmup`` or ``triton.compile`` return it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return code_of(text, compiled.asm["ptx"], compiled.metadata.shared, planned)


def code_of(sass: str, ptx: str, shared: int, planned: Launch) -> Code:
    lines = sass.splitlines()
    weights = [0.0] * len(lines)
    turned = _turned(lines, ptx.splitlines(), turns_of(planned))
    for number, line in enumerate(lines):
        if re.match(r"\s+/\*[0-9a-f]+\*/", line) and not re.search(r"\bNOP\b", line):
            weights[number] = math.prod(turns for loop, turns in turned if loop.holds(number))

    def count(pattern: str | re.Pattern) -> float:
        return sum(weight for line, weight in zip(lines, weights, strict=True) if weight and re.search(pattern, line))

    return Code(
        planned.options["num_warps"],
        1 + max(int(number) for number in re.findall(r"\bR(\d+)", sass)),
        shared,
        sum(bool(re.search(r"\b(?:LDL|STL)\b", line)) for line in lines),
        sum(weights),
        count(r"\bHG?MMA") or count(r"\bFFMA"),
        count(r"\bBAR\.SYNC"),
        count(r"DEPBAR\.LE SB0") / planned.options["num_stages"]
        + sum(weight for number, weight in enumerate(weights) if _is_first_load(lines, number)),
    )


def turns_of(planned: Launch) -> list[int]:
    """How often the kernel's loops turn, in the order in which they begin."""
    constants, name = planned.constants, planned.kernel.__name__
    k = math.ceil(constants["D"] / constants["BLOCK_K"]) if "BLOCK_K" in constants else 0
    if "TILE" in constants:
        tiles = math.ceil(planned.arguments[3] / constants["TILE"])
        by_kernel = {"scores": [k], "products": [k], "backward_enhance": [], "backward_softmax": [tiles, tiles]}
        return by_kernel.get(name, [tiles])
    d = math.ceil(constants["D"] / constants["BLOCK_D"] / constants["SPLITS"])
    return [k, d] if name == "forward" else [k, d, d]


def loops(lines: list[str]) -> list[Loop]:
    """From a label to the last branch back to it, in the order in which they begin."""
    labels, found = {}, {}
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = number
        elif (branch := _BRANCH.search(line)) and branch[1] in labels and number > labels[branch[1]] + 1:
            found[branch[1]] = Loop(labels[branch[1]], number)
    return sorted(found.values())


def _turned(sass: list[str], ptx: list[str], turns: list[int]) -> list[tuple[Loop, float]]:
    """Loops of the machine code, and how often they turn: PTX has them all, and ptxas unrolls the short ones."""
    before, after = loops(ptx), loops(sass)
    pairs = list(zip(before, turns, strict=False))
    while len(pairs) > len(after):
        pairs.remove(min(pairs, key=lambda pair: pair[1]))
    in_ptx, in_sass = r"\bw?g?mma\.(?:sync|mma_async)", r"\bHG?MMA"
    if not any(re.search(in_ptx, line) for line in ptx):
        in_ptx, in_sass = r"\bfma\.rn\.f32", r"\bFFMA"

    def products(lines: list[str], pattern: str, loop: Loop) -> int:
        return sum(bool(re.search(pattern, line)) for line in lines[loop.first : loop.last])

    result = []
    for loop, (old, count) in zip(after, pairs, strict=False):
        nested = any(loop.first < other.first < loop.last for other in after)
        copies = products(sass, in_sass, loop) / max(1, products(ptx, in_ptx, old))
        result.append((loop, count if nested else count / max(1, round(copies))))
    return result


def _is_first_load(lines: list[str], number: int) -> bool:
    """Loads that follow each other are waited for together."""
    return "LDG." in lines[number] and not any("LDG." in line for line in lines[max(0, number - 12) : number])
