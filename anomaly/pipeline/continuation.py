"""Going on from a finished run: more epochs, or more films, as a new run that begins with its weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from anomaly.console import Advance, silent
from anomaly.formatting import command_line
from anomaly.manifest import check_files
from anomaly.models import COMPOSED, find_model
from anomaly.pipeline.joining import Joined, join_films
from anomaly.pipeline.open_run import run_cache, run_cache_and_split
from anomaly.pipeline.options import LARGEST_SEED, Plan, TrainOptions, pairs_of
from anomaly.pipeline.plan import Prepared, prepare, prepares_films, settings_of
from anomaly.runs import RESULTS, BegunWith, Run, sha256
from anomaly.training.config import TrainConfig
from anomaly.training.weights import resume_command
from preprocessing import InputError

KEPT = {"preset": "standard", "variant": None, "split_seed": 0, "where": (), "weights": None}
"""Options that a run has for good, and what they are where nobody gives them."""


@dataclass(frozen=True)
class Continuation:
    """A training that goes on from a run."""

    prepared: Prepared
    parent: Run
    joined: Joined | None  # what became of the films that join those of the run
    trained: bool  # by epochs, rather than fitted to its films as a whole


def prepare_continuation(
    options: TrainOptions, *, display: Callable[[str, int, str], AbstractContextManager[Advance]] = silent
) -> Continuation:
    """Check what is to go on from a run, `options.model`; its new films are joined with the old ones here.

    The recipe, variant, size and settings of the model are the run's. Settings of the training may be given anew; the
    seed is the next one unless another is given, so that augmentation does not repeat what was seen. Raises InputError
    for what no training can go on from.
    """
    parent = Run(Path(options.model))
    _check_parent(parent)
    config = parent.config
    for name, unasked in KEPT.items():
        if getattr(options, name) != unasked:
            flag = name.replace("_", "-")
            raise InputError(f"{parent.path} keeps its own --{flag}; leave it out, or train anew without a run")
    given = pairs_of(options.settings)
    owners = settings_of(find_model(config.model))
    if of_model := [name for name in given if owners.get(name) == "model"]:
        raise InputError(f"--set {of_model[0]}: a setting of the model is that of its weights; leave it out")
    joined = None
    if options.more_films is None:
        cache = run_cache(parent, options.cache)
        if not prepares_films(find_model(config.model)):
            run_cache_and_split(parent, cache.path)  # refuses other splits
    else:
        joined = join_films(parent, options.more_films, options.cache, display=display)
    settings = {**config.settings.model, **config.settings.training}
    if options.more_epochs is not None:
        settings |= {"epochs": options.more_epochs}
    settings |= {"stages": TrainConfig(**config.settings.training).order[-1]}  # earlier ones are behind it
    words = [f"{name}={'none' if value is None else value}" for name, value in settings.items()]
    plan = Plan(
        config.model,
        cache.path if joined is None else joined.path,
        None if prepares_films(find_model(config.model)) else config.variant,
        config.preset,
        (*words, *options.settings),
        options.seed or _next_seed(config.seed),
        config.split_seed,
        options.device,
        options.precision,
        tuple(config.where),
    )
    prepared = prepare(plan)
    with torch.device("meta"):  # its players alone are asked for
        trained = bool(prepared.model(prepared.model_config, prepared.config.size).players())
    if not trained and options.more_films is None:
        more = command_line("anomaly", "train", parent.path, "--more-films", "CACHE")
        raise InputError(
            f"{parent.path}: {config.model} is fitted to its films, not trained by epochs; `{more}` fits it to more"
        )
    begun = BegunWith(
        run=str(parent.path),
        weights=sha256(parent.path / "weights.safetensors"),
        epochs=len(parent.history()) + (config.begun_with.epochs if config.begun_with else 0),
        more_films=None if options.more_films is None else str(options.more_films),
    )
    changed = prepared.config.model_copy(update={"begun_with": begun})
    return Continuation(replace(prepared, config=changed), parent, joined, trained)


def _check_parent(parent: Run) -> None:
    """Refuse runs that are not trained to their end, or not trained at all."""
    config, path = parent.config, parent.path
    if config.model in COMPOSED:
        raise InputError(f"{path} is made of {', '.join(config.members)}; go on from one of these")
    if not parent.finished:
        raise InputError(
            f"{path} is unfinished: {resume_command(parent)} resumes it, exactly where it stands; go on from it then"
        )
    if not (path / "weights.safetensors").is_file():
        raise InputError(f"{path / 'weights.safetensors'} is gone; put it back, or train anew")
    check_files(path, "put the right file back, or train anew without the run", RESULTS)


def _next_seed(seed: int | str) -> int:
    return (int(seed) + 1) % (LARGEST_SEED + 1)
