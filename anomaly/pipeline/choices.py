"""What a user chose and the run remembers: the score, how films are pooled, how thresholds are found, the calibration.

`anomaly score` remembers what was given explicitly, in RUN/choices.json; later scoring, heatmaps and pages use it, and
say so. An explicit option always wins. Benjamini and Hochberg's procedure is asked for one list and isn't remembered.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from anomaly.console import silent
from anomaly.evaluation.calibration import FlagRule, ScoredFilms
from anomaly.evaluation.figures import POOLINGS, Pooling
from anomaly.evaluation.named_calibration import OWN, calibration_folder
from anomaly.evaluation.predict import score as score_films
from anomaly.manifest import write_listed
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.selection import Display, recorded_films
from anomaly.runs import Record, Run, sha256, to_json
from preprocessing import InputError

FILE = "choices.json"
ABNORMAL = "abnormal.json"
FlagKind = Literal["false alarms", "sensitivity", "threshold", "fdr"]
FLAG_KINDS: tuple[FlagKind, ...] = ("false alarms", "sensitivity", "threshold", "fdr")


class Choices(Record):
    """choices.json of a run; None: nothing was chosen."""

    format: Literal[1] = 1
    score: str | None = None
    """The score that flags, ranks and is reported first."""
    aggregate: Pooling | None = None
    rule: FlagRule | None = None
    calibration: str | None = None
    """The name of one beside the run's own."""

    def updated(self, given: "Choices") -> "Choices":
        """Return the choices with those that are given now in place of older ones.

        A threshold is a value of one score under one calibration: with another of either it isn't used.
        """
        changes = {name: value for name, value in given if value is not None}
        merged = self.model_copy(update=changes)
        if merged.calibration == OWN:
            merged = merged.model_copy(update={"calibration": None})
        same = (merged.score, merged.calibration) == (self.score, self.calibration)
        if given.rule or same or not self.rule or self.rule.kind != "threshold":
            return merged
        return merged.model_copy(update={"rule": None})

    def words(self) -> list[str]:
        """Return the choices as options of the command line."""
        options = {"--by": self.score, "--aggregate": self.aggregate, "--calibration": self.calibration}
        if self.rule:
            options[f"--{self.rule.kind.replace(' ', '-')}"] = repr(self.rule.value)
        return [word for option, value in options.items() if value is not None for word in (option, value)]


class AbnormalScores(Record):
    """abnormal.json, beside a calibration: how the abnormal validation films score."""

    calibration_sha256: str
    films: ScoredFilms


@dataclass(frozen=True)
class Chosen:
    """A run with everything chosen that scoring needs."""

    run: OpenRun  # its thresholds are those of the rule, and `remembered` says what wasn't given now
    score: str
    aggregate: Pooling
    choices: Choices  # given now or before
    fdr: float | None = None


def choices_of(
    *,
    score: str | None = None,
    aggregate: str | None = None,
    false_alarms: float | None = None,
    sensitivity: float | None = None,
    threshold: float | None = None,
    fdr: float | None = None,
) -> Choices:
    """Return what is given, checked: names of poolings, values in their range, one way of flagging at most."""
    if aggregate is not None and aggregate not in POOLINGS:
        raise InputError(f"no aggregate {aggregate!r}; there are: {', '.join(sorted(POOLINGS))}")
    rules = {"false alarms": false_alarms, "sensitivity": sensitivity, "threshold": threshold, "fdr": fdr}
    ways = {kind: value for kind, value in rules.items() if value is not None}
    if len(ways) > 1:
        names = " and ".join(_option(kind) for kind in ways)
        raise InputError(f"{names} exclude each other: each says alone which films are flagged; leave out all but one")
    for kind, value in ways.items():
        if kind == "threshold" and not math.isfinite(value):
            raise InputError(f"--threshold is {value}; give a value of the score")
        if kind != "threshold" and not 0 < value < 1:
            raise InputError(f"{_option(kind)} is {value:g}; give a share between 0 and 1, such as 0.05")
    kept = [FlagRule.model_validate({"kind": kind, "value": value}) for kind, value in ways.items() if kind != "fdr"]
    return Choices.model_validate({"score": score, "aggregate": aggregate, "rule": kept[0] if kept else None})


def _option(kind: str) -> str:
    return f"--{kind.replace(' ', '-')}"


