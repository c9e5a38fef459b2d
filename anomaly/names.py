"""Names of files that a disk can hold."""

import hashlib
from pathlib import PurePosixPath

LONGEST_FILE, LONGEST_PATH, LONGEST_SUFFIX = 255, 2000, 16
"""Bytes: of the name of a file, by the file systems in use; of a path within a folder, half of what Linux takes; of a
suffix that is kept where a name is cut.
"""


def fitting(relative: str) -> str:
    """Return a relative path whose names a disk can hold: those of more than 255 bytes are cut, and end in a hash.

    The names of films come from archives too, where they may be of any length; the suffix stays.

    >>> fitting("a/b.png"), fitting("x" * 300 + ".dcm_heatmap.png")[-34:]
    ('a/b.png', 'xxxxxxxxxxxxx~832d6142e2c13c08.png')
    """
    parts = [_cut(name, LONGEST_FILE) for name in relative.split("/")]
    path = "/".join(parts)
    return path if len(path.encode()) <= LONGEST_PATH else _cut(relative.replace("/", "-"), LONGEST_FILE)


def _cut(name: str, limit: int) -> str:
    if len(name.encode()) <= limit:
        return name
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix.encode()) <= LONGEST_SUFFIX else ""
    end = f"~{hashlib.sha256(name.encode()).hexdigest()[:16]}{suffix}"
    return name.encode()[: limit - len(end.encode())].decode("utf-8", "ignore") + end
