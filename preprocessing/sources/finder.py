"""From what a table calls a file to the file: separators of Windows, absolute paths, other spellings, bare names."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from preprocessing import InputError
from preprocessing.sources.masks import split_path
from preprocessing.sources.paths import leads_out
from preprocessing.sources.storage import Archive, Store
from preprocessing.wording import counted


class Finder:
    r"""Finds the files that a table names, relative to the folder it lies in.

    `dir\a.png` is `dir/a.png` where there is no file of the former name. An absolute path must lie in the folder. Where
    there is no such file, it may be spelled in another normal form of Unicode or in other case, or be named without its
    folder or its suffix, or with folders above this one, if there is just one file that this can be.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._roots = [] if isinstance(store, Archive) else [root, root.resolve()]
        self._spellings: dict[str, list[str]] | None = None
        self._names: dict[str, list[str]] = defaultdict(list)
        self.by: Counter[str] = Counter()

    def relative(self, text: str, column: str) -> str:
        """Return the path within the folder that a cell means, whether or not there is a file."""
        if not text:
            raise InputError(f"an empty {column}")
        path = text.replace("\\", "/")
        if path != text and not leads_out(path) and self._store.find(text):
            return text
        for root in self._roots:
            if path.startswith("/") and PurePosixPath(path).is_relative_to(root.as_posix()):
                path = PurePosixPath(path).relative_to(root.as_posix()).as_posix()
        if leads_out(path):
            raise InputError(f"{column} {text!r} leads out of the manifest's folder; write it relative to that, with /")
        return PurePosixPath(path).as_posix()

    def find(self, text: str, column: str) -> tuple[str, bool]:
        """Return the path of a file within the folder, and whether there is one."""
        path = self.relative(text, column)
        if self._store.find(path):
            return path, True
        for spelled in (unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)):
            if self._store.find(spelled):
                self.by["another spelling"] += 1
                return spelled, True
        found = self._only(path)
        if found is None or not self._store.find(found):
            return path, False
        return found, True

    def _only(self, path: str) -> str | None:
        """Return the one file that a path can mean."""
        if self._spellings is None:
            self._spellings = defaultdict(list)
            for file in self._store.listing():
                self._spellings[_key(file)].append(file)
                folder, stem, suffix = split_path(file)
                if suffix:
                    self._names[_key(stem + suffix)].append(file)
                    self._names[_key(stem)].append(file)
                    if folder:
                        self._names[_key(folder + stem)].append(file)
        same = self._spellings.get(_key(path), [])
        if len(same) == 1:
            self.by["another spelling"] += 1
            return same[0]
        parts = path.split("/")
        for above in range(1, len(parts) - 1):
            below = [] if same else self._spellings.get(_key("/".join(parts[above:])), [])
            if len(below) == 1:
                self.by["the end of its path"] += 1
                return below[0]
        alike = [] if same else self._names.get(_key(path), [])
        if len(alike) == 1:
            self.by["name alone"] += 1
            return alike[0]
        return None

    def notes(self) -> list[str]:
        """Say which files were found by what."""
        return [f"{counted(number, 'file')} found by {how}" for how, number in self.by.items() if number]


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
