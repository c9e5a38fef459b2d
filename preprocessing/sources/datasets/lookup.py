"""From what a label file calls a film to the film in a listing, and what could not be found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from preprocessing import InputError
from preprocessing.sources.listing import Listing
from preprocessing.sources.masks import split_path
from preprocessing.sources.paths import natural_key
from preprocessing.sources.reading import Found, label_counts
from preprocessing.sources.record import Record
from preprocessing.sources.tables import Table
from preprocessing.wording import counted


class Lookup:
    """Finds films by path, by file name, or by name without suffix."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._paths = {*listing.films}
        self._names: dict[str, list[str]] = defaultdict(list)
        for film in listing.films:
            _, stem, suffix = split_path(film)
            for name in {stem, stem + suffix}:
                self._names[name].append(film)
        self.absent: dict[str, None] = {}

    def by_path(self, text: str) -> str | None:
        """Return the film that a path names, which may begin with folders above the source."""
        parts = text.replace("\\", "/").split("/")
        for above in range(len(parts)):
            if (path := "/".join(parts[above:])) in self._paths:
                return path
        self.absent[text] = None
        return None

    def by_name(self, text: str) -> str | None:
        """Return the film of a file name, with or without suffix; `InputError` where there are several."""
        films = self._names.get(text, [])
        if len(films) > 1:
            raise InputError(f"{self._listing.root}: {text} is {films[0]} or {films[1]}? leave one of them out")
        if not films:
            self.absent[text] = None
        return films[0] if films else None

    def found(self, kind: str, records: Iterable[Record], tables: Iterable[str], notes: Iterable[str] = ()) -> Found:
        """Put a reader's records in order, and say what the label files and the films have beyond each other."""
        ordered = sorted(records, key=lambda record: natural_key(record.path))
        files = sorted({*tables})
        listed = ", ".join(files)
        if not ordered:
            raise InputError(
                f"{self._listing.root}: none of the {counted(len(self.absent), 'film')} of {listed} is there, such as "
                f"{next(iter(self.absent), '')!r}; name the folder that holds both"
            )
        said = [f"labels from {listed} ({kind}): {label_counts(ordered)}", *notes]
        if self.absent:
            said.append(f"{counted(len(self.absent), 'film')} of {listed} not there, such as {next(iter(self.absent))}")
        if rest := len(self._paths) - len(ordered):
            said.append(f"{counted(rest, 'film')} not in {listed}: left out")
        return Found(kind, ordered, said, {*files})


def with_columns(tables: Mapping[str, Table], needed: Iterable[str]) -> dict[str, Table]:
    """Return the tables that have all these columns."""
    return {file: table for file, table in tables.items() if {*needed} <= {*table.columns}}


def number(text: str, where: str) -> float:
    """Read a number of a label file."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {text[:40]!r} is not a number") from None


def rest_of(row: Mapping[str, str], used: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the cells of a line that no field takes, by name, without empty ones."""
    left_out = {"", *used}
    return tuple(sorted((name, value) for name, value in row.items() if value and name not in left_out))
