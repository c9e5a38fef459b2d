"""Hyper-parameter search: many short trainings, stopped early where they fall behind, the best of them kept.

Optuna's TPE (Bergstra et al. 2011) draws settings from the `space` that a model states; Hyperband (Li et al. 2018), as
in the source this follows, gives each trial some epochs and continues the best third of them. Trials are compared on
the validation split alone, never on the test split:

    loss   the validation loss of the weights that a run keeps; the lowest wins. For a detector that is the loss on
           normal validation films. It compares only trainings whose loss is the same yardstick, so a space holds no
           setting that goes into the validation loss itself, such as the weight of a VAE's KL term. And it says how
           well normal films are fitted, not how well abnormal ones are told from them.
    auc    the ROC-AUC over the labelled films of the validation split; the highest wins. It needs abnormal films
           there, and no trial is stopped early: it is known only once a training is over, and the loss on the way to
           it is no sign of it. The winner's own ROC-AUC on validation is optimistic, as it was selected there: report
           that of the test split.

A study has a folder:

    study.json     what is searched, and with which fixed settings; written first
    study.sqlite3  every trial, as optuna keeps it (unless --storage names another place)
    trials/<n>/    the run folder of trial n, one like any other: the best can be scored as it is. A trial that was
                   pruned keeps its history.csv and no weights
    trials.csv     a line per trial
    best.json      the best trial, and the command that trains with its settings
    tune.png       the values of all trials, and against each setting
    workers/       a locked file for each living worker of this machine

Nothing is lost with a process or a machine: `trial_queue` says whose a trial is, and what becomes of it.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from anomaly import runs
from anomaly.console import progress, warn
from anomaly.experiments.hyperband import REDUCTION
from anomaly.experiments.search_progress import SearchProgress
from anomaly.experiments.search_report import write
from anomaly.experiments.storage import (
    check_settings,
    count_finished,
    import_optuna,
    importance_of,
    other_settings,
    storage_errors,
    trials_of,
)
from anomaly.experiments.study import OBJECTIVES, STUDIES, Outcome, Search, SearchOptions, StudyFile, with_settings
from anomaly.experiments.supervisor import available_cores, exit_on_sigterm, supervise
from anomaly.experiments.trial_queue import TrialQueue
from anomaly.experiments.trial_worker import TrialWorker, run_worker
from anomaly.models import TOOLS, find_detector, find_model, zoo
from anomaly.models.search_space import Space
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import Prepared, prepare
from anomaly.sealed import sealed, unsealed
from anomaly.training.config import TrainConfig
from preprocessing import InputError


def tune(plan: Plan, options: SearchOptions, *, space: Space | None = None) -> Outcome:
    """Search until enough trials of the study are finished, and write what came out of it.

    The same call resumes the study that it began, also while another process works on it, and runs what is missing.

    plan   what all trials share: cache, variant, preset, fixed settings, which are not searched, and seeds. Its seed
           decides the draws, too.
    space  what is searched; None: the model's own.

    Raises InputError for what can't be searched, and for a study that was started with other settings.
    """
    import_optuna()
    _check(options)
    space = _free_settings(plan, find_model(plan.model).space if space is None else space)
    prepared = prepare(plan)
    for key, values in space.items():  # a value that can't be trained must not end a search half-way
        for bound in values.bounds():
            prepare(with_settings(plan, {key: bound}))
    score = _score(prepared, options.by) if options.objective == "auc" else None
    training = TrainConfig(**prepared.config.settings.training)
    least = options.least_epochs or max(1, training.most_epochs // REDUCTION**3)
    if least > training.most_epochs:
        raise InputError(f"--least-epochs {least} is more than the {training.most_epochs} epochs of a full training")
    settings = _settings(prepared, space, score, least)
    folder, name = _find_study(plan.model, options, settings)
    search = Search(
        plan=plan,
        space=space,
        folder=folder,
        name=name,
        storage=options.storage,
        score=score,
        trials=options.trials,
        epochs=training.most_epochs,
        least_epochs=least,
        keeps_best=training.keep == "best",
    )
    with exit_on_sigterm(), storage_errors(search):
        outcome = _run(search, options.jobs, settings, synthetic=prepared.cache.synthetic)
    write(outcome, settings)
    return outcome


def _run(search: Search, jobs: int, settings: Mapping[str, JsonValue], *, synthetic: bool) -> Outcome:
    """Run the trials that are missing, and return the study as it then is."""
    queue = TrialQueue(search)
    study = queue.study
    check_settings(search, study, settings)
    for number in queue.return_lost():
        warn(f"trial {number} was interrupted; its settings are queued again")
    finished = count_finished(study)
    if finished < search.trials:
        with progress("tuning", search.trials, "trials", start=finished) as advance:
            display = SearchProgress(search, study, advance)
            if jobs == 1:
                TrialWorker(search, display.refresh).work()
            else:
                threads = max(1, available_cores() // jobs)
                supervise(
                    partial(run_worker, search, threads),
                    jobs=min(jobs, search.trials - finished),
                    threads=threads,
                    on_poll=lambda pids: display.refresh(),
                    achieved=lambda: count_finished(study),
                )
    return Outcome(
        folder=search.folder,
        name=search.name,
        plan=search.plan,
        objective=_objective(search.score),
        trials=trials_of(study),
        importance=importance_of(study),
        synthetic=synthetic,
        space=search.space,
    )


def tunable() -> list[str]:
    """Return the names of the models that state a space."""
    names = []
    for name in sorted([*zoo(), *TOOLS]):
        with suppress(InputError):  # a broken model of another package is no reason to name none
            if find_model(name).space:
                names.append(name)
    return names


# --- what is searched -----------------------------------------------------------------------------------------------


def _check(options: SearchOptions) -> None:
    if options.objective not in OBJECTIVES:
        raise InputError(f"no objective {options.objective!r}; there are: {', '.join(OBJECTIVES)}")
    if options.trials < 1 or options.jobs < 1:
        raise InputError(f"--trials {options.trials} --jobs {options.jobs}: a search has at least one of each")
    if options.by and options.objective == "loss":
        raise InputError("--by goes with --objective auc; leave it out")
    if options.storage is not None and options.name is None:
        raise InputError("--storage goes with --study NAME: which of its studies, new or begun")
    if options.name is not None and not re.fullmatch(r"\w[\w.-]*", options.name):
        raise InputError(f"--study {options.name!r} names a folder, too; take letters, digits, - and _")


def _free_settings(plan: Plan, space: Space) -> Space:
    """Return what remains of a space beside the settings that the plan fixes."""
    if not space:
        raise InputError(f"{plan.model} has nothing to search; there are: {', '.join(tunable())}")
    fixed = {text.partition("=")[0] for text in plan.settings}
    free = {key: values for key, values in space.items() if key not in fixed}
    if not free:
        raise InputError(f"every setting that is searched for {plan.model} is fixed by --set; leave one of them out")
    return free


def _score(prepared: Prepared, by: str | None) -> str:
    """Return the score whose ROC-AUC is the objective; raises InputError where validation films can't give one."""
    model, cache = prepared.plan.model, prepared.cache
    scores = find_detector(model).score_names
    if by is not None and by not in scores:
        raise InputError(f"no score {by!r} of {model}; there are: {', '.join(sorted(scores))}")
    label = cache.index["label"][prepared.split == "val"]
    normal, abnormal = int((label == 0).sum()), int((label == 1).sum())
    if not (normal and abnormal):
        raise InputError(
            f"the validation split of {cache.path} has {normal} normal and {abnormal} abnormal films, and a ROC-AUC "
            "needs both; take --objective loss"
        )
    return by or scores[0]


