"""Opening a run: its detector, its calibration, its cache, the splits it was trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import FilmSet
from anomaly.data.splits import assign_chosen, split_hash
from anomaly.evaluation.calibration import Calibration, calibrate
from anomaly.evaluation.named_calibration import REFITTED, calibration_folder, named_calibration
from anomaly.evaluation.scorer import Scorer
from anomaly.export.bundle import exported_calibration, run_name
from anomaly.pipeline.backend import load_scorer
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.wording import did_you_mean


@dataclass(frozen=True)
class OpenRun:
    """A run's detector, ready to score."""

    run: Run
    model: Scorer
    calibration: Calibration
    device: str = "auto"  # as it was asked for: "auto", "cpu", "cuda", ...
    note: str | None = None  # what a user of an unfinished run has to know
    calibration_name: str | None = None  # of the place whose calibration this is; None: the run's own
    cache_path: Path | None = None  # where the run's cache is now, if not where it was
    remembered: str | None = None  # which choices of an earlier time are in use

    @property
    def name(self) -> str:
        """The name of the run, of a bundle that of the run it was made of: folders of bundles are all called alike."""
        return run_name(self.run.path)

    @property
    def calibrated_on(self) -> str | None:
        """The name of the calibration at work, also of the one that a bundle has as its own; None: the training's."""
        return self.calibration_name or exported_calibration(self.run.path)

    def main_score(self, name: str | None) -> str:
        """Return the score to flag, rank and report by: the named one, or the model's first."""
        if name is not None and name not in self.model.score_names:
            hint = did_you_mean(name, self.model.score_names)
            raise InputError(
                f"{self.run.path} has no score {name!r}; there are: {', '.join(sorted(self.model.score_names))}{hint}"
            )
        return name or self.model.score_names[0]


def open_run(run: Run, device: str = "auto", cache_path: Path | None = None, calibration: str | None = None) -> OpenRun:
    """Open a detector's run, with the calibration of this name (`anomaly calibrate`), or its own.

    An unfinished one has the best weights so far: what its scores compare with and its thresholds are fitted now, on
    films of its cache, and `note` says so. `cache_path` says where the cache is now, if not where it was.
    """
    if run.finished:
        refitted = calibration_folder(run, calibration) / REFITTED if calibration is not None else None
        # The detector first: what prepares films is refused as such, not for its calibration, which is another record.
        model = load_scorer(run, device, refitted if refitted and refitted.is_file() else None)
        found = named_calibration(run, calibration)
        return OpenRun(run, model, found, device, calibration_name=calibration, cache_path=cache_path)
    if calibration is not None:
        raise InputError(f"{run.path} is unfinished and has its own calibration alone; leave out --calibration")
    # An unfinished run is no bundle.
    from anomaly.evaluation.torch_scorer import best_scorer
    from anomaly.pipeline.plan import usable_rows
    from anomaly.training.weights import resume_command

    scorer, best_epoch, epochs = best_scorer(run, device)
    cache, split = run_cache_and_split(run, cache_path)
    usable = usable_rows(cache, scorer.targets)
    train, val = (
        FilmSet(cache, run.config.variant, usable[split[usable] == name], run.config.size) for name in ("train", "val")
    )
    scorer.fit_reference(train)
    note = (
        f"{run.path} is unfinished: these are the weights of epoch {best_epoch}, the best of {epochs} so far; "
        f"{resume_command(run)} resumes it"
    )
    return OpenRun(run, scorer, calibrate(scorer, val), device, note, cache_path=cache_path)


def run_films(
    run: Run, split: str, cache_path: Path | None = None, where: Sequence[str] = ()
) -> tuple[FilmSet, NDArray[Any]]:
    """Return the films of a split of a run's cache, or of all that it knows for "all", and the split of each.

    where  conditions, such as "region=hand", that they meet. Raises InputError where the split has none.
    """
    cache, splits = run_cache_and_split(run, cache_path)
    wanted = splits != "" if split == "all" else splits == split
    rows = np.flatnonzero(wanted & cache.where(where))
    if not len(rows):
        such = f" where {' and '.join(where)}" if where else ""
        raise InputError(f"{cache.path} has no films in {split}{such}; choose another --split")
    return FilmSet(cache, run.config.variant, rows, run.config.size), splits[rows]


def run_cache_and_split(run: Run, cache_path: Path | None = None) -> tuple[Cache, NDArray[Any]]:
    """Return the cache that a run was trained on and the split of each of its rows; "" of those it leaves out.

    A cache that has moved is named by `cache_path`; one of other content is refused.
    """
    cache = run_cache(run, cache_path)
    index, config = cache.index, run.config
    split = assign_chosen(index, cache.where(config.where), seed=config.split_seed, rule=config.split_rule)
    if split_hash(index["path"], split) != config.split_hash:
        raise InputError(f"the splits of {cache.path} are not those of {run.path}; train again")
    return cache, split


def run_cache(run: Run, cache_path: Path | None = None) -> Cache:
    """Return the cache that a run was trained on; `cache_path` says where it is now, if not where it was."""
    recorded = run.config.cache
    if cache_path is None and not Path(recorded.path).is_file():
        raise InputError(f"the cache {recorded.path} of {run.path} is gone; give its new place with --cache")
    cache = Cache(cache_path or Path(recorded.path))
    if cache.content_hash != recorded.content_hash:
        raise InputError(
            f"{cache.path} is not the cache that {run.path} was trained on (content {cache.content_hash[:12]}, "
            f"not {recorded.content_hash[:12]}); make it again with `{recorded.command}`, or name films to score"
        )
    return cache
