"""The storage of a study: opened through optuna, and read."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly import runs
from anomaly.drafts import aside
from anomaly.experiments.study import Search, State, Trial
from preprocessing import InputError
from preprocessing.locks import file_lock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.study import Study
    from optuna.trial import FrozenTrial

LOCK_SECONDS = 60
"""How long a write to SQLite waits for those of other processes."""
TRIES = 5
WAIT_SECONDS = 0.5
STATES: "Mapping[str, State]" = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
}
"""Those of optuna that are shown."""


def import_optuna() -> Any:
    """Return optuna, without its log messages; raises InputError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise InputError("`anomaly tune` needs optuna: pip install 'xray-anomaly[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(search: Search) -> "Study":
    """Return the study of a search, created where it is missing."""
    optuna = import_optuna()
    address = search.storage
    try:
        if address is None:
            address = _own_database(search.folder / "study.sqlite3")
        if "://" in address:
            storage = _database(address)
        else:
            Path(address).parent.mkdir(parents=True, exist_ok=True)
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(address))
        study: Study = optuna.create_study(
            storage=storage,
            study_name=search.name,
            direction="minimize" if search.score is None else "maximize",
            load_if_exists=True,
        )
    except Exception as error:  # every database has errors of its own
        # The reason may quote the address, which may hold a password.
        reason = " ".join(str(error).replace(address or "", "the address").split())[:200]
        place = f"{search.folder}/study.sqlite3" if search.storage is None else "--storage"
        raise InputError(f"{place} can't be opened ({type(error).__name__}: {reason}); name another") from None
    return study


@contextmanager
def storage_errors(search: Search) -> Iterator[None]:
    """Turn what a database could not write into one line; what it holds is whole, as it takes back what it began."""
    try:
        yield
    except import_optuna().exceptions.StorageInternalError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        place = f"{search.folder}/study.sqlite3" if search.storage is None else "--storage"
        raise InputError(f"{place} can't be written ({reason}); the same command resumes") from error


def _own_database(path: Path) -> str:
    """Return the address of a study's own database, which is made whole or not at all, and by one process."""
    from sqlalchemy import URL

    def address(file: Path) -> str:
        return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)

    with file_lock(path.with_name(".lock"), wait=True):
        if not path.exists():
            beside = aside(path)
            _database(address(beside)).engine.dispose()
            beside.replace(path)
    return address(path)


def _database(address: str) -> Any:
    """Return a database as optuna has it; two processes that make the tables of one at once get in each other's way."""
    optuna = import_optuna()
    options = {"connect_args": {"timeout": LOCK_SECONDS}} if address.startswith("sqlite") else {}
    for _ in range(TRIES):
        try:
            return optuna.storages.RDBStorage(address, engine_kwargs=options)
        except Exception as error:  # every database has errors of its own
            if "already exists" not in str(error) and "UNIQUE" not in str(error):
                raise
            time.sleep(WAIT_SECONDS)
    return optuna.storages.RDBStorage(address, engine_kwargs=options)


def check_settings(search: Search, study: "Study", settings: "Mapping[str, Any]") -> None:
    """Record what a new study searches; raise InputError where an older one searches something else."""
    trials = study.get_trials(deepcopy=False)  # first: whoever began them has recorded the settings before
    known = study.user_attrs.get("settings")
    if known is None and trials:
        raise InputError(f"the study {search.name} of --storage is not one of `anomaly tune`; choose another --study")
    if known is None:
        study.set_user_attr("settings", settings)
    elif changed := runs.differences(known, settings):
        raise other_settings(search.folder, changed)


def other_settings(folder: Path, changed: list[str]) -> InputError:
    """Return the error for a study of other settings."""
    return InputError(
        f"the study {folder} was started with other settings: {'; '.join(changed)}; give those, or another --study"
    )


def is_finished(trial: "FrozenTrial") -> bool:
    """Whether a trial is complete or pruned."""
    return trial.state.name in ("COMPLETE", "PRUNED")


def is_running(trial: "FrozenTrial") -> bool:
    """Whether a trial is marked as running."""
    return trial.state.name == "RUNNING"


def count_finished(study: "Study") -> int:
    """Return the number of trials that are complete or pruned."""
    return sum(map(is_finished, study.get_trials(deepcopy=False)))


def epochs_of(trial: "FrozenTrial") -> int:
    """Return how many epochs a trial has done."""
    return trial.last_step or int(trial.user_attrs.get("epochs", 0))


def seconds_of(trial: "FrozenTrial") -> float | None:
    """Return how long a trial took, or None where it is not over."""
    if trial.datetime_start is None or trial.datetime_complete is None:
        return None
    return (trial.datetime_complete - trial.datetime_start).total_seconds()


def trials_of(study: "Study") -> tuple[Trial, ...]:
    """Return all trials that were begun."""
    return tuple(
        Trial(
            t.number,
            STATES[t.state.name],
            t.value if is_finished(t) else None,
            epochs_of(t),
            seconds_of(t),
            dict(t.params),
            str(t.user_attrs.get("note", "interrupted, queued again" if t.state.name == "FAIL" else "")),
        )
        for t in study.get_trials(deepcopy=False)
        if t.state.name in STATES
    )


def importance_of(study: "Study") -> dict[str, float]:
    """Return the share of each setting by PED-ANOVA (Watanabe et al. 2023), {} where there are too few trials."""
    values = [t.value for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    if len(values) < 4 or len(set(values)) < 2:
        return {}
    shares: dict[str, float] = import_optuna().importance.get_param_importances(study)
    return shares
