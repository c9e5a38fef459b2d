"""Which detector? Several are trained within a time budget, one is chosen on validation films, and tested once.

The budget counts the preparation of the films, every training, and the choice. Candidates are taken in their order,
the cheapest first; what each costs is measured on a few films before it starts, and one that does not fit is left out.
An interrupted search goes on where it stopped, with what is left of the budget.

The choice is made on `val`: by the ROC-AUC of labelled films where there are enough patients of both classes
(`detector_choice.LEAST_PATIENTS`), else by planted anomalies (`evaluation.planted`), the simplest of those
that can't be told from the best (`evaluation.detector_choice`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.console import clock, silent
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.detector_choice import enough_to_choose_by
from anomaly.evaluation.detector_search import AutoRecord, Basis, CandidateRecord, TestRecord
from anomaly.evaluation.figures import TRIVIAL
from anomaly.evaluation.planted import PLANTED, films_to_plant, planted_scores
from anomaly.evaluation.predict import score
from anomaly.formatting import command_line
from anomaly.pipeline.auto_candidates import CANDIDATES, Candidate, Cost, probe
from anomaly.pipeline.auto_choice import judged, made_choice
from anomaly.pipeline.auto_films import Films, PreparedFilms, prepare_films, wanted_record
from anomaly.pipeline.auto_record import open_folder, write_record, write_scores
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import OpenRun, open_run
from anomaly.pipeline.options import AutoOptions, Plan
from anomaly.pipeline.plan import Prepared, prepare
from anomaly.pipeline.results import write_results
from anomaly.pipeline.scoring import score_selection
from anomaly.pipeline.selection import Display, recorded_films
from anomaly.runs import DiskFull, Run
from anomaly.training.config import EpochReport
from anomaly.training.device import choose_device
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.wording import counted

BASES = ("auto", "labels", "planted")
CLOSING_SECONDS = 10.0
"""Of the choice and the page, beside the scores of the test films."""
LEAST_SECONDS = 15.0
"""With less left, or less than PROBES times what the longest probe took, no candidate is probed any more."""
PROBES = 2.5
PACE = (0.5, 3.0)
"""Least and largest correction of a probe by what the last candidate of the same model took."""

Tell = Callable[[str], None]


@dataclass
class Search:
    """One search: what is known so far, and the budget."""

    folder: Path
    record: AutoRecord
    options: AutoOptions
    display: Display
    tell: Tell
    before: float = 0.0  # seconds of earlier calls
    longest_probe: float = 0.0  # seconds
    began: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds of this call and of all before."""
        return self.before + time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return 60.0 * self.options.minutes - self.spent

    def save(self, **changes: Any) -> None:
        """Write the record, changed, with the time spent so far."""
        self.record = self.record.model_copy(update={**changes, "spent": self.spent})
        write_record(self.folder, self.record)

    def run_path(self, candidate: str) -> Path:
        """Return the run folder of a candidate."""
        return self.folder / candidate


def auto(options: AutoOptions, *, display: Display = silent, tell: Tell = lambda text: None) -> Search:
    """Prepare films, train candidates within the budget, choose one, test it once, write auto.json.

    tell  is given a line for each thing that is decided or done. The same call goes on with an interrupted search; one
    that is done is read back, and goes on with what was left out where the budget is larger now.
    """
    if options.choose_by not in BASES:
        raise InputError(f"no --choose-by {options.choose_by!r}; there are: {', '.join(BASES)}")
    choose_device(options.device)  # a wrong name is answered before anything is prepared
    films = Films.open(options.films, tuple(options.where))
    folder, record = open_folder(options.out, wanted_record(films, options))
    search = Search(folder, record.model_copy(update={"minutes": options.minutes}), options, display, tell)
    search.before = record.spent
    search.save()
    with _time_kept(search):
        if search.before:
            tell(f"{folder}: goes on; {clock(search.before)} of {options.minutes} min are spent")
        prepared = prepare_films(films, options, search.left, display)
        _describe_films(search, prepared)
        for candidate in CANDIDATES:
            _try(search, candidate)
        _conclude(search)
    return search


