"""What the path of a file says: its order among others, its suffix, whether it leads out of the source."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath


def natural_key(path: str) -> str:
    """Sort key by which image2 comes before image10; runs of digits compare as numbers.

    The number of digits, after a zero byte, which no path has, precedes the digits; the path itself, at the end,
    distinguishes image01 from image1. One string a path: a list of its pieces takes ten times the memory, for every
    file at once.
    """
    return re.sub(r"0*([0-9]+)", lambda run: f"\0{chr(len(run[1]))}{run[1]}", path) + f"\0\0{path}"


def safe_name(name: str) -> str:
    """Make a short name that is safe in file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:40] or "films"


def film_suffix(name: str) -> str:
    """Return the lower-case suffix of a file, `.nii.gz` and `.dcm.gz` in whole."""
    packed = next((suffix for suffix in (".nii.gz", ".dcm.gz") if name.lower().endswith(suffix)), None)
    return packed or PurePosixPath(name).suffix.lower()


def is_hidden(name: str) -> bool:
    """Whether a name is that of a hidden file, or of what macOS leaves in archives."""
    return name.startswith(".") or name == "__MACOSX"


def leads_out(name: str) -> bool:
    """Whether a relative path could mean a place outside: `..`, absolute, or a Windows path of any sort."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or bool(PureWindowsPath(name).drive)
