"""What is said of this process's memory, and that what it frees is kept."""

import subprocess
import sys
from pathlib import Path

import pytest

from anomaly import memory


@pytest.mark.parametrize(
    ("told", "files", "left"),
    [
        ("0::/a/b", {"a/memory.max": "900", "a/b/memory.max": "max"}, 900 - 500 + 30),
        ("0::/a/b", {"a/memory.max": "900", "a/b/memory.max": "700"}, 700 - 500 + 30),
        ("0::/", {"memory.max": "900"}, 900 - 500 + 30),
        ("0::/hosts/own", {"memory.max": "900"}, 900 - 500 + 30),  # in a container, whose root it is
        ("4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "800"}, 800 - 500 + 30),
        ("5:cpu,memory:/a", {"memory/memory.limit_in_bytes": "600"}, 600 - 500 + 30),
        ("0::/a", {}, 2**40),
        ("", {"memory.max": "900"}, 2**40),
    ],
)
def test_the_narrowest_control_group_counts(
    told: str, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        group = (tmp_path / name).parent
        group.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        old = "limit" in name
        (group / ("memory.usage_in_bytes" if old else "memory.current")).write_text("500")
        ages = [f"{'total_' * old}{age}_file {size}" for age, size in (("active", 10), ("inactive", 20))]
        (group / "memory.stat").write_text("\n".join(["anon 400", *ages]))
    read = Path.read_text
    given = {"/proc/self/cgroup": told, "/proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {2**30} kB"}
    monkeypatch.setattr(Path, "read_text", lambda path: given[str(path)] if str(path) in given else read(path))
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_granted", None)  # a test before this one may have shared what was free
    assert memory.free_memory() == left
    memory.share_memory(3)
    assert memory.free_memory() == left // 3


def test_where_the_system_says_nothing_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: "")
    assert memory.free_memory() is None


FREED = """
import resource
from anomaly.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        bytearray(64 << 20), bytearray(3 << 30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of glibc's is asked")
def test_freed_memory_is_not_fetched_page_by_page_again() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
