"""What validation films say: how normal films score, from which value films are flagged, and the one scale of all maps.

They come from validation normals alone; the thresholds of a supervised model, which has seen labels anyway, from the
labelled validation films. No film of the test split moves them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.classification import youden
from anomaly.evaluation.cohort import ScoredCohort, group
from anomaly.evaluation.conformal import Reference, benjamini_hochberg, in_percent
from anomaly.evaluation.figures import POOLINGS, UNITS, Pooling, Unit
from anomaly.evaluation.heatmap_scale import scale_of
from anomaly.evaluation.histogram import StreamingHistogram
from anomaly.evaluation.predict import ScoreColumns, predict
from anomaly.evaluation.ranking import Floats
from anomaly.evaluation.requirements import without_figures
from anomaly.evaluation.scorer import Scorer
from anomaly.runs import Record, Run
from preprocessing import InputError
from preprocessing.wording import counted, patients_note, plural

FALSE_ALARMS = 0.05
"""The rate that thresholds are made for where no other is asked for."""
FEW = 20
"""Normal patients below which a warning says what thresholds and p-values rest on."""
MOST_PATIENTS = 5000
"""Patients whose scores are kept; of more, as many drawn at random, which leaves p-values exact."""
Thresholds = dict[Pooling, dict[Unit, dict[str, float]]]


class FlagRule(Record):
    """How a threshold is found, as a user chose it."""

    kind: Literal["false alarms", "sensitivity", "threshold"]
    """Flag p-values up to `value`; from where that share of abnormal films is flagged; from that value of the score."""
    value: float


class ScoredFilms(Record):
    """The scores of M films, and which of them are of one patient or study; of new names, as 0, 1, ..."""

    patient: list[int]
    study: list[int]
    scores: dict[str, list[float]]

    @model_validator(mode="after")
    def _same_length(self) -> "ScoredFilms":
        if not self.patient or {len(self.study), *map(len, self.scores.values())} != {len(self.patient)}:
            raise ValueError("patient, study and scores must have one entry a film")
        return self

    @classmethod
    def of(cls, patient: ArrayLike, study: ArrayLike, scores: Mapping[str, Floats]) -> "ScoredFilms":
        """Keep the scores of films, name -> (M,), of patients and studies (M,); at most those of `MOST_PATIENTS`."""
        owner = np.unique(np.asarray(patient), return_inverse=True)[1]
        kept = np.ones(len(owner), np.bool_)
        if (number := int(owner.max()) + 1) > MOST_PATIENTS:
            kept = np.isin(owner, np.random.default_rng(0).permutation(number)[:MOST_PATIENTS])
        return cls(
            patient=owner[kept].tolist(),
            study=np.unique(np.asarray(study), return_inverse=True)[1][kept].tolist(),
            scores={name: values[kept].tolist() for name, values in scores.items()},
        )

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len(set(self.patient))

    def reference(self, pooling: Pooling, unit: Unit, score: str) -> Reference:
        """Return the scores of the films, studies or patients, each patient of weight 1."""
        ids = {"film": list(range(len(self.patient))), "study": self.study, "patient": self.patient}[unit]
        groups = group(ids, np.zeros(len(ids), np.int64), {score: self.scores[score]}, pooling)
        return Reference.of(groups.scores[score], np.array(self.patient)[groups.first])


class Calibration(Record):
    """calibration.json of a detector's run."""

    thresholds: Thresholds
    """How films are pooled -> unit -> score -> the value from which films, studies or patients are flagged."""
    map_scale: float | None
    """Where a map's colors end, in the unit of the map; None where the model draws none."""
    quantile: float
    """Share of normals that thresholds leave unflagged, as far as they were made for one."""
    films: int
    """Validation films the thresholds rest on."""
    rule: Literal["quantile", "youden", "false alarms", "sensitivity", "threshold", "false discoveries"] = "quantile"
    """How thresholds were found: as the interpolated quantile of normals (runs of format 4), on labelled validation
    films, by one of the ways that `FlagRule` has, or among the films scored together."""
    value: float | None = None
    """Of the rule, where it has one."""
    patients: int = 0
    """Normal patients that p-values rest on."""
    patients_left_out: int = 0
    """Normal patients beyond `MOST_PATIENTS`."""
    unknown_patients: int = 0
    """Normal films of which the patient isn't known: each counts as one, or its study does."""
    normals: ScoredFilms | None = None
    """The scores of the normal films; None in a run of format 4."""
    abnormal: ScoredFilms | None = None
    """The scores of the abnormal validation films, where thresholds are to reach a sensitivity."""
    youden: Thresholds | None = None
    """The thresholds found on labelled validation films, where those at work are others."""

    def reference(self, pooling: Pooling, unit: Unit, score: str) -> Reference | None:
        """Return the scores of normals for p-values; None where they weren't kept."""
        return None if self.normals is None else self.normals.reference(pooling, unit, score)

    def applying(self, rule: FlagRule, score: str, abnormal: ScoredFilms | None = None) -> "Calibration":
        """Return the calibration with thresholds by another rule: of every score, or of `score` alone for a threshold.

        abnormal  the scores of abnormal validation films, for a sensitivity. Raises InputError for a false-alarm rate
        or a sensitivity that so few patients can't tell, and where the scores of normal films weren't kept.
        """
        quantile = self.quantile
        if rule.kind == "threshold":
            thresholds = _each([score], lambda pooling, unit, name: rule.value)
        elif rule.kind == "sensitivity":
            assert abnormal is not None
            thresholds = _each(abnormal.scores, lambda *of: _reaching(rule.value, abnormal.reference(*of)))
        else:
            if self.normals is None:
                raise InputError(f"a false-alarm rate needs the scores of normal films; {NOT_KEPT}")
            quantile = 1 - rule.value
            thresholds = _false_alarms(self.normals, rule.value)
        changes = {"thresholds": thresholds, "quantile": quantile, "rule": rule.kind, "value": rule.value}
        return self._changed(changes | {"abnormal": abnormal})

    def discovering(self, fdr: float, scored: ScoredCohort) -> "Calibration":
        """Return the calibration with thresholds that flag what has a q-value of at most `fdr` among scored films.

        Benjamini and Hochberg's procedure by film, by study and by patient: it flags the highest scores, or none.
        Raises InputError where the scores of normal films weren't kept.
        """
        if self.normals is None:
            raise InputError(f"a false discovery rate needs the scores of normal films; {NOT_KEPT}")
        normals, pooling = self.normals, scored.settings.aggregate

        def threshold(unit: Unit, name: str) -> float:
            scores = scored.groups[unit].scores[name]
            flagged = benjamini_hochberg(normals.reference(pooling, unit, name).p_values(scores)) <= fdr
            return float(scores[flagged].min() if flagged.any() else np.nextafter(scores.max(), np.inf))

        found = {unit: {name: threshold(unit, name) for name in normals.scores} for unit in UNITS}
        changes = {"thresholds": {pooling: found}, "rule": "false discoveries", "value": fdr}
        return self._changed(changes)

    def _changed(self, changes: dict[str, object]) -> "Calibration":
        return self.model_copy(update={"youden": self.thresholds if self.rule == "youden" else self.youden} | changes)

    def sentence(self, pooling: Pooling, unit: Unit, score: str) -> str:
        """Say how films, studies or patients are flagged, and how many of normal ones that will be."""
        reference, value = self.reference(pooling, unit, score), self.thresholds[pooling][unit][score]
        normal = f"normal {plural(unit)}"
        known = "" if reference is None else f" of {normal} ({_patients(reference.patients)})"
        reached = "" if reference is None else in_percent(reference.share_from(value)) + known
        if self.rule == "quantile":
            return f"{1 - self.quantile:.0%} of the validation normals reach the threshold"
        if self.rule == "youden":
            also = f"; {reached} reach it" if reached else ""
            return f"the threshold was chosen on labelled validation films (Youden's index){also}"
        if self.rule == "threshold":
            return f"flagged from {value:.6g}, as given" + (f": {reached} reach it" if reached else "")
        if self.rule == "sensitivity":
            assert self.abnormal is not None
            found = self.abnormal.reference(pooling, unit, score)
            expected = f"{'' if found.single else 'at least '}{in_percent(_sensitivity(found, value))}"
            also = f", and {reached}" if reached else ""
            whom = counted(found.patients, "abnormal validation patient")
            return f"flagged from {value:.6g}: expect {expected} of abnormal {plural(unit)} ({whom}){also}"
        assert reference is not None
        if self.rule == "false discoveries":
            return (
                f"flags q <= {short(self.value or 0)} among the {plural(unit)} scored together: at most that share of "
                f"those flagged is expected to be normal ({_patients(reference.patients)}; smallest p "
                f"{_least(reference.patients)})"
            )
        return (
            f"flags p <= {short(1 - self.quantile)}: expect {'' if reference.single else 'at most '}"
            f"{in_percent(reference.false_alarm_rate(value))}{known}; smallest p {_least(reference.patients)}"
        )

    @property
    def chosen(self) -> str:
        """How the thresholds were chosen, in words that follow "the threshold"."""
        return {
            "quantile": "chosen on validation normals",
            "youden": "chosen on labelled validation films (Youden's index)",
            "false alarms": f"of p <= {short(1 - self.quantile)} among normal films",
            "sensitivity": f"that reaches a sensitivity of {short(self.value or 0)} on abnormal validation films",
            "threshold": "as given",
            "false discoveries": f"of q <= {short(self.value or 0)} among these films",
        }[self.rule]

    @property
    def notes(self) -> list[str]:
        """What a reader of thresholds and p-values has to know of the normals they rest on, a sentence each."""
        if self.normals is None:
            return [f"no p-values: {NOT_KEPT}"]
        notes = []
        if self.patients < FEW:
            notes.append(
                f"thresholds and p-values rest on {_patients(self.patients)}, fewer than {FEW}: no false-alarm rate "
                f"below {_least(self.patients)} can be told, and rates are uncertain"
            )
        unknown = patients_note(self.unknown_patients, len(self.normals.patient))
        if unknown:
            notes.append(f"p-values, {unknown}")
        if self.patients_left_out:
            notes.append(
                f"p-values rest on {self.patients} normal patients, drawn at random from "
                f"{self.patients + self.patients_left_out}"
            )
        return notes


