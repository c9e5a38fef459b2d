"""Two runs compared on the same test films, by the films' scores as `anomaly score` wrote them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomaly.console import plain
from anomaly.evaluation.bootstrap import Comparison, interval, paired
from anomaly.evaluation.ranking import Floats, has_both_classes, roc_auc
from anomaly.formatting import command_line
from anomaly.manifest import check_file
from anomaly.runs import Run, read_csv
from preprocessing import InputError
from preprocessing.where import LABEL_VALUES
from preprocessing.wording import counted, did_you_mean

LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    run: Run
    score: str
    roc_auc: float
    interval: tuple[float, float]  # over patients; nan where it is undefined


@dataclass(frozen=True)
class RunComparison:
    """ROC-AUC by film of two runs on the same test films; the difference is the first less the second."""

    first: Side
    second: Side
    films: int
    abnormal: int
    patients: int
    comparison: Comparison
    left_out: int  # test films that only one of them has
    synthetic: bool

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        sides = {
            name: {
                "run": str(side.run.path),
                "score": side.score,
                "roc_auc": side.roc_auc,
                "interval": None if np.isnan(side.interval[0]) else list(side.interval),
            }
            for name, side in (("first", self.first), ("second", self.second))
        }
        figures = self.comparison.figures().to_data()
        counts = {
            "films": self.films,
            "abnormal": self.abnormal,
            "patients": self.patients,
            "left_out": self.left_out,
        }
        return {**sides, **figures, **counts, "level": LEVEL, "synthetic": self.synthetic}


def compare_runs(
    first: tuple[Run, str | None], second: tuple[Run, str | None], *, shared: bool = False
) -> RunComparison:
    """Compare the ROC-AUC by film of two finished runs on their test films, patients drawn for both alike.

    first, second  run and score; None for the score that `anomaly score` reported first.    shared  whether test films
    that only one run has are left out; otherwise both must have the same. Films are the same where path, patient and
    label are: caches of other variants or sizes can be compared. Raises InputError for runs that are unfinished, not
    scored, of other films or splits, or without films of both classes.
    """
    sides = [first, second]
    lines = [_test_films(run) for run, _ in sides]
    names = [_score_name(run, score, table) for (run, score), table in zip(sides, lines, strict=True)]
    if first[0].path.resolve() == second[0].path.resolve() and names[0] == names[1]:
        raise InputError(f"{first[0].path} is compared with itself; name another run, or another score: RUN:SCORE")
    common, left_out = _common(first[0], second[0], *lines, shared=shared)
    label = np.array([LABEL_VALUES[lines[0][film]["label"]] for film in common], np.int64)
    patient = np.array([lines[0][film]["patient"] for film in common])
    if not has_both_classes(label):
        abnormal = int(label.sum())
        raise InputError(
            f"{first[0].path}: {len(label) - abnormal} normal and {abnormal} abnormal test films; a ROC-AUC needs both"
        )
    scores: list[Floats] = [
        np.array([float(table[film][name]) for film in common]) for table, name in zip(lines, names, strict=True)
    ]
    compared = [
        Side(run, name, roc_auc(label, values), interval(label, values, patient, level=LEVEL))
        for (run, _), name, values in zip(sides, names, scores, strict=True)
    ]
    return RunComparison(
        first=compared[0],
        second=compared[1],
        films=len(label),
        abnormal=int(label.sum()),
        patients=len(np.unique(patient)),
        comparison=paired(label, scores[0], scores[1], patient, level=LEVEL),
        left_out=left_out,
        synthetic=first[0].config.cache.synthetic or second[0].config.cache.synthetic,
    )


def _test_films(run: Run) -> dict[str, dict[str, str]]:
    """Return the lines of a run's scores.csv of known label, by film."""
    if not run.finished:
        raise InputError(f"{run.path} is unfinished, and its scores those of a checkpoint; finish its training first")
    file = run.path / "scores.csv"
    if not file.is_file():
        raise InputError(f"{run.path} is not scored yet; run `{command_line('anomaly', 'score', run.path)}`")
    again = command_line("anomaly", "score", run.path)
    check_file(file, f"run `{again}` to make it again")
    try:
        return {line["film"]: line for line in read_csv(file, again) if line["label"] in LABEL_VALUES}
    except KeyError as error:
        raise InputError(f"{file} is damaged ({plain(str(error))}); run `{again}` to make it again") from None


def _score_name(run: Run, score: str | None, films: Mapping[str, Mapping[str, str]]) -> str:
    """Return the column to compare by; the one that was reported first unless it is named."""
    columns = list(next(iter(films.values()), {}))
    known = columns[columns.index("split") + 1 : columns.index("flagged")] if "flagged" in columns else []
    if score is None:
        from anomaly.evaluation.figures import read_metrics

        score = read_metrics(run).score
    if score not in known:
        raise InputError(
            f"{run.path} has no score {score!r}; there are: {', '.join(known)}{did_you_mean(score, known)}"
        )
    return score


def _common(
    first: Run, second: Run, a: Mapping[str, Mapping[str, str]], b: Mapping[str, Mapping[str, str]], *, shared: bool
) -> tuple[list[str], int]:
    """Return the test films of both, and how many only one of them has: refused unless `shared` leaves them out."""
    common = [film for film in a if film in b]
    for film in common:
        for column in ("patient", "label"):
            if a[film][column] != b[film][column]:
                raise InputError(
                    f"{plain(film)} has {column} {a[film][column]!r} in {first.path} and {b[film][column]!r} in "
                    f"{second.path}: these are not the same films"
                )
    only = len(a) + len(b) - 2 * len(common)
    if not only:
        return common, 0
    if not common:
        raise InputError(f"{first.path} and {second.path} have no test film in common: no figure compares them")
    if not shared:
        raise InputError(
            f"{first.path} has {counted(len(a), 'test film')}, {second.path} has {len(b)}, and {len(common)} are the "
            "same: their films or splits differ; --shared compares them on those alone"
        )
    return common, only