def read_choices(run: Run) -> Choices:
    """Return what the run remembers; nothing where nothing was chosen. Raises InputError where the file is damaged."""
    if not (run.path / FILE).exists():
        return Choices()
    return run.read(FILE, Choices, remedy="delete it to begin with the defaults")


def calibration_to_use(run: Run, given: str | None) -> str | None:
    """Return the name of the calibration that is given, or else remembered; None for the run's own."""
    name = given or read_choices(run).calibration
    return None if name == OWN else name


def remember(chosen: "Chosen") -> None:
    """Keep what was chosen with the run, now or before; where the run remembers that already, nothing is written."""
    run = chosen.run.run
    if chosen.choices != read_choices(run):
        write_listed(run.path / FILE, to_json(chosen.choices.model_dump(exclude_none=True)))


def choose(
    opened: OpenRun,
    given: Choices,
    *,
    fdr: float | None = None,
    cache_path: Path | None = None,
    display: Display = silent,
) -> Chosen:
    """Return a run as it was chosen to score: with what is given, else what it remembers, else the defaults.

    fdr  a false discovery rate flags instead of any threshold.    cache_path  where the run's cache is now, if not
    where it was: a sensitivity needs its abnormal validation films, which pass the model once. Raises InputError where
    the model has no such score, or the films can't tell what is asked.
    """
    old = read_choices(opened.run)
    choices = old.updated(given)
    first = opened.model.score_names[0]
    if given.score is None and old.score is not None and old.score not in opened.model.score_names:
        raise InputError(f"{opened.run.path / FILE} names a score {old.score!r} that the model has not; delete it")
    main = opened.main_score(choices.score)
    if choices.rule and choices.rule.kind == "threshold":
        choices = choices.model_copy(update={"score": main})
    calibration = opened.calibration
    if choices.rule and not fdr:
        wanted = choices.rule.kind == "sensitivity"
        abnormal = _scores_of_abnormal(opened, choices.calibration, cache_path, display) if wanted else None
        calibration = calibration.applying(choices.rule, main, abnormal)
    note = _remembered(opened.run, old, given, first, flags=fdr is None)
    run = replace(opened, calibration=calibration, remembered=note)
    return Chosen(run, main, choices.aggregate or "mean", choices, fdr)


def _remembered(run: Run, old: Choices, given: Choices, first: str, *, flags: bool) -> str | None:
    """Say which of the older choices are used, where they aren't what is done unasked; None where there is none."""
    merged = old.updated(given)
    used = []
    if given.score is None and merged.score not in (None, first):
        used.append(f"--by {merged.score} (the model's first is {first})")
    if given.aggregate is None and merged.aggregate not in (None, "mean"):
        used.append(f"--aggregate {merged.aggregate}")
    if given.rule is None and merged.rule and flags:
        used.append(" ".join(Choices(rule=merged.rule).words()))
    if given.calibration is None and merged.calibration:
        used.append(f"--calibration {merged.calibration}")
    notes = [f"{', '.join(used)}: as chosen before ({run.path / FILE}; delete it for the defaults)"] if used else []
    if old.rule and merged.rule is None:
        notes.append(f"the threshold {old.rule.value:g} chosen before is of {old.score} and isn't used")
    return "; ".join(notes) or None


def _scores_of_abnormal(
    opened: OpenRun, calibration: str | None, cache_path: Path | None, display: Display
) -> ScoredFilms:
    """Return the scores of the abnormal validation films: kept ones, or taken now and kept with a finished run."""
    run = opened.run
    folder = run.path if calibration is None else calibration_folder(run, calibration)
    name = str((folder / ABNORMAL).relative_to(run.path))
    digest = sha256(folder / "calibration.json") if run.finished else ""
    if run.finished and (folder / ABNORMAL).is_file():
        kept = run.read(name, AbnormalScores, remedy="delete it")
        if kept.calibration_sha256 == digest:
            return kept.films
    films = recorded_films(run, "val", cache_path).films
    films = films.subset(np.flatnonzero(films.label == 1))
    if not len(films):
        raise InputError(f"{run.path} has no abnormal validation films to find a sensitivity on; use --false-alarms")
    with display("scoring", len(films), "abnormal validation films") as advance:
        scores = score_films(opened.model, films, advance)
    abnormal = ScoredFilms.of(films.column("patient"), films.column("study"), scores)
    if run.finished:
        record = AbnormalScores(calibration_sha256=digest, films=abnormal)
        write_listed(run.path / name, to_json(record.model_dump()))
    return abnormal
