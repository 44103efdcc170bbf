"""Count the processors that this process may use; containers often get fewer than the machine has."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Lines in /proc/self/cgroup: controllers (empty in version 2) and path. In mountinfo: root, mount point and version.
_GROUP = re.compile(r"^\d+:(.*?):(.*)$", re.MULTILINE)
_MOUNT = re.compile(r"^(?:\S+ ){3}(\S+) (\S+) .* - (cgroup2?) ", re.MULTILINE)


def bound_processors() -> int:
    """Return the number of processors in this process's CPU affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_processors(process: str | os.PathLike[str] = "/proc/self") -> int:
    """Return the minimum of the machine's processors, the CPU affinity and, on Linux, the quota of the control groups.

    A quota of 1.5 processors counts as 2: two threads can use all of that time, one thread only two thirds.

    Args:
        process: the folder in which the kernel describes the process.
    """
    counts = [os.cpu_count() or 1, bound_processors()]
    for group in _groups(Path(process)):
        # One file in version 2, two in version 1; "max" or -1 means no limit.
        found = _text(group / "cpu.max") or f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
        try:
            quota, period = map(int, found.split())
        except ValueError:
            continue
        if quota > 0 and period > 0:
            counts.append(-(-quota // period))
    return min(counts)


def _groups(process: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that may limit this process's time, each followed by its parents."""
    paths = {}
    for controllers, path in _GROUP.findall(_text(process / "cgroup")):
        if not controllers or "cpu" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for root, place, version in _MOUNT.findall(_text(process / "mountinfo")):
        if version in paths:
            path = paths[version]
            inner = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
            yield from (Path(place, part) for part in (inner, *inner.parents))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except (OSError, ValueError):  # no such file, or an invalid path
        return ""
