"""The films of a source, in order, with what it says about them and the bytes behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from preprocessing.sources.storage import Store
from preprocessing.where import INDEXED, chosen, label_names

Kind = str
"""How a source is understood: "mura", "classes", "manifest", "folder", or the name of a data set (`datasets`)."""


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

    def where(self, conditions: Sequence[str]) -> Source:
        """Return a source of the films that meet every condition, such as "region=hand", as `where.chosen` reads them.

        What the headers of DICOM films say is not known yet: films are chosen by it once they are prepared.
        """
        if not conditions:
            return self
        names = dict.fromkeys(name for record in self.records for name, _ in record.columns)
        others = [dict(record.columns) for record in self.records]
        known = {name: [getattr(record, name) for record in self.records] for name in INDEXED}
        known |= {"label": label_names([record.label for record in self.records])}
        known |= {name: [columns.get(name, "") for columns in others] for name in sorted(names)}
        rows = chosen(conditions, known, len(self.records))
        return self.part([record for record, wanted in zip(self.records, rows, strict=True) if wanted])

    def part(self, records: Sequence[Record]) -> Source:
        """Return a source of these records alone, so that little is sent to another process."""
        paths = {path for record in records for path in record.files()}
        return replace(self, records=list(records), store=self.store.part(paths))

    def listing_hash(self) -> str:
        """Hash every field of every record and the size of every file named: 64 hex digits; no film is opened."""
        digest = hashlib.sha256()
        for record in self.records:
            sizes = [self.store.sizes[path] for path in record.files()]
            digest.update(json.dumps([asdict(record), sizes], sort_keys=True).encode())
        return digest.hexdigest()
