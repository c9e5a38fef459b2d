"""Drafts: hidden names beside a file or folder, to write or remove it under, that say which process they are of.

A process that is killed leaves them behind, and so does one whose disk can't be written to any more. The next process
that comes by removes those of processes that are gone.
"""

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

STALE_SECONDS = 3600.0
"""An older draft was left behind, where its process can't be looked up: on another machine, or without /proc."""
_PATTERN = re.compile(r"\.anomaly-([0-9a-f]*)-(\d+)-(\d+)-[0-9a-f]+\.partial")
_CURRENT_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
_START = 19  # field of /proc/<pid>/stat behind the name: when a process started, in ticks since the machine did


def aside(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process has, to write or remove it under.

    It is short, as `path` may be as long as can be. What others left in the folder is removed, when a process first
    comes by.
    """
    folder = path.parent.absolute()
    if folder not in _tidied:
        _tidied.add(folder)
        tidy(folder)
    pid = os.getpid()
    return path.with_name(f".anomaly-{_machine()}-{pid}-{_started(pid) or 0}-{secrets.token_hex(8)}.partial")


def tidy(folder: Path) -> None:
    """Remove the drafts in a folder whose process is gone."""
    for draft in folder.glob(".anomaly-*.partial"):
        with suppress(OSError):  # another process may tidy too
            if _is_left(draft):
                (shutil.rmtree if draft.is_dir() and not draft.is_symlink() else os.unlink)(draft)


_tidied: set[Path] = set()


def exchange(one: Path, other: Path) -> bool:
    """Let two folders swap their names in one step, so that neither name is free in between; False where none can."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # Linux has it
        return False
    here, names = ctypes.c_int(_CURRENT_FOLDER), [ctypes.c_char_p(os.fsencode(path)) for path in (one, other)]
    if libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    if ctypes.get_errno() in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):  # the file system doesn't
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _is_left(draft: Path) -> bool:
    name = _PATTERN.fullmatch(draft.name)
    if name and name[1] and name[1] == _machine():
        return _is_gone(int(name[2]), int(name[3]))
    return time.time() - draft.lstat().st_mtime > STALE_SECONDS


def _is_gone(pid: int, started: int) -> bool:
    """Whether the process of this number that started then has ended; another one may have its number by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's
        return False
    return _started(pid) not in (started, None)


def _started(pid: int) -> int | None:
    """Return when a process started; 0 where it has ended and nobody waited for it, None where that is hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[_START])


@cache
def _machine() -> str:
    """Return what tells this machine, since it started, and this container from others; "" where that is hidden."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
