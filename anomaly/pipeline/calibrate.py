"""A run calibrated on normal films of the place where it is used: thresholds, map scale and, if asked for, what its
scores compare with.

With `refit`, half of the patients, drawn at random, go into what scores compare with, and thresholds come from the
other half alone: a film that the reference was fitted on scores lower than a new one does, and thresholds from such
films would flag too many. Halves rather than folds, as each fold would have a reference of its own, of which none is
the one at work.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from anomaly.console import silent
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import Calibration, calibrate, read_calibration
from anomaly.evaluation.named_calibration import REFITTED, calibration_folder
from anomaly.manifest import write_listed
from anomaly.pipeline.backend import load_refittable, load_scorer
from anomaly.pipeline.film_reference import FILE, FilmReference, local_reference
from anomaly.pipeline.open_run import OpenRun, run_cache_and_split
from anomaly.pipeline.options import CalibrateOptions
from anomaly.pipeline.selection import Display, new_films
from anomaly.runs import Record, Run, now, to_json
from preprocessing import InputError
from preprocessing.sources import Source
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.evaluation.torch_scorer import TorchScorer

SOURCE = "source.json"
LEAST_REFITTED = 4
"""Patients that a refit needs, to have two in each half."""


class CalibrationSource(Record):
    """source.json of a calibration: which films it is of, and how it was made."""

    source: str
    """Where they were."""
    listing_hash: str
    films: int
    patients: int
    """Those that thresholds rest on."""
    refitted: Literal["no", "training and local", "local"]
    """The films that scores compare with."""
    refitted_patients: int
    """Local ones among them, of whom none is among `patients`."""
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Calibrated:
    """A run calibrated on the films of another place."""

    run: OpenRun  # with that calibration
    folder: Path
    source: CalibrationSource
    before: Calibration  # the run's own
    notes: Sequence[str]  # what a user should know, a sentence each
    failures: Sequence[tuple[str, str]]  # path and reason of the films that can't be read


def calibrate_run(run: Run, source: Source, options: CalibrateOptions, display: Display = silent) -> Calibrated:
    """Calibrate a finished run on the normal films of a source, and keep the calibration beside the run's own.

    Films are prepared as those of the run were. Of a labelled source the normal ones count, of an unlabelled one all
    do; a run that learned from labels takes films of both classes. Raises InputError where the name is taken by other
    films, there is nothing to refit, or the films are too few for it.
    """
    name = options.name or _default_name(source)
    folder = calibration_folder(run, name)
    _check(run, options)
    refittable = _refittable(run, options) if options.refit else None
    scorer = refittable or load_scorer(run, options.device)
    supervised = scorer.targets == "labels"
    source, notes = (source, []) if supervised else _normals(source)
    listing = source.listing_hash()
    _check_free(folder, name, listing, options)
    with new_films(run, source, workers=options.workers, display=display) as selection:
        films = selection.films
        if supervised and not {0, 1} <= set(films.label.tolist()):
            raise InputError(
                f"{run.path} learned from labels, and its thresholds are chosen on labelled films of both classes; "
                f"{source.root} has not both"
            )
        fitted, changed = None, None
        if refittable is not None:
            fitted, films = _halves(films)
            notes.append(
                f"what scores compare with is fitted anew on {_refit_words(fitted, run, options)}; thresholds come "
                f"from the other {_patients(films)}"
            )
            changed = _refit(run, refittable, fitted, options)
        with display("calibrating", len(films), "films") as advance:
            calibration = calibrate(scorer, films, advance)
        record = CalibrationSource(
            source=str(source.root),
            listing_hash=listing,
            films=len(films),
            patients=len(set(films.column("patient"))),
            refitted="no" if fitted is None else "local" if options.only_local else "training and local",
            refitted_patients=0 if fitted is None else len(set(fitted.column("patient"))),
            created=now(),
        )
        reference = local_reference(run, films.subset(np.flatnonzero(films.label == 0)), options.cache)
        _keep(folder, calibration, record, reference, changed)
        opened = OpenRun(run, scorer, calibration, options.device, calibration_name=name, cache_path=options.cache)
        own = read_calibration(run)
        return Calibrated(opened, folder, record, own, [*notes, *selection.notes], selection.failures)


def _keep(
    folder: Path,
    calibration: Calibration,
    record: CalibrationSource,
    reference: FilmReference,
    changed: bytes | None,
) -> None:
    """Write the files of a calibration; last the one whose presence says that it is there."""
    for name in ("calibration.json", REFITTED, FILE, SOURCE):
        (folder / name).unlink(missing_ok=True)
    if changed:
        write_listed(folder / REFITTED, changed)
    reference.write(folder / FILE)
    write_listed(folder / SOURCE, to_json(record.model_dump()))
    write_listed(folder / "calibration.json", to_json(calibration.model_dump()))


def _check(run: Run, options: CalibrateOptions) -> None:
    """Refuse what can't be calibrated in this way, before anything is loaded."""
    if options.only_local and not options.refit:
        raise InputError("--only-local says what --refit fits on; give --refit too")
    if not run.finished:
        from anomaly.training.weights import resume_command

        raise InputError(f"{run.path} is unfinished; {resume_command(run)} resumes it")
    if options.refit and run.config.members:
        raise InputError(
            f"{run.path} is made of {len(run.config.members)} runs, each with a reference of its own; leave out --refit"
        )


