"""How far a search is: trials finished, the best so far, the time that is left."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from anomaly.console import Advance
from anomaly.experiments.storage import count_finished, epochs_of, is_finished, is_running, seconds_of
from anomaly.experiments.study import Search

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

SHOWN = 4
"""Running trials in the display, at most."""


class SearchProgress:
    """Shows how far a search is."""

    def __init__(self, search: Search, study: "Study", advance: Advance) -> None:
        """`advance` is the display, which knows of the trials that are finished by now."""
        self.search, self.study, self.advance = search, study, advance
        self.finished = count_finished(study)

    def refresh(self) -> None:
        """Show it as it is now; nothing before the first epoch, when the time can't be estimated."""
        trials = self.study.get_trials(deepcopy=False)
        seconds = seconds_left(trials, self.search, datetime.now())
        if seconds is None:
            return
        notes = []
        complete = [t for t in trials if t.state.name == "COMPLETE"]
        if complete:
            best = (min if self.search.score is None else max)(complete, key=lambda t: t.value or 0.0)
            notes.append(f"best {best.value:.5g} (trial {best.number})")
        notes += [f"trial {t.number} epoch {epochs_of(t)}" for t in trials if is_running(t)][:SHOWN]
        finished = sum(map(is_finished, trials))
        self.advance(finished - self.finished, "  ".join(notes), seconds)
        self.finished = finished


def seconds_left(trials: "Sequence[FrozenTrial]", search: Search, now: datetime) -> float | None:
    """Return how long the missing trials will take if they take as long as those so far; None before an epoch."""
    known = [seconds for t in trials if is_finished(t) and (seconds := seconds_of(t)) is not None]
    spent = [
        ((now - t.datetime_start).total_seconds(), epochs_of(t)) for t in trials if is_running(t) and t.datetime_start
    ]
    if not known:
        known = [seconds / epochs * search.epochs for seconds, epochs in spent if epochs]
    if not known:
        return None
    each = sum(known) / len(known)
    missing = search.trials - sum(map(is_finished, trials))
    return max(0.0, missing * each - sum(min(each, seconds) for seconds, _ in spent)) / max(1, len(spent))