@contextmanager
def _time_kept(search: Search) -> Iterator[None]:
    """Note the time that is spent, also where an error or Ctrl-C ends it."""
    try:
        yield
    finally:
        search.save()


def _describe_films(search: Search, films: PreparedFilms) -> None:
    """Note what became of the films, and what the choice will be made by."""
    search.tell(films.text)
    cache = Cache(films.cache)
    plan = CANDIDATES[0].plan(_base_plan(search.options, films.cache, films.variant), cache.size)
    prepared = prepare(plan)  # too few films are refused here
    label, patient = cache.index["label"], cache.index["patient"]
    labelled = np.flatnonzero((prepared.split == "val") & (label >= 0))
    counts = {
        "train": prepared.config.films["train"],
        "val_normal": int((label[labelled] == 0).sum()),
        "val_abnormal": int((label[labelled] == 1).sum()),
        "test": int((prepared.split == "test").sum()),
    }
    basis, reason = _basis(search.options.choose_by, label[labelled], patient[labelled])
    search.save(
        cache=str(films.cache),
        variant=prepared.config.variant,
        synthetic=cache.synthetic,
        preparation=search.record.preparation or films.text,
        basis=basis,
        basis_reason=reason,
        counts=counts,
        notes=list(films.notes),
    )
    search.tell(f"{counts['train']} normal films to train on; chosen {reason}")


def _base_plan(options: AutoOptions, cache: Path, variant: str | None) -> Plan:
    # The films of a source were chosen when it was prepared; a cache has all of its own.
    where = options.where if options.films == cache else ()
    return Plan("", cache, variant, seed=options.seed, device=options.device, where=where)


def _basis(asked: str, label: NDArray[Any], patient: NDArray[Any]) -> tuple[Basis, str]:
    """Return what the choice is made by, and why, in words."""
    normal, abnormal = int((label == 0).sum()), int((label == 1).sum())
    films = f"{normal} normal and {counted(abnormal, 'abnormal film')} of val"
    if asked == "labels" and not (normal and abnormal):
        raise InputError(f"val has {films}: to choose by labels takes both; leave out --choose-by labels")
    if asked == "labels" or (asked == "auto" and enough_to_choose_by(label, patient)):
        return "labels", f"by the labels of {films}"
    why = "as asked for" if asked == "planted" else f"as val has too few patients of both classes ({films})"
    return "planted", f"by {len(PLANTED)} kinds of anomalies planted into normal films of val, {why}"


# --- a candidate ----------------------------------------------------------------------------------------------------


def _try(search: Search, candidate: Candidate) -> None:
    """Train a candidate and score what it is judged by, unless that is done, or it can't be had, or does not fit."""
    known = search.record.candidate(candidate.name)
    if known is not None and known.state == "done":
        search.tell(f"{candidate.name}: done before")
        return
    start, before = time.monotonic(), known.seconds if known else 0.0
    cache = Cache(Path(search.record.cache))
    base = _base_plan(search.options, cache.path, search.record.variant)

    def leave_out(reason: str, estimate: float | None = None) -> None:
        seconds = before + time.monotonic() - start
        made = CandidateRecord(
            name=candidate.name,
            model=candidate.model,
            preset=candidate.preset,
            state="left out",
            reason=reason,
            estimate=estimate,
            seconds=seconds,
        )
        search.save(candidates=search.record.with_candidate(made).candidates)
        search.tell(f"{candidate.name}: left out: {reason}")

    available = search.left - _reserve(search)
    if available < max(LEAST_SECONDS, PROBES * search.longest_probe):
        leave_out("too little time was left to see what it costs")
        return
    try:
        prepared = prepare(candidate.plan(base, cache.size))
        judged_on = _films_to_judge(search, prepared)
        cost = probe(prepared, sum(judged_on.values()))
        search.longest_probe = max(search.longest_probe, time.monotonic() - start)
        cost = cost.at_pace(_pace(search.record, candidate))
        available = search.left - _reserve(search, cost)
        epochs = cost.fitting_epochs(available)
        if cost.least > available or epochs < cost.least_epochs:
            leave_out(f"it takes about {clock(cost.least)}, and {clock(max(0, available))} were left", cost.least)
            return
        made = _train(search, candidate, base, cost, epochs)
    except DiskFull:  # every other candidate would meet it as well
        raise
    except InputError as error:
        leave_out(str(error))
        return
    made = made.model_copy(update={"seconds": before + time.monotonic() - start})
    # Known as done only with its figures: killed between the two, it would have none ever after, and not be chosen.
    judgement = judged(search.folder, search.record.with_candidate(made), candidate)
    search.save(candidates=search.record.with_candidate(judgement).candidates)
    search.tell(_line(search.record.basis, judgement))


