"""What the run has found so far, as lines of JSON, and the time it has left."""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Lines:
    """A file to which every result is added as soon as it is there; work that no longer fits the time is left out."""

    def __init__(self, path: Path, minutes: float, card: str) -> None:
        self.path, self.card = path, card
        self.start = time.monotonic()
        self.end = self.start + 60 * minutes
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.done: dict[tuple[str, str], dict[str, Any]] = {}  # (section, case) -> figures
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def add(self, section: str, case: str, figures: dict[str, Any]) -> None:
        """Write and print one result."""
        self.done[section, case] = figures
        at = round(time.monotonic() - self.start, 1)
        line = {"section": section, "case": case, "card": self.card, "at_seconds": at, **figures}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = {name: value for name, value in figures.items() if name not in ("kernels", "details")}
        print(f"{at:6.1f} {section}: {case}: {json.dumps(shown)}", flush=True)

    def attempt(self, section: str, case: str, work: Callable[[], dict[str, Any]], needs: float = 0.0) -> bool:
        """Do one piece of work and add what it returns; what fails is a result too, and the run goes on.

        needs  seconds it is known to take at least; with fewer left it is named as left out.
        """
        if self.left < needs or self.left <= 0:
            self.left_out.append(f"{section}: {case}")
            return False
        try:
            self.add(section, case, work())
        except Exception as error:  # whatever a card, a driver or a compiler raises: the next piece may still work
            self.failed.append(f"{section}: {case}")
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(str(error).split())[:400]
            where = f"{Path(last.filename).name}:{last.lineno}"
            self.add(section, case, {"failed": f"{type(error).__name__}: {reason}", "where": where})
            return False
        return True
