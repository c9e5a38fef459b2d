"""What the normal films of a training, or of a place where a run is used, look like: films.safetensors.

New films are compared with it: whether they are like those, and whether each shows the same part of the body.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.domain import Domain
from anomaly.evaluation.named_calibration import calibration_folder
from anomaly.evaluation.ranking import Floats
from anomaly.evaluation.shift import (
    ABNORMAL,
    LEAST_PATIENTS,
    Difference,
    FilmFacts,
    by_patient,
    differences,
    domain_sentence,
    facts_of,
    shift_sentence,
)
from anomaly.formatting import command_line
from anomaly.manifest import write_listed
from anomaly.pipeline.open_run import OpenRun, run_cache_and_split
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.wording import counted

FILE = "films.safetensors"
MOST_FILMS = 2000
"""Normal films looked at, taken evenly from all: bounds the file and the time."""


@dataclass(frozen=True)
class FilmReference:
    """What normal films look like."""

    facts: Mapping[str, Floats]  # name, as in `shift.COMPARED`, -> (P,) one value a patient
    thumbnails: NDArray[np.float16]  # (N, D) of the films that the domain was fitted on
    patient: NDArray[np.int64]  # (N,) whose they are, as a number
    limits: tuple[float, float] | None  # `limit` and `usual` of the domain; None: too few films to know what is usual

    @classmethod
    def of(cls, facts: FilmFacts, old: "FilmReference | None" = None) -> "FilmReference":
        """Make one of normal films; their domain takes in that of an older one, too."""
        owner = np.unique(facts.patient, return_inverse=True)[1].astype(np.int64)
        films, patient = facts.thumbnails.astype(np.float16), owner
        if old is not None:
            films = np.concatenate([films, old.thumbnails])
            patient = np.concatenate([owner, old.patient + owner.max() + 1])
        values = {name: by_patient(column, owner) for name, column in facts.values.items()}
        try:
            domain, distances = Domain.fit(films.astype(np.float32), patient)
        except ValueError:
            return cls(values, films, patient, None)
        content = by_patient(distances[: len(owner)], owner)
        return cls(values | {"content": content}, films, patient, (domain.limit, domain.usual))

    @property
    def domain(self) -> Domain | None:
        """What the films show; None where they are too few."""
        return None if self.limits is None else Domain(self.thumbnails.astype(np.float32), *self.limits)

    def write(self, path: Path) -> None:
        """Write it, and list it in the manifest of its folder."""
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {f"facts/{name}": values for name, values in self.facts.items()}
        arrays |= {"thumbnails": self.thumbnails, "patient": self.patient}
        if self.limits is not None:
            arrays["limits"] = np.array(self.limits)
        write_listed(path, save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))

    @classmethod
    def read(cls, path: Path, remedy: str = "delete it, and it is made again") -> "FilmReference":
        """Read it; raises InputError with the remedy where the file is missing or damaged."""
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            facts = {name.removeprefix("facts/"): arrays[name] for name in arrays if name.startswith("facts/")}
            limits = None
            if "limits" in arrays:
                limit, usual = arrays["limits"].tolist()
                limits = limit, usual
            return cls(facts, arrays["thumbnails"], arrays["patient"], limits)
        except Exception as error:  # safetensors has an error type of its own for every kind of damage
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path} can't be read ({reason}); {remedy}") from None


def keep_reference(run: Run, cache_path: Path | None = None) -> FilmReference:
    """Look at the normal films of a run, and keep what they look like with it.

    Those of its training and validation, at most `MOST_FILMS` of them. Raises InputError where its cache is gone.
    """
    cache, split = run_cache_and_split(run, cache_path)
    rows = np.flatnonzero(((split == "train") | (split == "val")) & (cache.index["label"] == 0))
    reference = FilmReference.of(facts_of(_evenly(FilmSet(cache, run.config.variant, rows, run.config.size))))
    reference.write(run.path / FILE)
    return reference


def training_reference(run: Run, cache_path: Path | None = None) -> FilmReference | None:
    """Return what the normal films of a training look like, as kept with the run or by a look at its cache.

    None where neither is there.
    """
    if (run.path / FILE).is_file():
        return FilmReference.read(run.path / FILE)
    try:
        return keep_reference(run, cache_path)
    except InputError:
        return None


def local_reference(run: Run, films: FilmSet, cache_path: Path | None = None) -> FilmReference:
    """Return what normal films of another place look like; their domain takes in that of the training."""
    return FilmReference.of(facts_of(_evenly(films)), training_reference(run, cache_path))


def _evenly(films: FilmSet) -> FilmSet:
    if len(films) <= MOST_FILMS:
        return films
    return films.subset(np.linspace(0, len(films) - 1, MOST_FILMS).round().astype(np.int64))


@dataclass(frozen=True)
class Likeness:
    """Whether films are like those that a run was made with."""

    outside: NDArray[np.bool_] | None = None  # (N,) which show something else; None: that is not known
    sentences: list[str] = field(default_factory=list)


def likeness(run: OpenRun, films: FilmSet, facts: FilmFacts, scores: Floats, main: str, *, new: bool) -> Likeness:
    """Compare films, whose facts and main score (N,) are given, with those that a run's calibration rests on.

    new  whether they are other films than the run's own: of those nothing is said.
    """
    if not run.run.finished:  # what the weights are of is said already
        return Likeness()
    reference = _reference(run)
    if reference is None:
        why = (
            f"whether these films are like those of the training is not known: {run.run.path} has no summary of those, "
            "and its cache is gone; give its new place with --cache"
        )
        return Likeness(None, [why] if new else [])
    domain = reference.domain
    if domain is not None:
        facts = replace(facts, values={**facts.values, "content": domain.distances(facts.thumbnails)})
    facts = replace(facts, values={**facts.values, "score": scores})
    found, sentences = _differences(run, reference, films, facts, main) if new else ([], [])
    outside = None
    if domain is not None:
        # Films of a set that shows something else are likely to do so, too: less evidence of each is needed.
        limit = domain.usual if any(one.other_part for one in found) else domain.limit
        outside = facts.values["content"] > limit
    if not new:
        return Likeness(outside)
    whose = _whose(run)
    if found and (outside is None or outside.mean() <= 0.5):  # of films that show something else, that is enough
        command = command_line("anomaly", "calibrate", run.run.path, "NORMALS")
        sentences.append(shift_sentence(found, whose, f"calibrate with local normals: `{command}`"))
    if outside is not None and outside.any():
        names = films.cache.names[films.rows[outside]].tolist()
        sentences.insert(0, outside_sentence(run, names, len(films)))
    return Likeness(outside, sentences)


def domain_of(run: OpenRun) -> Domain | None:
    """Return what the films that a run's calibration rests on show, by which one film is judged by itself.

    None where that is not known. Raises InputError where the file that says it is damaged.
    """
    reference = _reference(run) if run.run.finished else None
    return None if reference is None else reference.domain


def outside_sentence(run: OpenRun, names: Sequence[str], films: int) -> str:
    """Say which of a number of films are unlike those that a run's calibration rests on."""
    return domain_sentence(names, films, _whose(run))


