"""What the persistent BiLSTM's CUDA kernels need of a GPU, and how long a time step should take; needs nvcc.

``kernel_resources.py`` prints them. The prediction adds up, for one block: the issue of all instructions or the tensor
cores' work, whichever takes longer; weights read from shared memory; what comes from other blocks; and latencies that
nothing hides. The rates were recalled or estimated, not measured.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
FORMATS = ["bf16", "fp16", "tf32", "tf32x3"]  # in the order of the enumeration in bilstm_cuda.h
CLOCK = {"sm_80": 1.41, "sm_86": 1.7, "sm_89": 2.5, "sm_90": 1.755, "sm_100": 1.9, "sm_120": 2.4}  # GHz
MMA = 6.5  # clocks of a scheduler's tensor core for a product [16, 8 words] * [8 words, 8]
SHARED = 128  # bytes per clock from shared memory
FROM_CLUSTER, CLUSTER_LATENCY = 11.4, 680  # bytes per clock into a block; clocks
FROM_L2, L2_LATENCY = 48, 1800  # three round trips to the L2 cache
# Bytes of registers that a step may store and load again. For 64 sentences a thread has up to eight cells besides its
# weights; in other kernels it is a few addresses.
MOST_SPILLED = {8: 100, 16: 100, 64: 200}
_LISTING = """
#include <cstdio>
#include "bilstm_cuda.h"
using namespace esim_fast;
template <typename Variants> void list(const char* pass, int format, const Variants& variants) {
  for (const auto& v : variants) {
    std::printf("%s %d %d %d %d %d %d %d\\n", pass, format, v.wide, v.cluster, v.sentences, v.threads, v.most_groups,
                v.shared_bytes);
  }
}
int main() {
  for (int format = 0; format < 4; ++format) {
    for (bool wide : {false, true}) {
      list("forward", format, forward_variants(Format{format}, wide));
      list("backward", format, backward_variants(Format{format}, wide));
    }
  }
}
"""


class Variant(NamedTuple):
    """A kernel, as the lists in csrc describe it."""

    direction: str
    format: str
    wide: bool
    cluster: bool
    sentences: int
    threads: int
    groups: int  # of 8 units in a block
    shared: int

    @property
    def key(self) -> tuple:
        return self[:5]

    def exists(self, target: str) -> bool:
        """Whether the kernel has a body there, as ``kCompiled`` in bilstm_cuda_team.h says."""
        clusters = int(target.removeprefix("sm_")) >= 90
        return clusters if self.cluster else self.wide or not clusters


class Resources(NamedTuple):
    """A kernel for one target."""

    variant: Variant
    target: str
    most_shared: int
    registers: int
    spilled: int  # bytes that the kernel stores and loads, once or in each step
    in_steps: int  # of these, in each time step
    clocks: float  # that a step should take, with 300 or 512 units

    @property
    def gap(self) -> str | None:
        """Why the kernel is not offered there."""
        if self.variant.shared <= self.most_shared:
            return None
        return f"not offered: {self.variant.shared} bytes of shared memory, but {self.target} has {self.most_shared}"

    @property
    def problem(self) -> str | None:
        if self.gap is None and self.in_steps > MOST_SPILLED[self.variant.sentences]:
            return f"spills {self.in_steps} bytes of registers in each time step"
        return None

    def __str__(self) -> str:
        v = self.variant
        where = f"{'cluster' if v.cluster else 'grid':<7} H<={512 if v.wide else 320}"
        sizes = f"{v.format:<6} {v.direction:<8} {where} {v.sentences:>2} sentences {v.threads} threads"
        figures = f"{table_cells(v.shared, self.registers, self.spilled)} {self.in_steps:>4} in each step"
        verdict = self.gap or self.problem or f"{self.clocks / CLOCK[self.target] / 1000:.2f} µs predicted for a step"
        return f"{self.target:<7} {sizes} {figures}  {verdict}"


def table_cells(shared: int, registers: int, spilled: int) -> str:
    return f"{shared:>7} shared {registers:>4} registers {spilled:>6} spilled"


def variants(sources: Path = SOURCES) -> list[Variant]:
    """The kernels in the lists of csrc, from a program that prints them."""
    with tempfile.TemporaryDirectory() as folder:
        listing, program = Path(folder, "listing.cpp"), Path(folder, "listing")
        listing.write_text(_LISTING)
        files = [listing, *(sources / f"bilstm_cuda_{direction}.cu" for direction in ("forward", "backward"))]
        # Kernels for 7.5 are empty, so this is fast.
        _nvcc("-arch=sm_75", f"-I{sources}", *map(str, files), "-o", str(program))
        lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for line in lines:
        direction, *numbers = line.split()
        form, wide, cluster, *rest = map(int, numbers)
        found.append(Variant(direction, FORMATS[form], bool(wide), bool(cluster), *rest))
    return found


def resources(target: str, most_shared: int, listed: list[Variant], sources: Path = SOURCES) -> list[Resources]:
    """Compile all kernels for a target; list those that have a body there."""
    found = []
    for direction in sorted({variant.direction for variant in listed}):
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder, "kernels.cubin")
            source = str(sources / f"bilstm_cuda_{direction}.cu")
            log = _nvcc(f"-arch={target}", "-cubin", "-Xptxas=-v", source, "-o", str(cubin))
            code = _machine_code(cubin)
        used = {}
        for part in log.split("Compiling entry function '")[1:]:
            used[_key(part)] = registers_and_spills(part)
        for variant in listed:
            if variant.direction == direction and variant.exists(target):
                steps = _steps(code[variant.key], variant)
                in_steps = round(4 * sum(count for i, count in steps if i.opcode.startswith(("STL", "LDL"))))
                found.append(
                    Resources(variant, target, most_shared, *used[variant.key], in_steps, _clocks(steps, variant))
                )
    return found


def registers_and_spills(log: str) -> tuple[int, int]:
    """The registers of a kernel, and the bytes that it spills and reloads, from the report of ptxas."""
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return int(re.search(r"Used (\d+) registers", log)[1]), int(spilled[1]) + int(spilled[2])


def _nvcc(*arguments: str) -> str:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    done = subprocess.run([nvcc, "-std=c++20", "-O3", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed:\n{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def _key(symbol: str) -> tuple:
    """The kernel that a mangled name describes."""
    found = re.search(
        r"(Forward|Backward)ConfigINS_(?:4(Bf16|Fp16)|4Fp32ILi([13])EE)ELb([01])ELb([01])ELi(\d+)E(?:Li(\d+)E)?", symbol
    )
    direction, half, products, cluster, wide, tiles, passes = found.groups()
    form = half.lower() if half else "tf32" if products == "1" else "tf32x3"
    return direction.lower(), form, wide == "1", cluster == "1", 8 * int(tiles) * int(passes or 1)


class Instruction(NamedTuple):
    opcode: str
    text: str
    target: str | None  # of a branch


def _machine_code(cubin: Path) -> dict[tuple, list[Instruction | str]]:
    """The instructions of each kernel, with labels between them."""
    tool = triton.knobs.nvidia.nvdisasm.path
    text = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=True).stdout
    kernels = {}
    for section in re.split(r"\.section\s+\.text\.", text)[1:]:
        lines: list[Instruction | str] = []
        for line in section.splitlines():
            if label := re.match(r"\s*(\.L_\w+):", line):
                lines.append(label[1])
            elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+((?:@!?U?P\w+\s+)?([\w.]+)[^;]*);", line):
                branch = re.search(r"`\((\.L_\w+)\)", found[1])
                lines.append(Instruction(found[2], found[1], branch[1] if branch else None))
        kernels[_key(section[:1000])] = lines
    return kernels


def _steps(code: list[Instruction | str], variant: Variant) -> list[tuple[Instruction, float]]:
    """The instructions of the loop over time steps, and how often a warp executes each in a step."""
    labels = {label: n for n, label in enumerate(code) if isinstance(label, str)}
    instructions = [(n, i) for n, i in enumerate(code) if isinstance(i, Instruction)]
    products = [n for n, i in instructions if i.opcode.startswith("HMMA")]
    loops = [(labels[i.target], n) for n, i in instructions if labels.get(i.target or "", n) < n]
    with_products = sorted(
        (loop for loop in loops if loop[0] < products[0] and products[-1] < loop[1]), key=lambda loop: loop[1] - loop[0]
    )
    # A step tells the other blocks something once; a loop inside of it may have a part of the products.
    signal = "SYNCS.ARRIVE" if variant.cluster else "RED"
    signals = [n for n, i in instructions if i.opcode.startswith(signal)]
    step = next(loop for loop in with_products if any(loop[0] < n < loop[1] for n in signals))
    inner, again = with_products[0], _products(variant) / len(products)
    return [
        (i, again if inner != step and inner[0] <= n <= inner[1] else 1.0)
        for n, i in instructions
        if step[0] <= n <= step[1]
    ]


def _depth(variant: Variant) -> int:
    """Tiles of weights that a warp has along the depth of its products, for one tile of rows."""
    words = variant.groups * 8 * (16 if variant.wide else 8) // (1 if "tf32" in variant.format else 2)
    return words // 8 // 4 if variant.direction == "forward" else words * 4 // 8 // (16 if variant.wide else 8)


def _products(variant: Variant) -> int:
    """Products of tiles that a warp makes in a step."""
    rows = 2 if variant.direction == "forward" or variant.wide else 1
    return _depth(variant) * rows * variant.sentences // 8 * (3 if variant.format == "tf32x3" else 1)


def _clocks(steps: list[tuple[Instruction, float]], variant: Variant) -> float:
    """Predict the clocks of a step with 300 or 512 units."""
    warps = variant.threads // 32 / 4  # of a scheduler
    if variant.direction == "forward":
        # After the last named barrier, only warps that finish a tile go on.
        barriers = [n for n, (i, _) in enumerate(steps) if i.opcode.startswith("BAR.SYNC") and "0x80" in i.text]
        finishing = -(-variant.groups * min(variant.sentences // 8, 2 if variant.sentences == 64 else 4) // 4)
        issue = sum(count * (warps if n <= barriers[-1] else finishing) for n, (_, count) in enumerate(steps))
    else:
        issue = warps * sum(count for _, count in steps)
    units, blocks = (512, 16) if variant.wide else (300, 8)
    size = 4 if "tf32" in variant.format or variant.direction == "backward" else 2
    received = units * size * variant.sentences * (blocks - 1) // blocks
    weights = sum(count for i, count in steps if i.opcode == "LDS.128") * variant.threads * 16 / SHARED
    rate, latency = (FROM_CLUSTER, CLUSTER_LATENCY) if variant.cluster else (FROM_L2, L2_LATENCY)
    return max(issue, MMA * warps * _products(variant), weights) + received / rate + latency
