"""The folder of `anomaly auto`: auto.json, and the scores that candidates are judged by; read back to go on."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from anomaly.evaluation.detector_search import AutoRecord
from anomaly.manifest import check_file, write_listed
from anomaly.runs import RUNS, first_error, read_csv, to_csv, write_atomic
from anomaly.sealed import sealed, unsealed
from preprocessing import InputError

FILE = "auto.json"


def read_record(folder: Path) -> AutoRecord:
    """Return the record of a folder; raises InputError where it is damaged or of another version."""
    file = folder / FILE
    try:
        return AutoRecord.model_validate(unsealed(file.read_bytes()))
    except ValueError as error:
        reason = first_error(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
        raise InputError(
            f"{file} can't be read ({reason}); delete {folder}, or name another folder with --out"
        ) from None


def write_record(folder: Path, record: AutoRecord) -> None:
    """Write the record of a folder."""
    write_atomic(folder / FILE, sealed(record.model_dump()))


def open_folder(out: Path | None, wanted: AutoRecord) -> tuple[Path, AutoRecord]:
    """Return the folder of a search and what it has done: one that goes on, or a new one.

    Without `out`, the newest `runs/auto-<n>` of the same films asked the same, or else the next number. Raises
    InputError where `out` is something else.
    """
    if out is not None:
        if not (out / FILE).is_file():
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise InputError(f"{out} exists and is no folder of `anomaly auto`; choose another --out")
            return out, wanted
        known = read_record(out)
        if not known.same_search(wanted):
            raise InputError(f"{out} is of other films or options; use those, or choose another --out")
        return out, known
    for number in itertools.count(1):
        folder = RUNS / f"auto-{number}"
        if not folder.exists():
            return folder, wanted
        if (folder / FILE).is_file() and (known := read_record(folder)).same_search(wanted):
            return folder, known
    raise AssertionError("unreachable")


def write_scores(folder: Path, candidate: str, columns: Mapping[str, list[object]]) -> None:
    """Write the scores that a candidate is judged by: a line a film, planted ones with their family."""
    write_listed(folder / "scores" / f"{candidate}.csv", to_csv(dict(columns)))


def read_scores(folder: Path, candidate: str) -> list[dict[str, str]]:
    """Return what `write_scores` wrote."""
    file = folder / "scores" / f"{candidate}.csv"
    check_file(file, f"delete {folder}, or name another folder with --out")
    return read_csv(file)
