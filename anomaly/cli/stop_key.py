"""Ctrl-C while a training runs on a terminal: ask what is meant, and leave at once when it comes twice."""

import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from anomaly.console import ask, at_terminal, warn

if TYPE_CHECKING:
    from anomaly.training.config import State


class StopKey:
    """Whether the person at the terminal wants the training to end here; asked before every batch.

    Without a terminal to ask at, Ctrl-C leaves at once, as ever: the training can be resumed.
    """

    def __init__(self, epochs: int) -> None:
        """`epochs`: how many the training has at most."""
        self._epochs = epochs
        self._pressed = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if at_terminal() and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the next one leaves at once

    def __call__(self, state: "State") -> bool:
        """Return whether to end here; raises KeyboardInterrupt to leave a training that can be resumed."""
        if not self._pressed:
            return False
        if not state.epoch:
            warn("no epoch is finished yet: there is no checkpoint to keep")
            raise KeyboardInterrupt
        answer = ask(
            f"stop now and keep the best checkpoint (epoch {state.best_epoch}; {state.epoch} of {self._epochs} are "
            "done)? y stops, c continues, n leaves and can be resumed [y/N/c] "
        ).casefold()
        if answer in ("c", "continue"):
            self._pressed = False
            signal.signal(signal.SIGINT, self._press)
            return False
        if answer not in ("y", "yes"):
            raise KeyboardInterrupt
        return True
