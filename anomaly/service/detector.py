"""The detector of a worker process: films on the disk in, results and heatmaps beside them out."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from anomaly.export.bundle import run_name
from anomaly.export.finding import UNLIKE
from anomaly.runs import FAILING, DiskFull, Run, to_json, write_atomic
from anomaly.service.identity import write_identity
from anomaly.service.records import DetectorFacts, FilmResult, PartResult
from anomaly.service.spool import now
from preprocessing import InputError

if TYPE_CHECKING:
    from anomaly.pipeline.heatmaps import Heatmap
    from anomaly.pipeline.scoring import ScoringResult, UnitScore


@dataclass(frozen=True)
class Task:
    """A film to score.

    Its files are `<stem>.json`, `<stem>_heatmap.png`, ...; with `-1` and `-2` after the stem, of two hands.
    """

    id: str
    film: Path
    folder: Path  # where its files go
    stem: str
    heatmaps: tuple[str, ...] = ()  # of png, tiff, npy
    dicom: tuple[str, ...] = ()  # of `KINDS`: which DICOM objects of the finding
    identify: bool = False  # whether what a DICOM header says of the patient is written too, as `identity.json`

    @property
    def result(self) -> Path:
        """The file of the result, written last."""
        return self.folder / f"{self.stem}.json"


class Detector(Protocol):
    """What scores films, in a worker process."""

    facts: DetectorFacts

    def score(self, tasks: Sequence[Task]) -> list[FilmResult]:
        """Score films, write their files and return their results, in this order.

        A film that can't be scored has a result that says so. Raises DiskFull where files can't be written.
        """


@dataclass(frozen=True)
class OpenRunFolder:
    """Opens a run folder or bundle; picklable, to be called in the worker."""

    run: Path
    calibration: str | None = None
    device: str = "auto"

    def __call__(self) -> Detector:
        """Open it; raises InputError as `anomaly.load` does."""
        return RunDetector(self)


class RunDetector:
    """A run at work."""

    def __init__(self, opened: OpenRunFolder) -> None:
        import anomaly

        self._run = anomaly.load(opened.run, calibration=opened.calibration, device=opened.device)
        main = self._run.main_score
        self.facts = DetectorFacts(
            model=self._run.model,
            run=run_name(self._run.path),
            score_name=main,
            threshold=self._run.thresholds["film"][main],
            map_scale=self._run.map_scale,
            map_unit=self._run.map_unit,
            synthetic=Run(self._run.path).config.cache.synthetic,
            digest=self._run.digest,
            calibration=self._run.calibration_name,
            remembered=self._run.remembered,
        )

    def score(self, tasks: Sequence[Task]) -> list[FilmResult]:
        """Score films in one pass; where that fails, each by itself, so that one harms no other."""
        try:
            return self._score_and_write(tasks)
        except (OSError, InputError) as error:
            # It is no fault of the film, which is scored once the disk is well again.
            if not isinstance(error, DiskFull) and (failed := _disk_error(error)):
                raise DiskFull(f"{failed.filename or 'disk'}: {failed.strerror}") from error
            raise

    def _score_and_write(self, tasks: Sequence[Task]) -> list[FilmResult]:
        try:
            results = self._score(tasks)
        except Exception as error:
            if isinstance(error, DiskFull) or _disk_error(error):
                raise
            if len(tasks) > 1:
                return [result for task in tasks for result in self._score_and_write([task])]
            reason = str(error) if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {error}"
            results = [_failed(tasks[0], reason)]
        for task, result in zip(tasks, results, strict=True):
            if task.identify:
                write_identity(task.film, task.folder, whole=result.state == "scored")
            write_atomic(task.result, to_json(result.model_dump(mode="json")))
        return results

    def _score(self, tasks: Sequence[Task]) -> list[FilmResult]:
        """Score films of which something is to be drawn, and those of which nothing is, and return them in order."""
        results: dict[str, FilmResult] = {}
        for draws in (False, True):
            some = [task for task in tasks if bool(task.heatmaps or task.dicom) == draws]
            if some:
                found = self._score_some(some, draws=draws)
                results |= {task.id: result for task, result in zip(some, found, strict=True)}
        return [results[task.id] for task in tasks]

    def _score_some(self, tasks: Sequence[Task], *, draws: bool) -> list[FilmResult]:
        films, notes = [task.film for task in tasks], []
        heatmaps: list[Heatmap] = []
        # Prepared in this process, which is to hold all memory that a film takes; films that happen to wait together
        # are no set to compare with the training's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unreadable films, each of which has a result of its own
            if draws and self.facts.map_scale is None:
                notes = [f"no heatmap and no DICOM objects: {self.facts.model} scores a film as a whole"]
                draws = False
            if draws:
                scored, heatmaps = self._run.examine(films, workers=1, as_set=False)
            else:
                scored = self._run.score(films, workers=1, as_set=False)
        names = _names(films)
        failures = dict(scored.failures)
        parts: dict[str, list[tuple[int, UnitScore]]] = {}
        for film in scored.films:
            name, _, hand = film.id.rpartition("#")
            whole = film.id in names
            parts.setdefault(film.id if whole else name, []).append((0 if whole else int(hand), film))
        drawn = {name: _Drawn(notes=list(notes)) for name in names}
        by_name = dict(zip(names, tasks, strict=True))
        for heatmap in heatmaps:
            name = heatmap.name if heatmap.name in by_name else heatmap.name.rpartition("#")[0]
            drawn[name].add(by_name[name], 0 if heatmap.name in by_name else heatmap.hand, heatmap)
        results = []
        for name in names:
            if name in parts:
                results.append(self._result(scored, parts[name], drawn[name]))
            else:
                results.append(_failed(by_name[name], failures.get(name, "it shows no film")))
        return results

    def _result(
        self,
        scored: "ScoringResult",
        parts: "Sequence[tuple[int, UnitScore]]",
        drawn: "_Drawn",
    ) -> FilmResult:
        outside = any(film.out_of_domain for _, film in parts)
        remembered = scored.run.remembered
        return FilmResult(
            state="scored",
            finished=now(),
            model=self.facts.model,
            run=self.facts.run,
            detector=self.facts.digest,
            score_name=scored.main,
            threshold=scored.threshold("film"),
            synthetic=self.facts.synthetic,
            parts=[
                PartResult(
                    part=part,
                    score=film.score,
                    scores=film.scores,
                    flagged=film.flagged,
                    p_value=film.p_value,
                    p_interval=film.p_interval,
                    out_of_domain=film.out_of_domain,
                    files=drawn.files.get(part, []),
                )
                for part, film in parts
            ],
            notes=[
                *([OUTSIDE] if outside else []),
                *drawn.notes,
                *([remembered] if remembered else []),
                *scored.calibration_notes,
            ],
        )


NO_DICOM = "no DICOM objects: "
"""How the note of a film begins that was to have some."""
OUTSIDE = f"the film is {UNLIKE}, so its score means nothing"


def _disk_error(error: BaseException | None) -> OSError | None:
    """Return the failure of a disk that an error is, or comes from; None where it is another one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FAILING:
            return error
        error = error.__cause__
    return None


