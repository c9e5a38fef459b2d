"""Removing runs and benches: all of those named, or none where one of them has to stay."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly.drafts import aside, tidy
from anomaly.experiments.run_list import find_runs, folder_bytes
from anomaly.runs import RUNS
from preprocessing import InputError
from preprocessing.locks import is_held


@dataclass(frozen=True)
class Removal:
    """A folder that can be removed."""

    path: Path
    kind: str  # "run" or "bench"
    bytes: int


def check_removal(paths: Sequence[Path]) -> list[Removal]:
    """Return what would be removed; raises InputError, before anything is, where a folder has to stay.

    What stays: what is no folder of a run or bench, or a link to one; what a process is training or working in; what
    holds other runs, or the current folder; and what other runs still need, as the members of an ensemble and the nets
    that prepare a run's films, unless those runs are named too. A damaged run can go. What a removal that was
    interrupted left is removed.
    """
    for folder in {path.absolute().parent for path in paths}:
        tidy(folder)
    removals = list({path.resolve(): _checked(path) for path in paths}.values())
    going = {removal.path.resolve() for removal in removals}
    for folder in dict.fromkeys([RUNS, *(removal.path.parent for removal in removals)]):
        for other in find_runs(folder):
            if other.resolve() not in going:
                _check_needed(other, going)
    return removals


def remove(removals: Sequence[Removal]) -> int:
    """Remove them and return how many bytes that freed. Each is gone at once or not at all, whenever it is stopped."""
    for removal in removals:
        hidden = aside(removal.path)
        removal.path.rename(hidden)
        shutil.rmtree(hidden)
    return sum(removal.bytes for removal in removals)


def _checked(path: Path) -> Removal:
    is_bench = (path / "bench.json").is_file()
    if path.is_symlink():
        raise InputError(f"{path} is a link, which `anomaly rm` leaves alone; name the folder {path.resolve()} itself")
    if not is_bench and not (path / "run.json").is_file():
        raise InputError(
            f"{path} is not the folder of a run or a bench (no run.json, no bench.json); `anomaly runs` lists those"
        )
    if Path.cwd().resolve().is_relative_to(path.resolve()):
        raise InputError(f"{path} is the current folder or around it; leave it first: cd {path.resolve().parent}")
    locks = [path / ".lock", path / "locks" / "at-work.lock", *path.glob("cells/*/.lock")]
    if any(map(is_held, locks)):
        raise InputError(f"a process is at work in {path}; stop it first, or wait until it has finished")
    cells = path / "cells"
    inner = [folder for file in path.rglob("run.json") if (folder := file.parent) != path and folder.parent != cells]
    if inner:
        raise InputError(f"{path} holds another run, {inner[0]}; move that elsewhere, or remove it first")
    return Removal(path, "bench" if is_bench else "run", folder_bytes(path))


def _check_needed(other: Path, going: set[Path]) -> None:
    """Refuse where a run that stays was made of one that goes, or has its films prepared by it."""
    config: Any = {}
    with suppress(OSError, ValueError, RecursionError):  # a damaged one says nothing
        config = json.loads((other / "run.json").read_bytes())
    config = config if isinstance(config, dict) else {}
    nets = (config.get("cache") or {}).get("nets") or {}
    needs = [(text, "is a member of") for text in config.get("members") or []]
    needs += [(net["run"], "prepares the films of") for net in nets.values() if net.get("run")]
    begun = config.get("begun_with")
    if begun and not (other / "calibration.json").is_file():
        needs.append((begun["run"], "has the weights with which training began in"))
    for text, role in needs:
        if Path(text).resolve() in going:
            raise InputError(f"{text} {role} {other}; remove that first, or name both")