NOT_KEPT = (
    "the calibration is of an older version, which kept no scores of normal films: train again, or calibrate on normals"
)


def short(value: float) -> str:
    """Return a share with three significant digits, without the leading zero.

    >>> short(0.05), short(1 / 413), short(1 - 0.95)
    ('.05', '.00242', '.05')
    """
    return f"{value:.3g}".removeprefix("0")


def _patients(number: int) -> str:
    return counted(number, "normal patient")


def _least(patients: int) -> str:
    """The smallest p-value, as a number and as the fraction that it is."""
    return f"{short(1 / (patients + 1))} (1/{patients + 1})"


def _each(scores: Iterable[str], threshold: Callable[[Pooling, Unit, str], float]) -> Thresholds:
    return {how: {unit: {name: threshold(how, unit, name) for name in scores} for unit in UNITS} for how in POOLINGS}


def _false_alarms(normals: ScoredFilms, rate: float) -> Thresholds:
    """The thresholds at which normals are flagged at a rate; raises InputError where they can't tell it."""
    if rate < 1 / (normals.patients + 1):
        raise InputError(
            f"a false-alarm rate of {short(rate)} can't be told from {_patients(normals.patients)}: take "
            f"{_least(normals.patients)} or more, or calibrate on more normal patients"
        )
    return _each(normals.scores, lambda *of: normals.reference(*of).threshold(rate))


