"""What is asked of a source, and what a reader of its layout hands back: between `open` and the readers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from preprocessing import InputError
from preprocessing.sources.names import meaning, named
from preprocessing.sources.record import Kind, Record
from preprocessing.where import LABELS
from preprocessing.wording import counted


@dataclass(frozen=True)
class Asked:
    """What the user says of a source.

    unlabelled        label of films about which a folder says nothing
    normal, abnormal  names of folders, or words for labels, that mean so; with `*` and `?`
    strict            whether labels and splits matter: what cannot be understood is then refused with a question
    """

    unlabelled: int = 0
    normal: tuple[str, ...] = ()
    abnormal: tuple[str, ...] = ()
    strict: bool = True

    def meaning(self, name: str) -> str | None:
        """Return what a class is called by the user, else by the table of `names`; None: not known."""
        if named(name, self.normal):
            return "normal"
        if named(name, self.abnormal):
            return "abnormal" if meaning(name) in ("normal", "abnormal", "unlabelled") else "finding"
        known = meaning(name)
        # Who says which classes are normal says what all others are.
        return "finding" if known is None and self.normal else known

    def check_used(self, names: Iterable[str], what: str) -> None:
        """Refuse a name that is none of those that there are."""
        there = sorted({*names})
        for flag, patterns in (("--normal", self.normal), ("--abnormal", self.abnormal)):
            for pattern in patterns:
                if not any(named(name, (pattern,)) for name in there):
                    raise InputError(
                        f"{flag} {shlex.quote(pattern)}: no {what} of that name; there are: "
                        f"{', '.join(there[:20]) or 'none'}"
                    )


@dataclass
class Found:
    """What a reader made of a source.

    tables  label files that were read
    """

    kind: Kind
    records: list[Record]
    notes: list[str] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)


def question(where: object, names: Iterable[str]) -> str:
    """Ask which of some folders are normal."""
    listed = ", ".join(sorted({*names}))
    return (
        f"{where}: folders {listed} look like classes; say which is normal, with --normal NAME and --abnormal NAME "
        "of `anomaly preprocess` (comma lists, * for all), or write a manifest"
    )


def label_counts(records: Iterable[Record]) -> str:
    """Count films by label.

    >>> label_counts([Record("a", "a", "a", 0), Record("b", "b", "b", 1), Record("c", "c", "c", 0)])
    '2 films normal, 1 film abnormal'
    """
    counts = Counter(record.label for record in records)
    words = {label: f"of {name} label" if label < 0 else name for label, name in LABELS.items()}
    return ", ".join(f"{counted(counts[label], 'film')} {words[label]}" for label in LABELS if counts[label])
