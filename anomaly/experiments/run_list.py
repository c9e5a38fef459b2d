"""What runs, ensembles and benches there are, from small JSON files alone: no torch, no weights, no films."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from anomaly.formatting import command_line
from anomaly.manifest import check_file
from anomaly.runs import Run
from anomaly.sealed import unsealed
from preprocessing import InputError
from preprocessing.locks import is_held

Kind = Literal["run", "ensemble", "bench"]
State = Literal["finished", "unfinished", "running", "damaged"]
SORTS = ("date", "name", "model", "auc", "size")
"""What `anomaly runs` can be sorted by."""


@dataclass(frozen=True)
class Listed:
    """A run, an ensemble or a bench, as a line of the list; what is not known is None."""

    path: Path
    kind: Kind = "run"
    model: str | None = None
    films: str | None = None  # the source of its cache
    synthetic: bool = False
    variant: str | None = None
    size: int | None = None  # side of the films in pixels
    state: State = "finished"
    progress: str = ""  # how far what is not finished has come
    score: str | None = None  # the one that is reported first
    roc_auc: float | None = None  # of it, by film, on the test split
    interval: tuple[float, float] | None = None  # of 95 %, over patients
    bytes: int = 0  # on disk, everything in the folder
    created: datetime | None = None
    reason: str = ""  # what is wrong with a damaged one
    content: str = ""  # hash of its films, by which runs of the same films are known
    members: list[str] = field(default_factory=list)
    begun_with: str | None = None  # the run whose weights it began with

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        created = None if self.created is None else self.created.isoformat(timespec="seconds")
        return {**self.__dict__, "path": str(self.path), "created": created}


def list_runs(folder: Path, sort: str = "date") -> list[Listed]:
    """Return the runs, ensembles and benches of a folder: those in it, and those in its folders that are neither.

    sort  date (newest first), name, model, auc (highest first) or size (largest first). A folder that is damaged is a
    line as well, with the reason. Raises InputError for another `sort`.
    """
    if sort not in SORTS:
        raise InputError(f"--sort {sort!r}; there are: {', '.join(SORTS)}")
    listed = [_listed(path) for path in find_runs(folder)]
    keys: dict[str, Callable[[Listed], Any]] = {
        "date": lambda one: -(one.created.timestamp() if one.created else 0.0),
        "name": lambda one: 0,
        "model": lambda one: one.model or "",
        "auc": lambda one: 1.0 if one.roc_auc is None else -one.roc_auc,  # those without a figure last
        "size": lambda one: -one.bytes,
    }
    return sorted(listed, key=lambda one: (keys[sort](one), _natural(one.path)))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return what sorts cae-10 after cae-9."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def find_runs(folder: Path) -> Iterator[Path]:
    """Give the folders of runs and benches in a folder, and in those of its folders that are neither."""
    for path in _folders(folder):
        if _is_listed(path):
            yield path
        else:
            yield from filter(_is_listed, _folders(path))


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, without hidden ones: a run that is just being made has a hidden name."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return []


def _is_listed(path: Path) -> bool:
    return (path / "run.json").is_file() or (path / "bench.json").is_file()


def _listed(path: Path) -> Listed:
    """Return the line of a folder, whatever is wrong with it."""
    is_bench = (path / "bench.json").is_file()
    try:
        return _bench(path) if is_bench else _run(path)
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        created = _modified(path)
        return Listed(
            path,
            "bench" if is_bench else "run",
            state="damaged",
            reason=" ".join(reason.split()),
            bytes=folder_bytes(path),
            created=created,
        )


# --- a run ----------------------------------------------------------------------------------------------------------


def _run(path: Path) -> Listed:
    run = Run(path)
    config = run.config
    state: State = "finished" if run.finished else "running" if is_held(path / ".lock") else "unfinished"
    score, value, interval = _figure(path)
    return Listed(
        path,
        "ensemble" if config.members else "run",
        model=f"ensemble of {len(config.members)}" if config.members else config.model,
        films=config.cache.source,
        synthetic=config.cache.synthetic,
        variant=config.variant,
        size=config.size,
        state=state,
        progress="" if run.finished else _epochs(path, config.settings.training),
        score=score,
        roc_auc=value,
        interval=interval,
        bytes=folder_bytes(path),
        created=datetime.fromisoformat(config.created) if config.created else _modified(path),
        content=config.cache.content_hash,
        members=config.members,
        begun_with=config.begun_with.run if config.begun_with else None,
    )


def _figure(path: Path) -> tuple[str | None, float | None, tuple[float, float] | None]:
    """Return the main score of metrics.json, its ROC-AUC by film and the interval; None where there are none."""
    try:
        metrics = json.loads((path / "metrics.json").read_bytes())
        check_file(path / "metrics.json", f"run `{command_line('anomaly', 'score', path)}` to make it again")
    except FileNotFoundError:
        return None, None, None
    score = metrics.get("score")
    if score is None:  # a net that prepares films: its figures are others
        return None, None, None
    figures = metrics["film"][score]
    limits = figures["roc_auc_interval"]
    return str(score), figures["roc_auc"], (limits[0], limits[1]) if limits else None


def _epochs(path: Path, training: Mapping[str, Any]) -> str:
    """Return how many epochs an unfinished training has behind it."""
    stages = str(training.get("stages", "all")).count(",") + 1
    try:
        with (path / "history.csv").open() as lines:
            done = sum(1 for _ in lines) - 1
    except FileNotFoundError:
        done = 0
    return f"epoch {max(0, done)} of {int(training['epochs']) * stages}"


# --- a bench --------------------------------------------------------------------------------------------------------


def _bench(path: Path) -> Listed:
    grid = unsealed((path / "bench.json").read_bytes())
    models, variants, seeds = (list(grid[name]) for name in ("models", "variants", "seeds"))
    cells = len(models) * len(variants) * len(seeds)
    folders = _folders(path / "cells")
    done = sum(all((cell / name).is_file() for name in ("scores.csv", "report.html")) for cell in folders)
    state: State = "finished" if done >= cells else "unfinished"
    if state == "unfinished" and is_held(path / "locks" / "at-work.lock"):
        state = "running"
    first: Run | None = None
    for cell in folders:
        with suppress(InputError):
            first = Run(cell)
            break
    return Listed(
        path,
        "bench",
        model=models[0] if len(models) == 1 else f"{len(models)} models",
        films=first.config.cache.source if first else None,
        synthetic=bool(first and first.config.cache.synthetic),
        variant=variants[0] if len(variants) == 1 else f"{len(variants)} variants",
        size=first.config.size if first else None,
        state=state,
        progress="" if state == "finished" else f"{done} of {cells} cells",
        bytes=folder_bytes(path),
        created=_modified(path),
        content=str(grid["content_hash"]),
    )


# --- the disk -------------------------------------------------------------------------------------------------------


def folder_bytes(path: Path) -> int:
    """Return the bytes of all files in a folder, links not followed."""
    total = 0
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):  # it is being moved into place, or removed
                is_folder = entry.is_dir(follow_symlinks=False)
                total += folder_bytes(path / entry.name) if is_folder else entry.stat(follow_symlinks=False).st_size
    return total


def _modified(path: Path) -> datetime | None:
    """Return when the JSON file of a folder was written."""
    for name in ("bench.json", "run.json"):
        with suppress(OSError):
            return datetime.fromtimestamp((path / name).stat().st_mtime, UTC)
    return None
