"""The number of usable processors: the machine's, the process's affinity and the container's quota."""

import os

import pytest

from esim_fast.processors import usable_processors

V2 = "0::{}\n", "30 24 0:27 {} {} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "5:cpu,cpuacct:{}\n4:cpuset:/elsewhere\n", "32 31 0:29 {} {} rw - cgroup cgroup rw,cpu,cpuacct\n"
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with eight processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("version", "group", "root", "files", "count"),
    [
        (V2, "/", "/", {"cpu.max": "300000 100000\n"}, 3),
        (V2, "/", "/", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        (V2, "/", "/", {"cpu.max": "10000 100000\n"}, 1),
        (V2, "/", "/", {"cpu.max": "9900000 100000\n"}, 8),
        (V2, "/", "/", {"cpu.max": "max 100000\n"}, 8),
        (V2, "/a/b", "/", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000", "cpu.max": "500000 100000"}, 4),
        (V2, "/docker/1", "/docker/1", {"cpu.max": "200000 100000"}, 2),  # in a container without a cgroup namespace
        (V2, "/other", "/docker/1", {"cpu.max": "200000 100000"}, 2),  # another group is mounted
        (V1, "/", "/", {QUOTA: "250000\n", PERIOD: "100000\n"}, 3),
        (V1, "/", "/", {QUOTA: "-1\n", PERIOD: "100000\n"}, 8),
        (V1, "/a/b", "/", {f"a/{QUOTA}": "50000", f"a/{PERIOD}": "50000", f"a/b/{QUOTA}": "-1", QUOTA: "-1"}, 1),
        (V1, "/docker/1", "/docker/1", {QUOTA: "200000", PERIOD: "100000"}, 2),
        *((V2, "/", "/", {"cpu.max": odd}, 8) for odd in ("", "1", "2 0", "-2 1", "0 1", "1 2 3", "1e5 1", "9" * 9999)),
    ],
)
def test_quotas(tmp_path, version, group, root, files, count):
    place = tmp_path / "mounted"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    (tmp_path / "cgroup").write_text(version[0].format(group))
    (tmp_path / "mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{version[1].format(root, place)}")
    assert usable_processors(tmp_path) == count


@pytest.mark.parametrize("content", [b"", b"\n::\n0:\n", b"\xff\0:/\n", b"0::/\0\n30 1 0:2 / \0 - cgroup2 x y\n"])
def test_odd_descriptions_are_no_limit(tmp_path, content):
    assert usable_processors(tmp_path) == 8
    for name in ("cgroup", "mountinfo"):
        (tmp_path / name).write_bytes(content + V2[0].format("/\0").encode() + V2[1].format("/", "/\0").encode())
    assert usable_processors(tmp_path) == 8


def test_affinity_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 6}, raising=False)
    assert usable_processors(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # like macOS
    assert usable_processors(tmp_path) == 8
