"""Detectors for the tests of the service, without torch: what a film's bytes say is what becomes of it.

die      ends the process, as a film does that brings down a decoder
die-once the same, for the first process that gets it
hang     never returns
slow     takes a fifth of a second
bad      is no film
full     meets a full disk until the file `room` lies beside the spool
<number> is its score
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.runs import DiskFull, to_json, write_atomic
from anomaly.service.detector import Task
from anomaly.service.records import DetectorFacts, FilmResult, PartResult
from anomaly.service.spool import now
from preprocessing import InputError

FACTS = DetectorFacts(
    model="fake",
    run="run",
    score_name="mse",
    threshold=0.5,
    map_scale=1.0,
    map_unit="squared error",
    synthetic=True,
    digest="0123456789abcdef" * 4,
)


class FakeDetector:
    facts = FACTS

    def score(self, tasks: Sequence[Task]) -> list[FilmResult]:
        return [self._score(task) for task in tasks]

    def _score(self, task: Task) -> FilmResult:
        text = task.film.read_bytes()[:40].decode("latin-1").split(",")[0].strip()
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "die-once" and not (task.folder / "deaths").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "hang":
            time.sleep(600)
        if text == "slow":
            time.sleep(0.2)
        if text == "full" and not (task.folder.parents[1].parent / "room").exists():
            raise DiskFull("the disk is full")
        if text == "bad":
            result = FilmResult(state="failed", finished=now(), error="the film: not a film")
        else:
            score = float(text) if text.replace(".", "").isdigit() else 0.0
            files = [f"heatmap.{suffix}" for suffix in task.heatmaps]
            for file in files:
                (task.folder / f"{task.stem}_{file}").write_bytes(b"map of " + text.encode())
            result = FilmResult(
                state="scored",
                finished=now(),
                model="fake",
                run="run",
                detector=self.facts.digest,
                score_name="mse",
                threshold=0.5,
                parts=[
                    PartResult(
                        part=0,
                        score=score,
                        scores={"mse": score},
                        flagged=score >= 0.5,
                        p_value=0.25,
                        p_interval=(0.1, 0.4),
                        out_of_domain=False,
                        files=files,
                    )
                ],
            )
        write_atomic(task.result, to_json(result.model_dump(mode="json")))
        return result


@dataclass(frozen=True)
class OpenFake:
    """Opens the fake; with a file, refuses to where that is missing."""

    needs: Path | None = None

    def __call__(self) -> FakeDetector:
        if self.needs is not None and not self.needs.exists():
            raise InputError(f"{self.needs} is not a run folder")
        return FakeDetector()