def _line(basis: Basis, made: CandidateRecord) -> str:
    figures = "  ".join(f"{name} {one.figure:.3f}" for name, one in made.scores(basis).items())
    cut = f" ({made.reason})" if made.reason else ""
    return f"{made.name}: {figures}, {clock(made.seconds)}{cut}"


def _pace(record: AutoRecord, candidate: Candidate) -> float:
    """Return how many times longer than by its probe the last candidate of this model took."""
    ratios = [
        one.seconds / one.estimate
        for one in record.candidates
        if one.state == "done" and one.model == candidate.model and one.estimate
    ]
    return float(np.clip(ratios[-1], *PACE)) if ratios else 1.0


def _reserve(search: Search, cost: Cost | None = None) -> float:
    """Return the seconds that the choice and the test of the slowest detector so far will take."""
    known = [one.predict for one in search.record.candidates]
    slowest = max([*known, *([cost.predict] if cost else [])], default=0.0)
    return CLOSING_SECONDS + slowest * search.record.counts["test"]


def _films_to_judge(search: Search, prepared: Prepared) -> dict[str, int]:
    """Return how many films a candidate is to score: labelled ones, and planted ones with their normal twins."""
    normals, labelled = _validation(prepared)
    films = {"labelled": len(labelled)} if search.record.counts["val_abnormal"] else {}
    if search.record.basis == "planted":
        films["planted"] = len(films_to_plant(normals)) * (1 + len(PLANTED))
    return films


def _validation(prepared: Prepared) -> tuple[FilmSet, FilmSet]:
    """Return the normal validation films, and all labelled ones."""
    cache, config = prepared.cache, prepared.config
    label = cache.index["label"]
    rows = np.flatnonzero((prepared.split == "val") & (label >= 0))
    sets = [FilmSet(cache, config.variant, some, config.size) for some in (rows[label[rows] == 0], rows)]
    return sets[0], sets[1]


def _train(search: Search, candidate: Candidate, base: Plan, cost: Cost, epochs: int) -> CandidateRecord:
    """Train a candidate in its run folder, from wherever that stands, and write its scores."""
    path, cache = search.run_path(candidate.name), Cache(Path(search.record.cache))
    run = Run(path) if (path / "run.json").is_file() else None
    if run is not None and cost.epoch:
        epochs = int(run.config.settings.training["epochs"])  # a schedule may depend on them
    fewer = epochs if cost.epoch and epochs != cost.epochs else None
    prepared = prepare(candidate.plan(base, cache.size, fewer))
    run = continue_or_create(prepared, path, resume=run is not None)
    deadline = time.monotonic() + search.left - _reserve(search, cost) - cost.fixed
    with search.display(candidate.name, prepared.training.most_epochs, "epochs") as advance:
        advance(run.epochs_done())

        def on_epoch(report: EpochReport) -> None:
            advance(1, f"validation {report.figures['validation']:.5g}", report.seconds_left)

        fit(prepared, run, workers=0, on_epoch=on_epoch, should_stop=lambda state: time.monotonic() >= deadline)
    opened = open_run(run, search.options.device, cache.path)
    _write_scores(search, candidate, opened, prepared)
    trained = len(run.history()) if cost.epoch else None
    reason = ""
    if trained is not None and trained < cost.epochs and (fewer is not None or trained < epochs):
        reason = f"{trained} of {cost.epochs} epochs"
    return CandidateRecord(
        name=candidate.name,
        model=candidate.model,
        preset=candidate.preset,
        state="done",
        reason=reason,
        estimate=cost.seconds(epochs if cost.epoch else 0),
        epochs=trained,
        predict=cost.predict,
    )


