"""From a run and films to scores and figures, in one pass: what the verbs and the Python API both call."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.console import silent
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import Calibration, short
from anomaly.evaluation.cohort import Cohort, Groups, ScoredCohort
from anomaly.evaluation.conformal import benjamini_hochberg
from anomaly.evaluation.evaluation import Evaluation, evaluate
from anomaly.evaluation.figures import EvaluationSettings, LocalizationFigures, Metrics, Pooling, Unit
from anomaly.evaluation.localization import LocalizationRanking
from anomaly.evaluation.predict import PredictedFilms, ScoreColumns, predict
from anomaly.evaluation.requirements import without_figures
from anomaly.evaluation.shift import FactColumns
from anomaly.formatting import with_interval
from anomaly.pipeline.film_reference import Likeness, likeness
from anomaly.pipeline.gallery import Collector, GalleryCollector
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.selection import Display, Selection
from preprocessing.wording import counted, patients_note


@dataclass(frozen=True, slots=True)
class UnitScore:
    """What a run says of one film, study or patient."""

    id: str
    label: int  # 0 normal, 1 abnormal, -1 unknown
    films: int  # how many films it has
    scores: dict[str, float]  # every score, those of trivial detectors too
    score: float  # the one that flags
    flagged: bool  # whether it reaches the threshold
    p_value: float | None = None  # conformal: how often a normal one scores as high; None where it was not calibrated
    p_interval: tuple[float, float] | None = None  # 95 %, of the share of normal ones that score as high
    q_value: float | None = None  # by Benjamini and Hochberg over all films scored together, where that was asked for
    map: NDArray[np.float32] | None = None  # (S, S) of a film, smoothed, where maps were asked for
    out_of_domain: bool | None = None  # whether a film shows something else than the training's; None: not known

    def __repr__(self) -> str:
        return f"<{self.id}: {self.score:.6g}{', flagged' * self.flagged}>"


class PValues(NamedTuple):
    """Of N films, studies or patients."""

    p: NDArray[np.float64]  # (N,) conformal
    low: NDArray[np.float64]  # (N,) 95 % interval of the share of normal ones that score as high
    high: NDArray[np.float64]  # (N,)
    q: NDArray[np.float64] | None  # (N,) by Benjamini and Hochberg, where a false discovery rate was asked for


@dataclass(frozen=True)
class ScoringResult:
    """Scored films, grouped by study and patient, with all figures where labels allow any."""

    run: OpenRun
    selection: Selection
    scored: ScoredCohort
    main: str  # the score that flags, ranks and is reported first
    evaluation: Evaluation | None  # None of unlabelled films, and where the model was trained on some of the films
    gallery: GalleryCollector
    maps: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # by place, where they were asked for
    likeness: Likeness = field(default_factory=Likeness)  # whether the films are like those of the training
    no_figures: str | None = None  # why labelled films have none: packages that are missing

    @property
    def calibration(self) -> Calibration:
        """Thresholds and the scale of the maps."""
        return self.run.calibration

    @cached_property
    def films(self) -> list[UnitScore]:
        """Every film with its scores."""
        return list(self.units("film"))

    @cached_property
    def studies(self) -> list[UnitScore]:
        """Every study with its scores, in the order of their first films."""
        return list(self.units("study"))

    @cached_property
    def patients(self) -> list[UnitScore]:
        """Every patient with its scores, in the order of their first films."""
        return list(self.units("patient"))

    @property
    def figures(self) -> Metrics | None:
        """Every figure, with intervals; None for new films, and where the model was trained on some of the films."""
        return None if self.evaluation is None else self.evaluation.figures

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of the films that can't be read."""
        return list(self.selection.failures)

    @property
    def shift(self) -> list[str]:
        """In what new films are unlike those of the training or the calibration, a sentence each."""
        return self.likeness.sentences

    def out_of_domain(self, unit: Unit) -> NDArray[np.bool_] | None:
        """Return which films show something else than those of the training; studies and patients that have one."""
        outside = self.likeness.outside
        if outside is None or unit == "film":
            return outside
        ids = self.scored.cohort.study if unit == "study" else self.scored.cohort.patient
        return np.isin(self.groups(unit).ids, np.unique(ids[outside]))

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know: patients not known, films of the training among them, ..."""
        cohort = self.scored.cohort
        note = patients_note(cohort.unknown_patients, len(cohort.film))
        remembered = self.run.remembered
        return [
            *([note] if note else []),
            *self.selection.notes,
            *self.shift,
            *([remembered] if remembered else []),
            *([self.no_figures] if self.no_figures else []),
            *self.calibration_notes,
        ]

    def __len__(self) -> int:
        return len(self.scored.cohort.film)

    def __iter__(self) -> Iterator[UnitScore]:
        return iter(self.films)

    def __getitem__(self, place: int) -> UnitScore:
        return self.films[place]

    def __repr__(self) -> str:
        flagged = sum(film.flagged for film in self.films)
        figures, text = self.figures, ""
        if figures and figures.main.roc_auc is not None:
            text = f", ROC-AUC {with_interval(figures.main.roc_auc, figures.main.roc_auc_interval)}"
        unread = f", {len(self.failures)} unreadable" if self.failures else ""
        films = counted(len(self), "SYNTHETIC film" if self.scored.cohort.synthetic else "film")
        return f"<{self.main} of {films}: {flagged} flagged{text}{unread}>"

    def groups(self, unit: Unit) -> Groups:
        """Return the films, studies or patients with their scores."""
        return self.scored.groups[unit]

    def threshold(self, unit: Unit) -> float:
        """Return from where a film, study or patient is flagged."""
        return self.calibration.thresholds[self.scored.settings.aggregate][unit][self.main]

    def p_values(self, unit: Unit) -> "PValues | None":
        """Return the p-values of the main score; None where the run keeps no scores of normal films."""
        reference = self.calibration.reference(self.scored.settings.aggregate, unit, self.main)
        if reference is None:
            return None
        scores = self.groups(unit).scores[self.main]
        p, (low, high) = reference.p_values(scores), reference.intervals(scores).T
        return PValues(p, low, high, benjamini_hochberg(p) if self.calibration.rule == "false discoveries" else None)

    @property
    def flag_counts(self) -> str:
        """Say how many films, studies and patients are flagged, and why a study of one film may stand unlike it."""
        units: tuple[Unit, ...] = ("film", "study", "patient")
        of_films, counts, differs = self.threshold("film"), [], False
        for unit in units:
            groups = self.groups(unit)
            scores = groups.scores[self.main]
            flagged = scores >= self.threshold(unit)
            counts.append(f"{int(flagged.sum())} of {counted(len(scores), unit)}")
            differs |= bool(((flagged != (scores >= of_films)) & (groups.films == 1)).any())
        if not differs:
            return ", ".join(counts)
        thresholds = ", ".join(f"{unit} {self.threshold(unit):.6g}" for unit in units)
        return f"{', '.join(counts)}; each has a threshold of its own ({thresholds}), even with a single film"

    def flagging(self, unit: Unit) -> str:
        """Say how films, studies or patients are flagged, and how many normal ones that is expected to be."""
        return self.calibration.sentence(self.scored.settings.aggregate, unit, self.main)

    @property
    def calibration_notes(self) -> list[str]:
        """What p-values and thresholds rest on, where that is little, and for which films they don't hold."""
        notes = self.calibration.notes
        if self.calibration.normals is None:
            return notes
        seen = [name for name in ("train", "val") if (self.scored.cohort.split == name).any()]
        if seen:
            notes.append(f"p-values don't hold for films of {' and '.join(seen)}: the run was made with them")
        if self.calibration.rule == "false discoveries" and self.calibration.value:
            smallest = 1 / (self.calibration.patients + 1)
            least = math.ceil(round(len(self) * smallest / self.calibration.value, 9))
            if least > 1:
                notes.append(
                    f"q <= {short(self.calibration.value)} takes at least {least} of {counted(len(self), 'film')} that "
                    f"score above all {self.calibration.patients} normal patients: more normals would take fewer"
                )
        return notes

    def units(self, unit: Unit) -> Iterator[UnitScore]:
        """Give every film, study or patient with its scores, in the order of `films`, `studies`, `patients`."""
        groups, threshold, p_values = self.groups(unit), self.threshold(unit), self.p_values(unit)
        outside = self.out_of_domain(unit)
        for i, name in enumerate(groups.ids):
            scores = {score: float(values[i]) for score, values in groups.scores.items()}
            main = scores[self.main]
            yield UnitScore(
                str(name),
                int(groups.labels[i]),
                int(groups.films[i]),
                scores,
                main,
                main >= threshold,
                None if p_values is None else float(p_values.p[i]),
                None if p_values is None else (float(p_values.low[i]), float(p_values.high[i])),
                None if p_values is None or p_values.q is None else float(p_values.q[i]),
                map=self.maps.get(i) if unit == "film" else None,
                out_of_domain=None if outside is None else bool(outside[i]),
            )