def _objective(score: str | None) -> str:
    return "loss" if score is None else f"auc by {score}"


def _settings(prepared: Prepared, space: Space, score: str | None, least_epochs: int) -> dict[str, JsonValue]:
    """Return all that trials of one study have in common; a search that differs in it is another study."""
    config = prepared.config
    own = {"cache", "device", "versions", "settings", "format", "created", "members", "threads"}
    settings = {
        **config.model_dump(exclude=own),
        "cache": {"content_hash": prepared.cache.content_hash},
        "settings": {
            owner: {key: value for key, value in values.items() if key not in space}
            for owner, values in config.settings.model_dump().items()
        },
        "space": {key: asdict(values) for key, values in space.items()},
        "objective": _objective(score),
        "least_epochs": least_epochs,
    }
    as_read: dict[str, JsonValue] = json.loads(runs.to_json(settings))  # lists in place of tuples
    return as_read


# --- the folder -----------------------------------------------------------------------------------------------------


def _find_study(model: str, options: SearchOptions, settings: dict[str, JsonValue]) -> tuple[Path, str]:
    """Return folder and name of the study: a new one, or that which the same command began."""
    if options.folder is None and options.name is None:
        for path in reversed(runs.numbered(model, STUDIES)):
            known = _read_study(path)
            if known and known.storage == "own" and not runs.differences(known.settings, settings):
                return path, known.study
    folder = options.folder or (STUDIES / options.name if options.name else runs.next_path(model, STUDIES))
    known = _read_study(folder)
    name = options.name or (known.study if known else folder.resolve().name)
    file = StudyFile(study=name, storage="own" if options.storage is None else "given", settings=settings)
    if known is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not a study; choose another --out")
        runs.write_atomic(folder / "study.json", sealed(file.model_dump(mode="json")))
    elif changed := runs.differences(known.model_dump(mode="json"), file.model_dump(mode="json")):
        raise other_settings(folder, [text.removeprefix("settings.") for text in changed])
    return folder, name


def _read_study(folder: Path) -> StudyFile | None:
    """Return the study.json of a folder, or None where there is none."""
    path = folder / "study.json"
    if not path.is_file():
        return None
    try:
        return StudyFile.model_validate(unsealed(path.read_bytes()))
    except ValueError:
        raise InputError(f"{path} is damaged; choose another --out, or delete {folder}") from None