def _write_scores(search: Search, candidate: Candidate, opened: OpenRun, prepared: Prepared) -> None:
    """Score the validation films, and those with planted anomalies where the choice is made by them."""
    normals, labelled = _validation(prepared)
    columns: dict[str, list[object]] = {}

    def add(films: FilmSet, planted: str, scores: dict[str, NDArray[np.float64]]) -> None:
        rows = {
            "film": films.cache.names[films.rows].tolist(),
            "patient": films.column("patient").tolist(),
            "label": films.label.tolist(),
            "planted": [planted] * len(films),
            **{name: scores[name].tolist() for name in (*candidate.scores, *TRIVIAL)},
        }
        for name, values in rows.items():
            columns.setdefault(name, []).extend(values)

    if search.record.counts["val_abnormal"]:
        add(labelled, "", score(opened.model, labelled))
    if search.record.basis == "planted":
        few = films_to_plant(normals)
        scores = planted_scores(opened.model, few)
        add(few, "none", scores.normal)
        for family, planted in scores.planted.items():
            add(few, family, planted)
    write_scores(search.folder, candidate.name, columns)


# --- the choice -----------------------------------------------------------------------------------------------------


def _conclude(search: Search) -> None:
    """Choose, and look at the test films once, by the chosen detector alone."""
    done = [one for one in search.record.candidates if one.state == "done"]
    if not done:
        estimates = [one.estimate for one in search.record.candidates if one.estimate]
        if not estimates:
            raise InputError(
                f"{search.folder}: none of the detectors can be trained: {search.record.candidates[0].reason}"
            )
        least = -(-int(search.spent + 2 * (min(estimates) + CLOSING_SECONDS)) // 60)
        raise InputError(
            f"{search.options.minutes} minutes are too few for any detector here, {clock(search.spent)} of them are "
            f"spent: give --minutes {least} or more, and the same command goes on"
        )
    old = search.record.choice
    choice, floor = made_choice(search.folder, search.record)
    search.save(choice=choice, floor=floor)
    if old is None or (old.detector, old.score) != (choice.detector, choice.score) or search.record.test is None:
        _test(search)
    run, by = search.run_path(choice.detector), choice.score
    flag = () if by == _first_score(search, run) else ("--by", by)
    search.save(
        commands=[
            command_line("anomaly", "score", run, "FILMS", *flag),
            command_line("anomaly", "heatmap", run, "FILMS", *flag),
            command_line("anomaly", "calibrate", run, "NORMALS"),
        ]
    )


def _first_score(search: Search, run: Path) -> str:
    from anomaly.models import find_detector

    return find_detector(Run(run).config.model).score_names[0]


def _test(search: Search) -> None:
    """Score the test films by the chosen detector, and write what `anomaly score` writes."""
    choice = search.record.choice
    assert choice is not None
    run = Run(search.run_path(choice.detector))
    cache = Path(search.record.cache)
    try:
        selection = recorded_films(run, "test", cache)
    except InputError as error:  # no film is in the test split
        search.save(test=None, test_reason=str(error))
        return
    if not {0, 1} <= set(selection.films.label.tolist()):
        search.save(test=None, test_reason="the test split has no labelled films of both classes")
        return
    opened = open_run(run, search.options.device, cache)
    typed = command_line("anomaly", "score", run.path, "--by", choice.score)
    result = score_selection(opened, selection, by=choice.score, command=typed, display=search.display)
    write_results(result, run.path)
    figures = result.figures
    assert figures is not None and figures.main.roc_auc is not None  # both classes are there
    main = figures.main
    search.save(
        test=TestRecord(
            roc_auc=figures.main.roc_auc,
            interval=main.roc_auc_interval,
            films=main.n,
            abnormal=main.n_abnormal,
            patients=main.n_patients,
        ),
        tested=[*search.record.tested, f"{choice.detector} {choice.score}"],
        test_reason="",
    )
