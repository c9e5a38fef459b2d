"""The files of a run that go into its bundle, without the folders of the machine that trained it."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anomaly.evaluation.named_calibration import REFITTED, calibration_folder, calibration_names
from anomaly.manifest import FILE as MANIFEST  # bundle.json has the hashes of what lies in a bundle
from anomaly.manifest import check_file
from anomaly.runs import Run, RunConfig, to_json
from anomaly.sealed import sealed
from preprocessing import InputError

COPIED = ("films.safetensors", "abnormal.json", "history.csv", "warnings.json")
"""Files of the run that are copied as they are, where it has them."""
CHOICES = "choices.json"


def stripped(config: RunConfig) -> RunConfig:
    """Return run.json with the names alone of files and folders: no path says whose machine it was.

    >>> _name("/home/ann/films/north.h5"), _name("cae"), _name("")
    ('north.h5', 'cae', '')
    """
    cache = config.cache
    nets = {part: net | {"run": _name(net["run"])} for part, net in cache.nets.items()}
    changes = {"path": _name(cache.path), "nets": nets, "command": _command(cache.command)}
    changes["source"] = _name(cache.source)
    begun = config.begun_with
    if begun is not None:
        more = None if begun.more_films is None else _name(begun.more_films)
        begun = begun.model_copy(update={"run": _name(begun.run), "more_films": more})
    weights = config.weights
    if weights is not None:
        weights = weights.model_copy(update={"file": _name(weights.file)})
    model = {name: _settings(value) for name, value in config.settings.model.items()}
    return config.model_copy(
        update={
            "cache": cache.model_copy(update=changes),
            "begun_with": begun,
            "weights": weights,
            "members": [_name(member) for member in config.members],
            "settings": config.settings.model_copy(update={"model": model}),
        }
    )


def run_files(run: Run, calibration: str | None) -> tuple[dict[str, bytes | Path], list[str]]:
    """Return the files of a run that its bundle has, by their path there, and what was left out, a sentence each.

    calibration  the one beside the run's own that the bundle has as its own, or None.
    """
    files: dict[str, bytes | Path] = {"run.json": sealed(stripped(run.config).model_dump()).encode()}
    notes = []
    own = run.path if calibration is None else calibration_folder(run, calibration)
    files["calibration.json"] = own / "calibration.json"
    for name in COPIED:
        place = own if name in ("films.safetensors", "abnormal.json") else run.path
        if (place / name).is_file():
            files[name] = place / name
    if (run.path / "metrics.json").is_file():
        again = shlex.join(["anomaly", "score", str(run.path)])
        check_file(run.path / "metrics.json", f"run `{again}` to make it again")
        files["metrics.json"] = _rewritten(run.path / "metrics.json", {"command": _command, "run": _name})
    for name in calibration_names(run) if calibration is None else []:
        folder = calibration_folder(run, name)
        if (folder / REFITTED).is_file():
            notes.append(
                f"the calibration {name!r} was left out, which fitted anew what scores compare with: "
                f"`anomaly export {shlex.quote(str(run.path))} --calibration {name} --out FOLDER` makes a bundle of it"
            )
            continue
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith(".") and file.name not in ("source.json", MANIFEST):
                files[f"calibrations/{name}/{file.name}"] = file
        if (folder / "source.json").is_file():
            files[f"calibrations/{name}/source.json"] = _rewritten(folder / "source.json", {"source": _name})
    if (run.path / CHOICES).is_file():
        notes += _choices(run, calibration, files)
    return files, notes


def _choices(run: Run, calibration: str | None, files: dict[str, bytes | Path]) -> list[str]:
    """Add what the run remembers, unless it is of a calibration that the bundle doesn't have beside its own."""
    try:
        chosen = json.loads((run.path / CHOICES).read_bytes()).get("calibration")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{run.path / CHOICES} is damaged ({error}); delete it, and choose again") from None
    if calibration is None and (chosen is None or f"calibrations/{chosen}/calibration.json" in files):
        files[CHOICES] = run.path / CHOICES
        return []
    return ["what `anomaly score` was told before isn't in the bundle: it was told of another calibration"]


def _rewritten(file: Path, changes: Mapping[str, Callable[[str], str]]) -> bytes:
    """Return a JSON file with some of its texts changed."""
    try:
        content = json.loads(file.read_bytes())
        return to_json(content | {name: change(content[name]) for name, change in changes.items()}).encode()
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is damaged ({error}); delete it, and make it again") from None


def _settings(value: Any) -> Any:
    """Return a setting, files as their names; those of an ensemble's members are nested."""
    if isinstance(value, Mapping):
        return {name: _settings(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_settings(inner) for inner in value]
    return _name(value) if isinstance(value, str) else value


def _command(text: str) -> str:
    try:
        return shlex.join(_name(word) for word in shlex.split(text))
    except ValueError:
        return ""


def _name(text: str) -> str:
    """Return a path's last part; any other text as it is."""
    return Path(text).name if "/" in text or "\\" in text else text
