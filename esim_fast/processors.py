"""How many processors this process may use: of a machine with many, a container often gets few."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Lines of Linux: controllers (none in version 2) and path; root, place and version.
_GROUP = re.compile(r"^\d+:(.*?):(.*)$", re.MULTILINE)
_MOUNT = re.compile(r"^(?:\S+ ){3}(\S+) (\S+) .* - (cgroup2?) ", re.MULTILINE)


def bound_processors() -> int:
    """How many processors this process is bound to, of all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_processors(process: str | os.PathLike[str] = "/proc/self") -> int:
    """The least of what the machine has, what this process is bound to and, in Linux, what its control groups grant.

    A quota of one and a half processors counts as two: threads on both get all of that time, a single one two thirds.

    Args:
        process: the folder in which the system describes it.
    """
    counts = [os.cpu_count() or 1, bound_processors()]
    for group in _groups(Path(process)):
        # A file in version 2, two in version 1; "max" or -1 is no limit.
        found = _text(group / "cpu.max") or f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
        try:
            quota, period = map(int, found.split())
        except ValueError:
            continue
        if quota > 0 and period > 0:
            counts.append(-(-quota // period))
    return min(counts)


def _groups(process: Path) -> Iterator[Path]:
    """Folders of the process's control groups that may limit its time, each followed by its parents."""
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
    except (OSError, ValueError):  # no such file, or no path
        return ""
