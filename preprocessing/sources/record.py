"""The films of a source, in order, with what it says about them and the bytes behind them."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from preprocessing import InputError
from preprocessing.sources.names import squeezed
from preprocessing.sources.storage import Store
from preprocessing.wording import counted

Kind = str
"""How a source is understood: "mura", "classes", "manifest", "folder", or the name of a data set (`datasets`)."""

LABELS = {0: "normal", 1: "abnormal", -1: "unknown"}
_FIELDS = ("path", "patient", "study", "label", "split", "finding", "difficulty")
_VALUES_NAMED = 20


@dataclass(frozen=True)
class Record:
    """One film of a source, and what the source says about it.

    path           relative POSIX path within the source; so are `mask` and `anomaly_mask`.
    patient        unique in the source; where `patient_known` is False, the path or the study stands in.
    study          unique across patients, such as "patient00001/study1".
    label          0 normal, 1 abnormal, -1 not known.
    split          "train", "val", "test", or "" where the source leaves it open.
    box            (x0, y0, x1, y1) in pixels of the film as read: the region to take, in place of localization.
    mask           a given foreground mask, in place of segmentation.
    anomaly_mask   pixel truth: for measuring, never for training.
    boxes          class ("right hand", "left marker", ...), x0, y0, x1, y1 in pixels of the film as read; learned from.
    patient_known  whether the source says which patient the film is of.
    lesion_boxes   x0, y0, x1, y1 in pixels of the film as read: pixel truth where there is no `anomaly_mask`.
    columns        name and value of everything else that a manifest or label file says of the film, as it is written:
                   region, view, site, sex, age, scanner, ...; sorted by name, without empty values.
    missing        why there is no such film, where a manifest names one that is not there; "" otherwise.
    """

    path: str
    patient: str
    study: str
    label: int
    split: str = ""
    finding: str = ""
    difficulty: str = ""
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    anomaly_mask: str | None = None
    boxes: tuple[tuple[str, float, float, float, float], ...] = ()
    patient_known: bool = False
    lesion_boxes: tuple[tuple[float, float, float, float], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    missing: str = ""

    def files(self) -> Iterator[str]:
        """Yield the paths of the film, unless it is missing, and of its masks."""
        film = None if self.missing else self.path
        yield from (path for path in (film, self.mask, self.anomaly_mask) if path is not None)

    def value(self, name: str) -> str:
        """Return a field or a column, by which films can be chosen, as text; "" where it is empty or not there."""
        if name == "label":
            return LABELS[self.label]
        return str(getattr(self, name)) if name in _FIELDS else dict(self.columns).get(name, "")


@dataclass
class Source:
    """Films in a fixed order, with the bytes behind them; can be pickled and read from any process.

    name       short and safe for file names.
    root       the folder, or the archive; for a manifest the folder it is in.
    synthetic  a file `SYNTHETIC.txt` in the source (for a MURA tree also beside it) says that the films are drawn.
    notes      what was guessed, dropped, passed over or cannot be known: a line each.
    """

    name: str
    kind: Kind
    root: Path
    records: list[Record] = field(repr=False)
    synthetic: bool
    notes: tuple[str, ...]
    store: Store = field(repr=False)

    def read(self, relative: str) -> bytes:
        """Read a film or a mask that the records name.

        Raises `InputError` for any other path, a file that is gone, cannot be read or holds more than
        `readers.MAX_BYTES`.
        """
        return self.store.read(relative)

    def part(self, records: Sequence[Record]) -> Source:
        """Return a source of these records alone, so that little is sent to another process."""
        paths = {path for record in records for path in record.files()}
        return replace(self, records=list(records), store=self.store.part(paths))

    def where(self, conditions: Sequence[str]) -> Source:
        """Return a source of the films for which every condition holds.

        conditions  "column=value" or "column=value,value" (any of them): path, patient, study, label (normal, abnormal,
                    unknown), split, finding, difficulty, or any other column of a manifest or label file. Names and
                    values are compared without regard to case; nothing after `=` chooses the films without a value.

        Raises `InputError` for a column that there is not, for a value that no film has, naming those there are, and
        where no film is left.
        """
        chosen = list(self.records)
        for condition in conditions:
            name, equals, values = condition.partition("=")
            column = self._column(name.strip()) if equals else None
            if column is None:
                raise InputError(f"--where {shlex.quote(condition)}: write column=value; there are: {self._columns()}")
            wanted = {value.strip().casefold() for value in values.split(",")}
            self._check_values(column, wanted)
            chosen = [record for record in chosen if record.value(column).casefold() in wanted]
        if conditions and not chosen:
            raise InputError(f"{self.root}: no film is left by --where {shlex.join(conditions)}")
        return self.part(chosen) if conditions else self

    def _column(self, name: str) -> str | None:
        """Return a column's name as it is written in the source; None where there is none of that name."""
        names = dict.fromkeys((*_FIELDS, *(column for record in self.records for column, _ in record.columns)))
        matches = [known for known in names if squeezed(known) == squeezed(name)]
        return name if name in matches else next(iter(matches), None)

    def _columns(self) -> str:
        films = Counter(column for record in self.records for column, _ in record.columns)
        return ", ".join((*_FIELDS, *sorted(films)))

    def _check_values(self, column: str, wanted: set[str]) -> None:
        values = Counter(record.value(column) for record in self.records)
        present = {value.casefold() for value in values}
        for value in sorted(wanted - present):
            most = values.most_common(_VALUES_NAMED)
            named = ", ".join(f"{name or '(empty)'} ({counted(number, 'film')})" for name, number in most)
            more = f", and {len(values) - len(most)} others" if len(values) > len(most) else ""
            raise InputError(f"--where {column}={value}: no film has it; there are: {named}{more}")

    def listing_hash(self) -> str:
        """Hash every field of every record and the size of every file named: 64 hex digits; no film is opened."""
        digest = hashlib.sha256()
        for record in self.records:
            sizes = [self.store.sizes[path] for path in record.files()]
            digest.update(json.dumps([asdict(record), sizes], sort_keys=True).encode())
        return digest.hexdigest()
