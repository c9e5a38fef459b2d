"""From the scores that candidates wrote to their figures and the choice among them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.detector_choice import RESAMPLES, Choice, Contender, choose, labelled_contender
from anomaly.evaluation.detector_search import AutoRecord, Basis, CandidateRecord, ChoiceRecord, ScoreRecord
from anomaly.evaluation.figures import TRIVIAL
from anomaly.evaluation.planted import PLANTED, PlantedScores, planted_contender, planted_figures
from anomaly.formatting import number, with_interval
from anomaly.pipeline.auto_candidates import CANDIDATES, Candidate
from anomaly.pipeline.auto_record import read_scores


def judged(folder: Path, record: AutoRecord, candidate: Candidate) -> CandidateRecord:
    """Return a candidate with its figures: by labels where val has both classes, by planted anomalies where scored."""
    known = record.candidate(candidate.name)
    assert known is not None
    scores = _Scores(folder, candidate.name)
    bases: list[Basis] = ["labels", "planted"]
    figures = {basis: scores.figures(candidate.scores, basis) for basis in bases}
    return known.model_copy(update={basis: values for basis, values in figures.items() if values})


def made_choice(folder: Path, record: AutoRecord) -> tuple[ChoiceRecord, dict[str, ScoreRecord]]:
    """Return the choice among all candidates that are done, and the figures of the trivial scores beside it."""
    done = [one for one in CANDIDATES if (known := record.candidate(one.name)) and known.state == "done"]
    tables = {one.name: _Scores(folder, one.name) for one in done}
    contenders = [tables[one.name].contender(name, record.basis) for one in done for name in one.scores]
    first = tables[done[0].name]
    rivals = [first.contender(name, record.basis) for name in TRIVIAL]
    choice = choose(contenders)
    floors = [*rivals, *(one for one in contenders if one.detector == _floor_name())]
    chosen = choice.chosen
    below = [one for one in floors if one.name != chosen.name and not _above(chosen, one)]
    return (
        ChoiceRecord(
            detector=chosen.detector,
            score=chosen.score,
            reason=_reason(choice, len(contenders), record),
            tied=[one.name for one in choice.tied],
            below_floor=_below(below),
        ),
        first.figures(TRIVIAL, record.basis),
    )


def _floor_name() -> str:
    return next(one.name for one in CANDIDATES if one.floor)


def _above(chosen: Contender, floor: Contender) -> bool:
    """Whether a contender is above another by more than 1.96 standard errors of the difference."""
    gaps = chosen.drawn - floor.drawn
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) < 2:
        return chosen.figure > floor.figure
    return bool(chosen.figure - floor.figure > 1.96 * gaps.std(ddof=1))


def _below(floors: Sequence[Contender]) -> str:
    if not floors:
        return ""
    names = " and ".join(f"{one.score} ({with_interval(one.figure, one.interval)})" for one in floors)
    return f"It is not clearly better than what needs no training: {names}"


def _reason(choice: Choice, contenders: int, record: AutoRecord) -> str:
    """Say why a detector was chosen, in a sentence."""
    what = "ROC-AUC of labelled validation films" if record.basis == "labels" else "figure on planted anomalies"
    chosen, best = choice.chosen, choice.best
    said = f"{chosen.name} has a {what} of {with_interval(chosen.figure, chosen.interval)}"
    if chosen is best:
        others = len(choice.tied) - 1
        rest = f"; {others} within half a standard error of it come later in the order" if others else ""
        return f"{said}, the highest of {contenders}{rest}"
    return (
        f"{said}; the highest of {contenders} is {best.name} with {number(best.figure)}, by less than half a "
        f"standard error of the difference ({number(choice.error)}), and of such the simplest is taken"
    )


class _Scores:
    """The table of one candidate's scores."""

    def __init__(self, folder: Path, candidate: str) -> None:
        self.name = candidate
        rows = read_scores(folder, candidate)
        self.planted = np.array([row["planted"] for row in rows])
        self.patient = np.array([row["patient"] for row in rows])
        self.label = np.array([int(row["label"]) for row in rows])
        self.columns = {
            name: np.array([float(row[name]) for row in rows])
            for name in (rows[0] if rows else {})
            if name not in ("film", "patient", "label", "planted")
        }

    def contender(self, score: str, basis: Basis) -> Contender:
        """Return one of its scores as a contender."""
        if basis == "labels":
            films = self.planted == ""
            label, patient = self.label[films], self.patient[films]
            draws = PatientBootstrap(label, patient, resamples=RESAMPLES, seed=0)
            return labelled_contender(self.name, score, self.columns[score][films], draws)
        return planted_contender(self.name, score, self._planted(score), self.patient[self.planted == "none"])

    def figures(self, scores: Sequence[str], basis: Basis) -> dict[str, ScoreRecord]:
        """Return the figures of scores; none where it was not scored for that."""
        found: NDArray[Any] = self.label[self.planted == ""] if basis == "labels" else self.planted[self.planted != ""]
        if not len(found) or (basis == "labels" and len(np.unique(found)) < 2):
            return {}
        result = {}
        for score in scores:
            one = self.contender(score, basis)
            families = planted_figures(score, self._planted(score)) if basis == "planted" else {}
            result[score] = ScoreRecord(figure=one.figure, interval=one.interval, families=families)
        return result

    def _planted(self, score: str) -> PlantedScores:
        values = self.columns[score]
        families = {family: {score: values[self.planted == family]} for family in PLANTED}
        return PlantedScores({score: values[self.planted == "none"]}, families)