def _failed(task: Task, reason: str) -> FilmResult:
    # A list of one film that can't be read is an error, which names the list first.
    reason = reason.partition("left out: ")[2] or reason
    reason = reason.removeprefix(f"{task.film.name}: ").replace(str(task.film), "the film")
    reason = " ".join(reason.split())[:500]
    return FilmResult(state="failed", finished=now(), error=reason)


def _names(films: Sequence[Path]) -> list[str]:
    """Return what films given together are called: their paths below the folder that all have in common."""
    places = [film.resolve() for film in films]
    root = os.path.commonpath([place.parent for place in places])
    return [place.relative_to(root).as_posix() for place in places]


@dataclass
class _Drawn:
    """What was written of a film beside its scores."""

    files: dict[int, list[str]] = field(default_factory=dict)  # part -> names
    notes: list[str] = field(default_factory=list)

    def add(self, task: Task, part: int, heatmap: "Heatmap") -> None:
        """Write the files of a part of a film."""
        stem = f"{task.stem}-{part}" if part else task.stem
        names = self.files.setdefault(part, [])
        for suffix in task.heatmaps:
            heatmap.save(task.folder / f"{stem}_heatmap.{suffix}")
            names.append(f"heatmap.{suffix}")
        if task.dicom:
            try:
                content, said = _dicom_files(task, heatmap)
            except InputError as error:
                content, said = {}, (f"{NO_DICOM}{error}",)
            for name, data in content.items():
                write_atomic(task.folder / f"{stem}_{name}", data)
                names.append(name)
            self.notes += [note for note in said if note not in self.notes]


def _dicom_files(task: Task, heatmap: "Heatmap") -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the DICOM objects of a finding as names and bytes of files, and what was not taken over from the film.

    Raises InputError where the film has no study that they could join, and where they can't be made.
    """
    from anomaly.export.dicom_objects import dicom_bytes, dicom_results, kind_of
    from anomaly.export.dicom_source import source_header
    from preprocessing.readers import read_dicom_header

    source = read_dicom_header("the film", task.film.read_bytes())
    if source is None:
        raise InputError("the film is no DICOM film, so there is no study that they could join")
    notes = source_header(source).notes
    made = dicom_results(source, heatmap.finding(datetime.now().astimezone()), task.dicom)
    return {f"{kind_of(result)}.dcm": dicom_bytes(result) for result in made}, notes