def _mirrored(reference: Reference) -> Reference:
    """The scores with their signs changed: what lies above lies below."""
    below = reference.patients - np.append(reference.above[1:], 0.0)
    return replace(reference, values=-reference.values[::-1], above=below[::-1])


def _reaching(sensitivity: float, abnormal: Reference) -> float:
    """The value from which at least that share of abnormal films, studies or patients is flagged.

    A conformal threshold from below: an abnormal patient like these is missed with probability 1 - sensitivity at most.
    """
    missed = round(1 - sensitivity, 12)
    if missed < abnormal.smallest:
        raise InputError(
            f"a sensitivity of {short(sensitivity)} can't be told from "
            f"{counted(abnormal.patients, 'abnormal validation patient')}: take {short(1 - abnormal.smallest)} or less"
        )
    return -math.nextafter(_mirrored(abnormal).threshold(missed), -math.inf)


def _sensitivity(abnormal: Reference, threshold: float) -> tuple[float, float, float]:
    """The expected sensitivity of such a threshold, and its interval."""
    missed, low, high = _mirrored(abnormal).false_alarm_rate(math.nextafter(-threshold, math.inf))
    return 1 - missed, 1 - high, 1 - low


def calibrate(model: Scorer, films: FilmSet, on_films: Callable[[int], None] | None = None) -> Calibration:
    """Return thresholds and map scale from validation films: normal ones, or all labelled ones for a supervised model.

    p-values and a map's scale come from the normal ones in either case. One pass over the films.
    """
    label = films.label
    columns, histogram = ScoreColumns(films), StreamingHistogram()
    draws_maps = False
    for predicted in predict(model, films, maps=True, on_films=on_films):
        columns.add(predicted)
        draws_maps = predicted.maps is not None
        for index in np.flatnonzero(predicted.films.label == 0) if draws_maps else ():
            histogram.add(predicted.smoothed_map(int(index))[predicted.films.mask[index]])
    scores, normal = columns.finish(), label == 0
    patient, study = films.column("patient"), films.column("study")
    normals = ScoredFilms.of(patient[normal], study[normal], {name: values[normal] for name, values in scores.items()})
    # Fewer patients than it takes for the rate: those above all of them are flagged.
    rate = max(FALSE_ALARMS, 1 / (normals.patients + 1))
    supervised = model.targets == "labels"
    if supervised and (lacking := without_figures()):
        raise InputError(f"thresholds on labelled films (Youden's index) are figures: {lacking}")
    return Calibration(
        thresholds=_youden(films, scores) if supervised else _false_alarms(normals, rate),
        map_scale=scale_of(histogram) if draws_maps else None,
        quantile=1 - rate,
        films=len(label),
        rule="youden" if supervised else "false alarms",
        value=None if supervised else rate,
        patients=normals.patients,
        patients_left_out=len(np.unique(patient[normal])) - normals.patients,
        unknown_patients=int((~films.column("patient_known")[normal]).sum()),
        normals=normals,
    )


def _youden(films: FilmSet, scores: Mapping[str, Floats]) -> Thresholds:
    """The thresholds of a supervised model, on labelled films."""
    label = films.label
    ids: dict[Unit, NDArray[np.generic]] = {
        "film": np.arange(len(label)),
        "study": films.column("study"),
        "patient": films.column("patient"),
    }

    def threshold(pooling: Pooling, unit: Unit, name: str) -> float:
        groups = group(ids[unit], label, {name: scores[name]}, pooling)
        if {0, 1} <= set(groups.labels.tolist()):
            return youden(groups.labels, groups.scores[name])
        return youden(label, scores[name])  # every patient has an abnormal film: only films tell the classes apart

    return _each(scores, threshold)


def read_calibration(run: Run) -> Calibration:
    """Return the calibration kept with a run."""
    return run.read("calibration.json", Calibration)
