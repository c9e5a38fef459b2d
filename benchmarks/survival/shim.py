"""The library of shim.c: compiled when it is needed, and armed through a file that it maps."""

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
FOLDER, CONTROL = "SURVIVAL_FOLDER", "SURVIVAL_CONTROL"
_IDLE, _COUNT, _KILL, _FAIL = range(4)


class NoCompiler(Exception):
    """There is no C compiler, so that nothing can be disturbed."""


def compile_shim(folder: Path) -> Path:
    """Compile the library into a folder and return its path; raises NoCompiler where there is none or it fails."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler("no C compiler `cc` on the PATH; install one (Debian: gcc and libc6-dev)")
    library = folder / "shim.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        raise NoCompiler(f"{compiler} can't compile {SOURCE.name}: {' '.join(done.stderr.split())[:300]}")
    return library


def environment(library: Path, watched: Path, control: Path) -> dict[str, str]:
    """Return the environment of a process whose calls below `watched` are counted; `control` is created."""
    control.write_bytes(bytes(ctypes.sizeof(_Control)))
    return os.environ | {"LD_PRELOAD": str(library), FOLDER: str(watched), CONTROL: str(control)}


@dataclass(frozen=True)
class Fault:
    """What a failing call says."""

    error: int
    """errno."""
    lasting: bool
    """Whether all later calls fail as well."""
    short: bool = False
    """Whether a write first succeeds by half."""

    def __str__(self) -> str:
        name = errno.errorcode[self.error]
        return f"{'short write, then ' if self.short else ''}{name} {'from then on' if self.lasting else 'once'}"


FAULTS = (
    Fault(errno.ENOSPC, lasting=True),
    Fault(errno.EIO, lasting=False),
    Fault(errno.EROFS, lasting=True),
    Fault(errno.ENOSPC, lasting=True, short=True),
    Fault(errno.EDQUOT, lasting=False),
    Fault(errno.EIO, lasting=True),
    Fault(errno.ENOSPC, lasting=False),
    Fault(errno.EDQUOT, lasting=True, short=True),
)
"""Taken in turns."""


class _Control(ctypes.Structure):
    """`struct control` of shim.c."""

    _fields_ = (
        ("mode", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("lasting", ctypes.c_uint32),
        ("shortened", ctypes.c_uint32),
        ("chosen", ctypes.c_int64),
        ("calls", ctypes.c_int64),
        ("group", ctypes.c_int32),
        ("dead", ctypes.c_uint32),
        ("what", ctypes.c_char * 1024),
    )


class Shim:
    """The shim of this process and those it starts, if it was loaded with `environment`."""

    def __init__(self) -> None:
        with Path(os.environ[CONTROL]).open("r+b") as file:
            self._control = _Control.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(_Control)))

    @property
    def calls(self) -> int:
        """Calls since it was armed."""
        return int(self._control.calls)

    @property
    def what(self) -> str:
        """Name and path of the call that was disturbed, "" where none was."""
        return bytes(self._control.what).decode(errors="replace")

    def count(self) -> None:
        """From now on count."""
        self._arm(_COUNT)

    def kill(self, call: int, group: int) -> None:
        """From now on count, and at this call kill a process group, and what else is of its tree."""
        self._arm(_KILL, call, group=group)

    def fail(self, call: int, fault: Fault) -> None:
        """From now on count, and let this call fail."""
        self._arm(_FAIL, call, fault=fault)

    def disarm(self) -> None:
        """Let all calls pass."""
        self._control.mode = _IDLE

    def _arm(self, mode: int, call: int = 0, *, group: int = 0, fault: Fault | None = None) -> None:
        control = self._control
        control.chosen, control.calls, control.group, control.dead, control.what = call, 0, group, 0, b""
        if fault is not None:
            control.error, control.lasting, control.shortened = fault.error, fault.lasting, fault.short
        control.mode = mode
