"""A set of synthetic films on disk, in MURA's tree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from preprocessing import InputError
from preprocessing.phantom.plan import DEFAULT, SIZE, FilmPlan, check_settings, plan_films
from preprocessing.phantom.render import REVISION, Phantom, draw_film

_PROGRESS, _NOTE = ".phantoms.json", "SYNTHETIC.txt"


@dataclass(frozen=True)
class Summary:
    """What a set holds: numbers of films (normal and abnormal ones), patients and studies."""

    films: int
    normal: int
    abnormal: int
    patients: int
    studies: int


def write_phantoms(
    out: Path,
    *,
    seed: int = 0,
    patients: int = DEFAULT,
    size: int = SIZE,
    on_film: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write the films of `plan_films` with their ground truth to `out`; `on_film(done, total)` follows each.

    A complete set with the same settings is left as it is; one that was interrupted is completed. Anything else in
    `out` raises InputError, as do settings out of bounds (`seed` >= 0, `patients` >= 4, `size` 64..2048) and a folder
    that cannot be written.
    """
    check_settings(seed=seed, patients=patients, size=size)
    plans = plan_films(seed=seed, patients=patients)
    settings = {"revision": REVISION, "seed": seed, "patients": patients, "size": size}
    summary = Summary(
        films=len(plans),
        normal=sum(not plan.finding for plan in plans),
        abnormal=sum(bool(plan.finding) for plan in plans),
        patients=patients,
        studies=len({(plan.patient, plan.study) for plan in plans}),
    )
    try:
        if _is_complete(out, plans, settings, _note(settings, summary)):
            return summary
        out.mkdir(parents=True, exist_ok=True)
        _write_whole(out / _PROGRESS, json.dumps(settings).encode())
        for done, plan in enumerate(plans, start=1):
            if not (out / plan.path).exists():
                _write_film(out, draw_film(plan, seed=seed, size=size))
            if on_film is not None:
                on_film(done, len(plans))
        _write_whole(out / _NOTE, _note(settings, summary).encode())
        (out / _PROGRESS).unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    return summary


def set_settings(out: Path) -> dict[str, int]:
    """The settings (seed, patients, size, ...) of a complete set of this revision; InputError if `out` holds none."""
    note = out / _NOTE
    found = dict(re.findall(r"(revision|seed|patients|size) ([0-9]+)[,.]", _read(note))) if note.is_file() else {}
    if found.get("revision") != str(REVISION) or len(found) < 4:
        raise InputError(f"{out}: no complete set of built-in films as this version draws them; `anomaly phantom` does")
    return {name: int(value) for name, value in found.items()}


def _is_complete(out: Path, plans: Sequence[FilmPlan], settings: dict[str, int], note: str) -> bool:
    """Whether the very same set is complete in `out`; InputError where something else is in the way."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out}: is a file; name a new or empty folder for the synthetic films")
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not files:
        return False
    planned = {file for plan in plans for file in plan.files}
    drafts = {_draft_of(Path(file)).as_posix() for file in (*planned, _NOTE, _PROGRESS)}
    foreign = files - planned - {_NOTE, _PROGRESS} - drafts
    written = _read(out / _NOTE) if _NOTE in files else None
    if not foreign and written == note and planned <= files:
        (out / _PROGRESS).unlink(missing_ok=True)
        return True
    if not foreign and written is None and _PROGRESS in files and _read(out / _PROGRESS) == json.dumps(settings):
        return False
    asked = ", ".join(f"{name} {value}" for name, value in settings.items())
    what = f"something else, e.g. {min(foreign)}" if foreign else "other or damaged synthetic films"
    raise InputError(
        f"{out}: holds {what}, not the synthetic films asked for ({asked}); name a new folder or remove this one"
    )


def _read(path: Path) -> str:
    """A small text file; bytes that are not text never equal what this module writes."""
    return path.read_text(encoding="utf-8", errors="replace")


def _note(settings: dict[str, int], summary: Summary) -> str:
    """The text of SYNTHETIC.txt, by which sets are distinguished."""
    counts = ", ".join(f"{value} {name}" for name, value in asdict(summary).items())
    return (
        "SYNTHETIC FILMS: drawn by a program, of nobody. They show that the path works, and nothing about real films.\n"
        f"Contents: {counts}.\n"
        f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}.\n"
        "Made by `anomaly phantom`. Beside each film: image1.json (finding, difficulty, visibility, carrier, ...),\n"
        "image1_hand.png (the hand), and for abnormal films image1_anomaly.png (the pixels the finding changed;\n"
        "of missing bone those beside the end of what is left).\n"
    )


def _write_film(out: Path, film: Phantom) -> None:
    """Write the ground truth, then the film."""
    parts = {
        "": film.pixels,
        "_hand": film.hand.astype(np.uint8) * 255,
        "_anomaly": film.anomaly.astype(np.uint8) * 255,
    }
    (out / film.plan.path).parent.mkdir(parents=True, exist_ok=True)
    for file in film.plan.files:
        if file.endswith(".json"):
            _write_whole(out / file, (json.dumps(film.ground_truth()) + "\n").encode())
            continue
        kind = next(kind for kind in ("_hand", "_anomaly", "") if file.endswith(f"{kind}.png"))
        encoded, png = cv2.imencode(".png", parts[kind])
        assert encoded
        _write_whole(out / file, png.tobytes())


def _draft_of(path: Path) -> Path:
    """The name of a file that is not whole yet; the same each time, so that an interruption leaves no litter."""
    return path.with_name(f".{path.name}.draft")


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    draft = _draft_of(path)
    draft.unlink(missing_ok=True)  # a link of this name would be written through
    with draft.open("xb") as file:
        file.write(data)
    draft.replace(path)