def cohort_of(selection: Selection, by_column: Sequence[str] = ()) -> Cohort:
    """Return what is known of the films of a selection; `by_column`: the columns by whose values figures are wanted."""
    films = selection.films
    return Cohort(
        film=films.cache.names[films.rows],  # each hand of two is a film of its own
        study=films.column("study"),
        patient=films.column("patient"),
        label=films.label.astype(np.int64),
        split=selection.split,
        finding=films.column("finding"),
        difficulty=films.column("difficulty"),
        synthetic=films.cache.synthetic,
        unknown_patients=int((~films.column("patient_known")).sum()),
        columns={name: films.cache.column(name)[films.rows] for name in by_column},
    )


def score_selection(
    run: OpenRun,
    selection: Selection,
    *,
    by: str | None = None,
    pooling: Pooling = "mean",
    by_column: Sequence[str] = (),
    command: str = "",
    display: Display = silent,
    collect: Sequence[Collector] = (),
    fdr: float | None = None,
    as_set: bool = True,
) -> ScoringResult:
    """Score films, and compute every figure that their labels allow; each film passes the model once.

    by  the score that flags, ranks and is reported first; None: the model's first.    pooling  films -> study, patient.
    by_column  columns of the films, such as region or sex, by whose values figures are wanted too.
    command  what was typed, for the record.    collect  what else is kept of the pass, such as the maps of some films.
    fdr  the false discovery rate at which films of these, taken together, are flagged, instead of by the run's
    thresholds.    as_set  whether new films are also compared, as a set, with those of the training; without it, what
    is said of a film does not depend on the films beside it.
    """
    main, films = run.main_score(by), selection.films
    cohort = cohort_of(selection, by_column)
    columns, facts, gallery = ScoreColumns(films), FactColumns(films), GalleryCollector(main)
    measurable, lacking = _measurable(selection), without_figures()
    no_figures = f"no figures of these labelled films: {lacking}" if measurable and lacking else None
    measurable = measurable and lacking is None
    pointing = _Pointing(films, cohort) if measurable and run.calibration.map_scale is not None else None
    with display("scoring", len(films), "films") as advance:
        for predicted in predict(run.model, films, maps=run.calibration.map_scale is not None):
            columns.add(predicted)
            facts.add(predicted.places, predicted.films)
            gallery.add(predicted)
            if predicted.maps is not None and pointing is not None:
                pointing.add(predicted)
            for collector in collect:
                collector.add(predicted)
            advance(len(predicted.films))
    settings = EvaluationSettings(aggregate=pooling)
    scored = ScoredCohort(cohort, columns.finish(), settings)
    if fdr is not None:
        run = replace(run, calibration=run.calibration.discovering(fdr, scored))
    evaluation = None
    if measurable:
        calibration = run.calibration
        supervised = run.model.targets == "labels" and _probabilities(scored.scores[main])
        evaluation = evaluate(
            scored,
            main=main,
            thresholds=calibration.thresholds[pooling],
            chosen=None if calibration.youden is None else calibration.youden[pooling],
            localization=None if pointing is None else pointing.figures(settings),
            chosen_on=calibration.films if supervised else None,
            run=str(run.run.path),
            command=command,
        )
    like = likeness(run, films, facts.finish(), scored.scores[main], main, new=as_set and selection.name == "new")
    return ScoringResult(run, selection, scored, main, evaluation, gallery, likeness=like, no_figures=no_figures)


