"""Where the bytes of a source are: a folder, a zip archive, or several of these."""

from __future__ import annotations

import copy
import lzma
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from preprocessing import InputError
from preprocessing.readers import MAX_BYTES, SUFFIXES
from preprocessing.sources.paths import film_suffix, is_hidden, leads_out

MAX_MANIFEST_BYTES = 2**26
"""A longer manifest, table of boxes or sidecar is refused."""


class Store(ABC):
    """Where the bytes are; `sizes` holds the bytes of every file that may be read, by relative path."""

    sizes: dict[str, int]

    def part(self, paths: Iterable[str]) -> Store:
        """Return a store of these files alone: what a worker process is sent stays small."""
        chosen = copy.copy(self)
        chosen.sizes = {path: self.sizes[path] for path in paths}
        return chosen

    @abstractmethod
    def find(self, relative: str) -> bool:
        """Whether there is such a file; from then on it can be read."""

    @abstractmethod
    def listing(self) -> Iterable[str]:
        """Return the paths of every visible file there is, whether it may be read or not."""

    @abstractmethod
    def stream(self, relative: str) -> IO[bytes]:
        """Open a file; damage raises OSError, zipfile.BadZipFile and the like."""

    def read(self, relative: str, limit: int = MAX_BYTES) -> bytes:
        """Read a file whole; `InputError` for one that is not listed, is gone, or has more than `limit` bytes."""
        if relative not in self.sizes:
            raise InputError(f"{relative}: not a file of this source")
        data = self.head(relative, limit + 1)
        if len(data) > limit:
            raise InputError(f"{relative}: more than {limit} bytes, the limit")
        return data

    def head(self, relative: str, size: int) -> bytes:
        """Read the first `size` bytes."""
        try:
            with self.stream(relative) as stream:
                return stream.read(size)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{relative}: cannot be read ({error})") from error


@dataclass
class Walk:
    """What a walk through a folder did not list: links not followed, or to what is listed already, special files, and
    files whose names are no text in the file system's encoding.
    """

    unfollowed: int = 0
    repeated: int = 0
    special: int = 0
    unreadable_names: int = 0


class Folder(Store):
    """Files below a folder."""

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root = root.resolve()
        self.sizes = {}
        self.follow_links = follow_links

    def walk(self) -> Walk:
        """List every visible file, so that it can be read.

        Links are followed only with `follow_links`, and add nothing where they lead to what is listed already, as in a
        loop. Raises `InputError` for a folder that cannot be listed, and for a link out to a film or a folder.
        """
        walk = Walk()
        seen = {self.root}
        links = self._list_below(self.root, walk, seen)
        while links and self.follow_links:
            place = links.pop()
            target = place.resolve()
            if target in seen or not any(is_hidden(part) for part in target.relative_to(self.root).parts):
                walk.repeated += 1
                continue
            seen.add(target)
            if target.is_dir():
                links += self._list_below(place, walk, seen)
            else:
                self._list(str(place), target.stat().st_size, walk)
        walk.unfollowed = len(links)
        return walk

    def _list_below(self, top: Path, walk: Walk, seen: set[Path]) -> list[Path]:
        """List the files below `top`; return the links there to what lies in the source."""
        folders, links = [top], []
        while folders:
            folder = folders.pop()
            try:
                entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
            except OSError as error:
                raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error
            for entry in entries:
                if entry.is_symlink():
                    place = Path(entry.path)
                    is_film = place.is_file() and film_suffix(entry.name) in SUFFIXES
                    if (place.is_dir() or is_film) and not self._within(place):
                        raise InputError(
                            f"{place}: a link out of the source; put the films themselves there, or name the folder "
                            "that holds both"
                        )
                    if self._within(place) and place.exists():
                        links.append(place)
                    else:
                        walk.special += 1
                elif entry.is_dir():
                    place = Path(entry.path)
                    if top != self.root:  # reached by a link, and perhaps by another one
                        if place.resolve() in seen:
                            walk.repeated += 1
                            continue
                        seen.add(place.resolve())
                    folders.append(place)
                elif entry.is_file():
                    self._list(entry.path, entry.stat().st_size, walk)
                else:
                    walk.special += 1
        return sorted(links, reverse=True)

    def _list(self, path: str, size: int, walk: Walk) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:  # bytes of another encoding, which neither a cache nor a table could hold
            walk.unreadable_names += 1
            return
        self.sizes[path[len(self.root.as_posix().rstrip("/")) + 1 :].replace(os.sep, "/")] = size

    def listing(self) -> list[str]:
        """Return the paths of every visible file, not reached by a link."""
        top = len(str(self.root)) + 1
        found = []
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not is_hidden(name)]
            found += [f"{folder}/{name}"[top:] for name in files if not is_hidden(name)]
        return [name.replace(os.sep, "/") for name in found]

    def find(self, relative: str) -> bool:
        """Whether there is such a file, not reached by a link that leads out."""
        place = self.root / relative
        try:
            if not (place.is_file() and self._within(place)):
                return False
            self.sizes[relative] = place.stat().st_size
        except (OSError, ValueError):  # a name too long, or with a null character
            return False
        return True

    def _within(self, place: Path) -> bool:
        return place.resolve().is_relative_to(self.root)

    def stream(self, relative: str) -> IO[bytes]:
        """Open a file; `InputError` for a link that leads out."""
        place = self.root / relative
        if not self._within(place):
            raise InputError(f"{relative}: a link that leads out of the source")
        return place.open("rb")


