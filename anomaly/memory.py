"""The memory of this process: how much there is for it, and that what it frees is kept for what comes next."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's mallopt."""
GROUPS = Path("/sys/fs/cgroup")

_granted: int | None = None  # of what was free when it was shared; none: all


def keep_freed_memory() -> None:
    """Let the allocator of this process keep what is freed rather than give it back to the system (glibc; else as is).

    Unasked, glibc gives large tensors back and fetches them anew, page by page, in every training step: a third of a
    DCGAN's at 512 px, an eighth of a CAE's. Memory at its peak grows by up to 17 %.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def share_memory(processes: int) -> None:
    """Tell that so many processes, which start together, count on what is free now alike, this one among them."""
    global _granted
    left = _left()
    _granted = None if left is None else left // processes


def free_memory() -> int | None:
    """Return the bytes that are left for this process: of the machine, or of the narrowest control group it is in where
    that has less, at most its share of what was shared; None where the system doesn't say.
    """
    if libc := _glibc():
        libc.malloc_trim(0)  # what was kept is as good as free
    left = _left()
    return left if left is None or _granted is None else min(left, _granted)


def _glibc() -> Any:
    """Return the C library, or None where it is another one."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def _left() -> int | None:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return max(0, min([free, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Give the bytes left in each control group of this process that has a limit, of either version."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers == "":
            root, limit, current, prefix = GROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, limit, current, prefix = GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        own = root / path.lstrip("/")
        # In a container the path may be the host's, of which only the own group, as the root, is to be seen.
        for group in (own, *own.parents):
            with suppress(OSError, KeyError, ValueError):  # not there, or without a limit ("max")
                allowed, used = (int((group / name).read_text()) for name in (limit, current))
                kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # Files read are counted, and given back.
                yield allowed - used + sum(int(kept[f"{prefix}{age}_file"]) for age in ("active", "inactive"))
            if group == root:
                break