class _Pointing:
    """How well the maps of a set of films point at its marked lesions; no map is measured where none is marked."""

    def __init__(self, films: FilmSet, cohort: Cohort) -> None:
        self._films, self._cohort, self._ranking = films, cohort, LocalizationRanking()
        self._lesions = (films.label == 1) & films.cache.has_truth[films.rows]
        self._boxes = films.column("truth_from") == "boxes"

    def add(self, predicted: PredictedFilms) -> None:
        """Measure the maps of some films; those of unknown label count nowhere."""
        cohort = self._cohort
        for place in range(predicted.places.start, predicted.places.stop):
            index, label = place - predicted.places.start, int(cohort.label[place])
            mask = predicted.films.mask[index]
            if label == 1:
                lesions = self._films.marked(place) if self._lesions[place] else None
            elif label == 0 and self._lesions.any():
                lesions = np.zeros_like(mask)
            else:
                continue
            self._ranking.add(
                predicted.smoothed_map(index),
                lesions,
                mask,
                patient=str(cohort.patient[place]),
                finding=str(cohort.finding[place]),
                difficulty=str(cohort.difficulty[place]),
                truth_from="boxes" if self._boxes[place] else "masks",
            )

    def figures(self, settings: EvaluationSettings) -> LocalizationFigures:
        """The figures of all films."""
        return self._ranking.figures(level=settings.level, resamples=settings.resamples, seed=settings.seed)


def _measurable(selection: Selection) -> bool:
    """Whether figures can be computed: of films that the model has not seen, new ones if any label is known."""
    if selection.name == "new":
        return bool((selection.films.label >= 0).any())
    return "train" not in set(selection.split)


def _probabilities(values: NDArray[np.float64]) -> bool:
    """Return whether scores can be probabilities: a supervised detector may have others to flag by."""
    return bool(((values >= 0) & (values <= 1)).all())