def _refittable(run: Run, options: CalibrateOptions) -> "TorchScorer":
    """Return the run's detector, to be refitted; InputError where its scores compare with nothing."""
    scorer = load_refittable(run, options.device)
    if not scorer.refits:
        raise InputError(
            f"the scores of {run.config.model} compare with no films: there is nothing to refit; leave out --refit"
        )
    return scorer


def _default_name(source: Source) -> str:
    """Return the name of a source as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-._")[:64] or "local"


def _normals(source: Source) -> tuple[Source, list[str]]:
    """Return the films of a source that are normal, or not known to be abnormal, as normal ones, and what to say."""
    normal = [replace(record, label=0) for record in source.records if record.label != 1]
    abnormal = len(source.records) - len(normal)
    unknown = sum(record.label == -1 for record in source.records)
    if not normal:
        raise InputError(f"{source.root} has no normal film: all {abnormal} are labelled abnormal")
    notes = [f"left out: {counted(abnormal, 'film')} labelled abnormal"] if abnormal else []
    if unknown:
        which = "all" if unknown == len(normal) else f"{unknown} unlabelled ones"
        notes.append(f"{which} of {counted(len(normal), 'film')} are taken as normal")
    # Films of one patient, of whom some are abnormal: the normal ones stay.
    return source.part(normal), notes


def _check_free(folder: Path, name: str, listing: str, options: CalibrateOptions) -> None:
    """Refuse a name that is taken by a calibration on other films."""
    if options.replace or not (folder / "calibration.json").is_file():
        return
    try:
        old = CalibrationSource.model_validate_json((folder / SOURCE).read_bytes())
    except (OSError, ValueError):
        old = None
    if old is None or old.listing_hash != listing:
        films = f" of the {counted(old.films, 'film')} of {old.source}" if old else ""
        raise InputError(f"{folder} is a calibration{films}; give another --name, or --replace to replace it")


def _halves(films: FilmSet) -> tuple[FilmSet, FilmSet]:
    """Return the films of one half of the patients, drawn at random but always alike, and those of the other half."""
    patients, owner = np.unique(films.column("patient"), return_inverse=True)
    if len(patients) < LEAST_REFITTED:
        raise InputError(
            f"a refit needs {LEAST_REFITTED} normal patients, half of them for the thresholds; there are "
            f"{len(patients)}: leave out --refit"
        )
    first = np.random.default_rng(0).permutation(len(patients)) < len(patients) // 2
    chosen = first[owner]
    return films.subset(np.flatnonzero(chosen)), films.subset(np.flatnonzero(~chosen))


def _training_normals(run: Run, cache_path: Path | None) -> FilmSet:
    """Return the films that a run's reference was fitted on."""
    cache, split = run_cache_and_split(run, cache_path)
    rows = np.flatnonzero((split == "train") & (cache.index["label"] == 0))
    return FilmSet(cache, run.config.variant, rows, run.config.size)


def _refit(run: Run, scorer: "TorchScorer", fitted: FilmSet, options: CalibrateOptions) -> bytes:
    """Fit what scores compare with anew, and return the tensors that this changes as a .safetensors file."""
    from anomaly.pipeline.refit import refit

    return refit(scorer, [fitted] if options.only_local else [_training_normals(run, options.cache), fitted])


def _refit_words(fitted: FilmSet, run: Run, options: CalibrateOptions) -> str:
    local = f"{counted(len(fitted), 'local film')} of {_patients(fitted)}"
    if options.only_local:
        return local
    return f"{local} and the {counted(len(_training_normals(run, options.cache)), 'film')} of the training"


def _patients(films: FilmSet) -> str:
    return counted(len(set(films.column("patient"))), "patient")
