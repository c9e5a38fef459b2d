"""results.json: scored new films as a program reads them.

    format          1; another number is another meaning of what follows
    made            when, local time with its offset, ISO 8601
    run, model      the run folder and the name of its model
    calibration     the name of the calibration that thresholds and p-values are of, which may be the only one of a
                    bundle; null: the one made by the training
    source          where the films were
    score           the name of the score that ranks and flags
    aggregate       how films make a study or patient: mean or max
    thresholds      film, study, patient -> the value from which one is flagged
    synthetic       the films, or those of the training, were drawn by this program
    notes           what a reader has to know, a sentence each
    films           by falling score, each with
        rank        from 1
        film        its name in scores.csv: the path in its source, with #1 and #2 where it shows two hands
        study, patient, patient_known   False: the study or the film stands in for the patient
        label       normal, abnormal, unknown
        score       the one that ranks; `scores` has all by name, those of trivial detectors too
        flagged     whether it reaches the threshold
        p_value, p_interval, q_value   null where the run has none
        out_of_domain   whether it shows something else than the films of the training; null: not known
        columns     what the source says of it beyond that: region, site, sex, ...
        pictures    thumbnail, film, heatmap, reconstruction -> file, relative to results.json; {} without pictures
    studies, patients   in the order of scores.csv: id, label, films (how many), score, scores, flagged, p_value, ...
    failures        films that can't be read: path, reason

Keys may be added without another format; none is taken away. Each film, study and patient is a line: a set of 200,000
is written as it is made, as all of it would take gigabytes.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import numpy as np

from anomaly.evaluation.figures import Interval, Pooling, Unit
from anomaly.pipeline.pictures import Drawn
from anomaly.pipeline.scoring import ScoringResult, UnitScore
from anomaly.runs import Record
from preprocessing.where import LABELS

FORMAT = 1


class ScoredRecord(Record):
    """What results.json says of a film, study or patient alike."""

    label: Literal["normal", "abnormal", "unknown"]
    score: float
    scores: dict[str, float]
    flagged: bool
    p_value: float | None
    p_interval: Interval | None
    q_value: float | None
    out_of_domain: bool | None = None


class UnitRecord(ScoredRecord):
    """What results.json says of a study or patient."""

    id: str
    films: int


class FilmRecord(ScoredRecord):
    """What results.json says of a film."""

    rank: int
    film: str
    study: str
    patient: str
    patient_known: bool
    columns: dict[str, str]
    pictures: dict[str, str]


class FailureRecord(Record):
    """A film that can't be read."""

    path: str
    reason: str


class ResultsRecord(Record):
    """results.json; the module's docstring says what each key means."""

    format: int = FORMAT
    made: str
    run: str
    model: str
    calibration: str | None = None
    source: str
    score: str
    aggregate: Pooling
    thresholds: dict[Unit, float]
    synthetic: bool
    notes: list[str]
    films: list[FilmRecord]
    studies: list[UnitRecord]
    patients: list[UnitRecord]
    failures: list[FailureRecord]


def results_head(result: ScoringResult, drawn: Drawn) -> ResultsRecord:
    """Return what results.json says of scored films, but for the films, studies and patients themselves."""
    run, selection = result.run.run, result.selection
    identity = selection.identity
    return ResultsRecord(
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        run=str(run.path),
        model=run.config.model,
        calibration=result.run.calibrated_on,
        source=identity.source if identity else selection.films.cache.source_path,
        score=result.main,
        aggregate=result.scored.settings.aggregate,
        thresholds={unit: result.threshold(unit) for unit in ("film", "study", "patient")},
        synthetic=result.scored.cohort.synthetic or run.config.cache.synthetic,
        notes=[*result.notes, *drawn.notes],
        films=[],
        studies=[],
        patients=[],
        failures=[FailureRecord(path=path, reason=reason) for path, reason in result.failures],
    )


def results_json(result: ScoringResult, drawn: Drawn) -> Iterator[str]:
    """Give the text of results.json, piece by piece."""
    head = results_head(result, drawn).model_dump(mode="json")
    listed = {
        "films": film_records(result, drawn),
        "studies": map(_unit, result.units("study")),
        "patients": map(_unit, result.units("patient")),
    }
    for number, (key, value) in enumerate(head.items()):
        yield f"{',' * (number > 0) or '{'}\n  {json.dumps(key)}: "
        if key in listed:
            yield from _lines(listed[key])
        else:
            yield json.dumps(value, allow_nan=False)
    yield "\n}\n"


def _lines(records: Iterator[Any]) -> Iterator[str]:
    """Give a list of records, a line each."""
    comma = "["
    for record in records:
        yield f"{comma}\n    {json.dumps(record.model_dump(mode='json'), allow_nan=False)}"
        comma = ","
    yield "[]" if comma == "[" else "\n  ]"


def ranking(result: ScoringResult) -> list[int]:
    """Return the places of films by falling score, the first ones of equal score first."""
    return [int(place) for place in np.argsort(-result.scored.scores[result.main], kind="stable")]


def film_records(result: ScoringResult, drawn: Drawn) -> Iterator[FilmRecord]:
    """Give what results.json says of each film, by falling score."""
    films, cohort = result.selection.films, result.scored.cohort
    known = films.column("patient_known")
    columns = {name: values[films.rows] for name, values in films.cache.columns.items()}
    for rank, place in enumerate(ranking(result), 1):
        film, pictures = result.films[place], drawn.by_place.get(place)
        yield FilmRecord(
            rank=rank,
            film=film.id,
            study=str(cohort.study[place]),
            patient=str(cohort.patient[place]),
            patient_known=bool(known[place]),
            columns={name: str(values[place]) for name, values in columns.items() if values[place]},
            pictures={} if pictures is None else {"thumbnail": pictures.thumbnail, **pictures.layers},
            **_scores(film),
        )


def _unit(unit: UnitScore) -> UnitRecord:
    return UnitRecord(id=unit.id, films=unit.films, **_scores(unit))


def _scores(unit: UnitScore) -> dict[str, Any]:
    return {
        "label": LABELS[unit.label],
        "score": unit.score,
        "scores": unit.scores,
        "flagged": unit.flagged,
        "p_value": unit.p_value,
        "p_interval": unit.p_interval,
        "q_value": unit.q_value,
        "out_of_domain": unit.out_of_domain,
    }
