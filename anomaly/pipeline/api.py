"""The public API behind `import anomaly`."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from anomaly.console import progress, silent
from anomaly.models import TOOLS, zoo
from anomaly.pipeline.choices import calibration_to_use
from anomaly.pipeline.loaded_run import LoadedRun
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import Flag, PreprocessOptions, TrainOptions
from anomaly.runs import Run, first_error
from preprocessing import InputError
from preprocessing.wording import did_you_mean

if TYPE_CHECKING:
    from anomaly.pipeline.preprocess import Preprocessed

Options = TypeVar("Options")
Settings = Mapping[str, Any] | Sequence[str]
"""Settings by name, or as "key=value"."""


def load(
    run: str | Path,
    *,
    cache: str | Path | None = None,
    calibration: str | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> LoadedRun:
    """Open a trained run, such as "runs/cae-1".

    cache  where the run's cache is now, if not where it was.    calibration  of another place, by its name, as
    `LoadedRun.calibrate` makes it, or "own"; None: the one that `anomaly score` was last told, or the run's own.
    device  "auto", "cpu", "cuda", ...    quiet  whether to show no progress. An unfinished run has its best weights so
    far, and a warning says so. Raises InputError where the folder is no run of a detector, or is damaged.
    """
    place = None if cache is None else Path(cache)
    folder = Run(Path(run))
    opened = open_run(folder, device, place, calibration_to_use(folder, calibration))
    if opened.note:
        warnings.warn(opened.note, stacklevel=2)
    return LoadedRun(opened, place, quiet=quiet)


def train(
    model: str | Path, cache: str | Path | None = None, *, settings: Settings = (), quiet: bool = False, **options: Any
) -> LoadedRun:
    """Train a model on the films of a cache, the newest in cache/ by default, and return its run.

    The same call resumes an interrupted training. `settings` are those that `anomaly models MODEL`
    lists; `options` are the flags of `anomaly train`, by name: variant, preset, seed, split_seed, weights, name, out,
    resume, device, precision, workers, track, where, more_epochs, more_films; with one of the last two `model` is the
    finished run that a new one goes on from. Raises InputError for what can't be trained, before a folder is made.
    """
    if model in TOOLS:
        raise InputError(f"{model} prepares films and scores none; `anomaly train {model}` trains it")
    from anomaly.pipeline.continuation import prepare_continuation
    from anomaly.pipeline.fit import continue_or_create, fit
    from anomaly.pipeline.plan import prepare

    chosen = _options(TrainOptions, model=str(model), cache=cache, settings=_settings(settings), **options)
    goes_on = chosen.more_epochs is not None or chosen.more_films is not None
    prepared = prepare_continuation(chosen).prepared if goes_on else prepare(chosen.plan())
    run = continue_or_create(prepared, chosen.folder(), resume=chosen.resume)
    epochs = prepared.training.most_epochs
    with (silent if quiet else progress)("training", epochs, "epochs") as advance:
        advance(run.epochs_done())

        def on_epoch(report: Any) -> None:
            advance(1, f"validation {report.figures['validation']:.5g}", report.seconds_left)
            for text in report.warnings:
                warnings.warn(f"epoch {report.epoch}: {text}", stacklevel=2)

        fit(prepared, run, workers=chosen.workers, on_epoch=on_epoch, track=chosen.track)
    return load(run.path, cache=prepared.cache.path, device=chosen.device, quiet=quiet)


def preprocess(
    source: str | Path | None = None, *, settings: Settings = (), quiet: bool = False, **options: Any
) -> "Preprocessed":
    """Prepare films into a cache, and return what became of them; `path` is the cache file.

    source  a folder, zip or CSV manifest; None draws the built-in SYNTHETIC films. `settings` are those of the recipe;
    `options` are the flags of `anomaly preprocess`, by name: recipe, size, variants, localizer, mask, net (--for), out,
    compression, workers, cluster, where, force. Films that can't be read are in `failures`.
    """
    from anomaly.pipeline.preprocess import preprocess as prepare_films

    display = silent if quiet else progress
    chosen = _options(PreprocessOptions, source=source, settings=_settings(settings), **options)
    done = prepare_films(chosen, display=display)
    for note in (*done.notes, *done.report.notes, *done.cache_notes):
        warnings.warn(note, stacklevel=2)
    return done


def list_models() -> list[str]:
    """Return the names of all detectors and classifiers, those of other installed packages too."""
    return sorted(zoo())


def _settings(settings: Settings) -> tuple[str, ...]:
    if isinstance(settings, Mapping):
        return tuple(f"{name}={'none' if value is None else value}" for name, value in settings.items())
    return (settings,) if isinstance(settings, str) else tuple(settings)


def _options(kind: type[Options], **options: Any) -> Options:
    """Return options of a kind, checked as the command line checks them; a comma list may be given as a sequence."""
    hints = get_type_hints(kind, include_extras=True)
    for name, value in options.items():
        if name not in hints:
            raise InputError(f"no option {name!r}; there are: {', '.join(sorted(hints))}{did_you_mean(name, hints)}")
        if isinstance(value, (list, tuple)) and get_origin(get_args(hints[name])[0]) is not Sequence:
            options[name] = ",".join(map(str, value))
    try:
        chosen = TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        raise InputError(f"option {first_error(error)}") from None
    for name in options:
        _, flag = get_args(hints[name])
        value = getattr(chosen, name)
        assert isinstance(flag, Flag)
        if value is not None and (
            (flag.min is not None and value < flag.min) or (flag.max is not None and value > flag.max)
        ):
            upper = "or more" if flag.max is None else f"to {flag.max}"
            raise InputError(f"option {name} is {value}; give {flag.min} {upper}")
    return chosen
