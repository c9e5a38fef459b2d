"""The calibrations of a run on films of other places, beside its own: `RUN/calibrations/<name>/`."""

import re
from pathlib import Path

from anomaly.evaluation.calibration import Calibration, read_calibration
from anomaly.formatting import command_line
from anomaly.manifest import check_files
from anomaly.runs import Run
from preprocessing import InputError

FOLDER = "calibrations"
OWN = "own"
"""What names the calibration that a run was trained with, where another one is remembered."""
REFITTED = "reference.safetensors"
"""In the folder of one, the tensors of the model that were fitted to the films of that place."""


def calibration_folder(run: Run, name: str) -> Path:
    """Return where the calibration of a place is kept; raises InputError for what is no name of a folder."""
    if name == OWN:
        raise InputError(f"{OWN!r} names the calibration that {run.path} was trained with; take another name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(
            f"calibration name {name!r}: take letters, digits, '.', '_' and '-', at most 64, a letter or digit first"
        )
    return run.path / FOLDER / name


def calibration_names(run: Run) -> list[str]:
    """Return the names of the calibrations beside a run's own."""
    return sorted(file.parent.name for file in (run.path / FOLDER).glob("*/calibration.json"))


def named_calibration(run: Run, name: str | None) -> Calibration:
    """Return the calibration of a place, or the run's own for None; InputError lists those that there are."""
    if name is None:
        return read_calibration(run)
    if not (calibration_folder(run, name) / "calibration.json").is_file():
        names = calibration_names(run)
        there = f"there are: {', '.join(names)}" if names else "there is none"
        makes = command_line("anomaly", "calibrate", run.path, "NORMALS", "--name", name)
        raise InputError(f"{run.path} has no calibration {name!r}; {there}; `{makes}` makes it")
    makes = command_line("anomaly", "calibrate", run.path, "NORMALS", "--name", name, "--replace")
    check_files(run.path / FOLDER / name, f"run `{makes}` to make it again")
    return run.read(f"{FOLDER}/{name}/calibration.json", Calibration, makes)
