"""A trained run in Python: score films, look at their heatmaps, read its figures."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.console import progress, silent
from anomaly.evaluation.figures import METRICS, Metrics, Pooling, Unit, read_metrics
from anomaly.evaluation.named_calibration import OWN
from anomaly.pipeline.calibrate import calibrate_run
from anomaly.pipeline.choices import FLAG_KINDS, Choices, Chosen, FlagKind, choices_of, choose, read_choices
from anomaly.pipeline.gallery import MapCollector
from anomaly.pipeline.heatmaps import Heatmap, heatmaps, heatmaps_of
from anomaly.pipeline.in_memory import source_of
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.options import CalibrateOptions
from anomaly.pipeline.other_cache import cache_source, cached_films, other_cache
from anomaly.pipeline.scoring import ScoringResult, score_selection
from anomaly.pipeline.selection import Display, Selection, new_films, recorded_films
from anomaly.pipeline.software_device import software_device
from preprocessing import InputError
from preprocessing.sources import Source
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.pipeline.in_memory import Film


class LoadedRun:
    """A run, opened by `anomaly.load`: its detector, thresholds and settings.

    New films take the very way of the run's own: the recorded recipe and nets, the same size, float32.
    """

    def __init__(self, opened: OpenRun, cache: Path | None = None, *, quiet: bool = True) -> None:
        """`cache` says where the run's cache is now, if not where it was; `quiet` shows no progress."""
        self._opened, self._cache = opened, cache
        self._display: Display = silent if quiet else progress

    def __repr__(self) -> str:
        config = self._opened.run.config
        films = f"{config.cache.source}{' (SYNTHETIC)' * config.cache.synthetic}, {config.variant} at {config.size} px"
        return f"<{config.model} {self.path}: {films}{', unfinished' * (self._opened.note is not None)}>"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._opened.run.path

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._opened.run.config.model

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, of the model and of its training."""
        settings = self._opened.run.config.settings
        return {**settings.model, **settings.training}

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the model's scores; the first one is reported first."""
        return self._opened.model.score_names

    @property
    def main_score(self) -> str:
        """The score that flags and ranks: the one chosen by `anomaly score`, else the model's first."""
        return self._chosen(Choices()).score

    @property
    def calibration_name(self) -> str | None:
        """The name of the calibration in use, of a bundle also of the one it was exported with; None: the run's own."""
        return self._opened.calibrated_on

    @property
    def remembered(self) -> str | None:
        """Which choices of an earlier time `score` goes by where it is not told otherwise; None: none."""
        return self._chosen(Choices()).run.remembered

    @property
    def map_scale(self) -> float | None:
        """Where the colors of heatmaps end, in `map_unit`; None: the model draws none."""
        return self._opened.calibration.map_scale

    @property
    def map_unit(self) -> str:
        """The unit of the heatmaps."""
        return self._opened.model.map_unit

    @property
    def digest(self) -> str:
        """SHA-256 of the detector, 64 hexadecimal digits: weights, calibration and the score that flags."""
        chosen = self._chosen(Choices())
        return software_device(chosen.run, chosen.score).digest

    @property
    def thresholds(self) -> Mapping[Unit, Mapping[str, float]]:
        """ "film", "study" or "patient" -> score -> the value from which one is flagged, by the mean over its films."""
        return self._chosen(Choices()).run.calibration.thresholds["mean"]

    @property
    def figures(self) -> Metrics | None:
        """The figures of the test films, as `anomaly score RUN` wrote them; None before that."""
        return read_metrics(self._opened.run) if (self.path / METRICS).is_file() else None

    def score(
        self,
        films: "Film | Sequence[Film] | None" = None,
        *,
        split: str | None = None,
        where: Sequence[str] = (),
        by: str | None = None,
        by_column: Sequence[str] = (),
        aggregate: Pooling | None = None,
        flag: tuple[FlagKind, float] | None = None,
        maps: bool = False,
        workers: int = 0,
        as_set: bool = True,
    ) -> ScoringResult:
        """Score films; where labels are known, with all figures.

        films  a path, a 2-D array or a pydicom dataset, or a list of such; paths may be films, folders, zips or
               manifests. The result has them in this order. A path alone may be another cache made by the same recipe.
               None takes the run's cache, of which `split` names a part: test by default, val, train or all.
        where  conditions that the films meet, such as "region=hand".    by_column  columns of the films, such as region
               or sex, by whose values figures are wanted too.
        by     the score that flags and ranks; None takes the model's first.    aggregate  how films make a study or
               patient: "mean", which None takes, or "max".    maps  whether each film's heatmap is kept with its score.
        flag   what is flagged: ("false alarms", 0.05), p-values up to that; ("sensitivity", 0.9), from where that share
               of abnormal validation films is flagged; ("threshold", 2.5), from that score; ("fdr", 0.1), as many of
               these films as hold the false discovery rate (Benjamini and Hochberg). None: the run's thresholds.
        workers  processes that prepare films; 0 takes what suits the machine.
        as_set  whether new films are also compared, as a set, with those of the training. Without it, what is said of
               a film does not depend on the films beside it: a service scores together what happens to wait.

        What `anomaly score` was told before, the run remembers: it stands in for None in `by`, `aggregate` and `flag`,
        and is among the `notes` of the result.

        Films that can't be read are in `failures` of the result, and a warning says so. Raises InputError where no film
        can be read, or a name is wrong.
        """
        kind, value = flag or (None, None)
        if kind not in (None, *FLAG_KINDS):
            raise InputError(f"no way {kind!r} to flag films; there are: {', '.join(FLAG_KINDS)}")
        rule = {} if kind is None else {kind.replace(" ", "_"): value}
        chosen = self._chosen(choices_of(score=by, aggregate=aggregate, **rule), rule.get("fdr"))
        with self._selection(films, split, where, workers) as selection:
            kept = MapCollector()
            collect = (kept,) if maps else ()
            result = self._scored(chosen, selection, collect, by_column=by_column, as_set=as_set)
            return replace(result, maps=kept.maps)

    def heatmap(
        self,
        films: "Film | Sequence[Film] | None" = None,
        *,
        split: str | None = None,
        where: Sequence[str] = (),
        by: str | None = None,
        limit: int | None = None,
        space: str = "cache",
        workers: int = 0,
    ) -> list[Heatmap]:
        """Return the heatmaps of films, or of the `limit` highest-scored ones, the highest first.

        space  "cache": in the geometry of the prepared film; "film": laid back on the original one. The other arguments
        are those of `score`.
        """
        if space not in ("cache", "film"):
            raise InputError(f"no space {space!r}; there are: cache, film")
        if limit is not None and limit < 1:
            raise InputError(f"limit is {limit}; give 1 or more")
        chosen = self._chosen(choices_of(score=by))
        with self._selection(films, split, where, workers) as selection:
            originals = _originals(selection) if space == "film" else None
            return list(heatmaps(chosen.run, selection, by=chosen.score, limit=limit, originals=originals))

    def examine(
        self, films: "Film | Sequence[Film]", *, workers: int = 0, as_set: bool = True
    ) -> tuple[ScoringResult, list[Heatmap]]:
        """Score new films and draw their heatmaps on the original films, from one pass: half the work of both verbs.

        Returns what `score` does, and the heatmaps in the order of the films; none where the model draws none. The
        arguments are those of `score`.
        """
        chosen = self._chosen(Choices())
        with self._selection(films, None, (), workers) as selection:
            kept = MapCollector()
            result = self._scored(chosen, selection, (kept,), as_set=as_set)
            scores, originals = result.scored.scores, _originals(selection)
            outside = result.out_of_domain("film")
            drawn = heatmaps_of(chosen.run, selection, scores, kept.maps, result.main, originals, outside)
            return result, list(drawn)

    def _scored(
        self,
        chosen: Chosen,
        selection: Selection,
        collect: Sequence[MapCollector],
        *,
        as_set: bool,
        by_column: Sequence[str] = (),
    ) -> ScoringResult:
        return score_selection(
            chosen.run,
            selection,
            by=chosen.score,
            pooling=chosen.aggregate,
            by_column=by_column,
            display=self._display,
            collect=collect,
            fdr=chosen.fdr,
            as_set=as_set,
        )

    def _chosen(self, given: Choices, fdr: float | None = None) -> Chosen:
        """Return the run with what is given, and what it remembers: wrong names are refused before films are read."""
        name = self._opened.calibration_name
        if name != read_choices(self._opened.run).calibration:  # it was named when the run was loaded
            given = given.model_copy(update={"calibration": name or OWN})
        return choose(self._opened, given, fdr=fdr, cache_path=self._cache, display=self._display)

    def calibrate(
        self,
        normals: "Film | Sequence[Film]",
        name: str,
        *,
        where: Sequence[str] = (),
        refit: bool = False,
        only_local: bool = False,
        replace: bool = False,
        workers: int = 0,
    ) -> "LoadedRun":
        """Calibrate on normal films of the place where the run is used, and return the run with that calibration.

        normals  films as `score` takes them; of labelled ones the normal ones count.    name  of the calibration, a
        folder in `calibrations/` of the run; `anomaly.load(run, calibration=name)` opens it again.    refit  whether
        what scores compare with is fitted anew, on half of the patients and the training's normal films, or on the
        local ones alone (`only_local`).    replace  whether a calibration of this name on other films is replaced.

        Warns of what was left out or taken for granted. Raises InputError where the films don't serve.
        """
        options = CalibrateOptions(
            self.path,
            (),
            name,
            refit,
            only_local,
            replace=replace,
            cache=self._cache,
            device=self._opened.device,
            workers=workers,
        )
        with source_of(normals) as source:
            done = calibrate_run(self._opened.run, source.where(where), options, self._display)
        for note in (*done.notes, *(f"left out: {path}: {reason}" for path, reason in done.failures)):
            warnings.warn(note, stacklevel=2)
        return LoadedRun(done.run, self._cache, quiet=self._display is silent)

    @contextmanager
    def _selection(
        self, films: "Film | Sequence[Film] | None", split: str | None, where: Sequence[str], workers: int
    ) -> Iterator[Selection]:
        if films is None:
            yield recorded_films(self._opened.run, split, self._cache, where)
            return
        if split is not None:
            raise InputError(f"split {split!r} applies to the run's own films; leave out either it or the films")
        several = films if isinstance(films, (list, tuple)) else [films]
        if cache := other_cache([Path(film) for film in several if isinstance(film, (str, Path))]):
            if len(several) > 1:
                raise InputError(f"{cache} is a cache: score it alone")
            yield cached_films(self._opened.run, cache, where)
            return
        with (
            source_of(films) as source,
            new_films(self._opened.run, source.where(where), workers=workers, display=self._display) as selection,
        ):
            if selection.failures:
                path, reason = selection.failures[0]
                warnings.warn(
                    f"{counted(len(selection.failures), 'film')} can't be read, the first: {path}: {reason}",
                    stacklevel=4,
                )
            yield selection


def _originals(selection: Selection) -> Source:
    """Return where the original films are; raises InputError where they are gone."""
    originals = selection.source or cache_source(selection.films.cache)
    if originals is None:
        cache = selection.films.cache
        raise InputError(f"the films of {cache.path} are not at {cache.source_path}, where they were")
    return originals