class Archive(Store):
    """Files of a zip archive, opened on first use in each process and never unpacked to disk."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.top = ""
        self.sizes = {}
        self.members: dict[str, tuple[str, int]] = {}  # name in the archive and bytes, also of what no record names
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: no readable zip archive ({error})") from error
        for entry in entries:
            self._list(entry)

    def _list(self, entry: zipfile.ZipInfo) -> None:
        relative = PurePosixPath(entry.filename)
        if leads_out(entry.filename):
            raise InputError(f"{self.path}: the name {entry.filename!r} leads out of the archive; pack it again")
        if entry.is_dir() or any(is_hidden(part) for part in relative.parts):
            return
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{self.path}: {entry.filename} is a link; pack the films themselves")
        if entry.flag_bits & 1:
            raise InputError(f"{self.path}: {entry.filename} is encrypted; pack it without a password")
        if relative.as_posix() in self.members:
            raise InputError(f"{self.path}: {entry.filename} is in it twice; pack it again")
        self.members[relative.as_posix()] = entry.filename, entry.file_size
        self.sizes[relative.as_posix()] = entry.file_size

    def find(self, relative: str) -> bool:
        """Whether there is such a file, below the folder that was entered."""
        if self.top + relative not in self.members:
            return False
        _, self.sizes[relative] = self.members[self.top + relative]
        return True

    def listing(self) -> list[str]:
        """Return the paths of every file below the folder that was entered."""
        return [name[len(self.top) :] for name in self.members if name.startswith(self.top)]

    def part(self, paths: Iterable[str]) -> Archive:
        """Return a store of these files alone."""
        chosen = copy.copy(self)
        chosen.sizes = {path: self.sizes[path] for path in paths}
        chosen.members = {self.top + path: self.members[self.top + path] for path in chosen.sizes}
        return chosen

    def stream(self, relative: str) -> IO[bytes]:
        """Open a member; `InputError` for one that unpacks to more than `MAX_BYTES`."""
        # A forked process must not share the file position with its parent.
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), zipfile.ZipFile(self.path)
        member, _ = self.members[self.top + relative]
        if self.sizes[relative] > MAX_BYTES:
            raise InputError(f"{relative}: {self.sizes[relative]} bytes; the limit is {MAX_BYTES}")
        return self._handle[1].open(member)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}


class Parts(Store):
    """Files of several stores, by new paths."""

    def __init__(self, parts: dict[str, tuple[Store, str]]) -> None:
        self.parts = parts
        self.sizes = {path: store.sizes[inner] for path, (store, inner) in parts.items()}

    def find(self, relative: str) -> bool:
        """Whether it is one of the files chosen."""
        return relative in self.sizes

    def listing(self) -> list[str]:
        """Return the paths of the files chosen."""
        return list(self.sizes)

    def part(self, paths: Iterable[str]) -> Parts:
        """Return a store of these files alone."""
        chosen = {path: self.parts[path] for path in paths}
        return Parts({path: (store.part([inner]), inner) for path, (store, inner) in chosen.items()})

    def stream(self, relative: str) -> IO[bytes]:
        """Open a file of the store it is in."""
        store, inner = self.parts[relative]
        return store.stream(inner)