def _whose(run: OpenRun) -> str:
    return "the training" if run.calibrated_on is None else f"the calibration {run.calibrated_on}"


def _reference(run: OpenRun) -> FilmReference | None:
    if run.calibration_name is None:
        return training_reference(run.run, run.cache_path)
    return FilmReference.read(calibration_folder(run.run, run.calibration_name) / FILE, "calibrate again")


def _differences(
    run: OpenRun, reference: FilmReference, films: FilmSet, facts: FilmFacts, main: str
) -> tuple[list[Difference], list[str]]:
    """Return how films differ as a set, and what can't be told; patients known to be abnormal don't count."""
    label = films.label
    counting = ~np.isin(facts.patient, np.unique(facts.patient[label == 1]).tolist())
    patient = facts.patient[counting]
    patients = len(set(patient))
    if patients < LEAST_PATIENTS:
        few = f"{counted(patients, 'patient')} are too few to tell whether the films are like those of {_whose(run)}"
        return [], [f"{few} ({LEAST_PATIENTS} are needed)"] if patients > 1 else []
    old = dict(reference.facts)
    if run.calibration.normals is not None and main in run.calibration.normals.scores:
        normals = run.calibration.normals
        old["score"] = by_patient(np.array(normals.scores[main]), np.array(normals.patient))
    new = {name: by_patient(column[counting], patient) for name, column in facts.values.items() if name in old}
    share = 0.0 if (label[counting] == 0).all() else ABNORMAL
    return differences(old, new, abnormal=share), []
