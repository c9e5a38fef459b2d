"""Verbs that train: train, ensemble, tune."""

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.cli.declare import command
from anomaly.cli.stop_key import StopKey
from anomaly.console import SYNTHETIC, progress, say, warn
from anomaly.formatting import command_line
from anomaly.pipeline.options import CACHES, EnsembleOptions, Plan, TrainOptions, TuneOptions
from preprocessing import InputError
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.distributed import World
    from anomaly.pipeline.plan import Prepared
    from anomaly.runs import Run

USES = {"ssd": "--localizer ssd", "unet": "--mask unet"}
"""How preprocessing is told to use the nets."""


@command(TrainOptions)
def train(options: TrainOptions) -> Path:
    """Train a detector on the normal films of a cache, a classifier on the labelled ones, or a net that prepares films
    on those with boxes or masks.
    """
    from anomaly.training import tracking

    tracking.check(options.track)
    if options.more_epochs is not None or options.more_films is not None:
        return _go_on(options)
    from anomaly.models import find_model

    if _is_run(options.model):
        raise InputError(
            f"{options.model} is a run: --more-epochs N or --more-films CACHE go on from it, and `train MODEL --out "
            f"{options.model} --resume` resumes it if it is unfinished"
        )
    find_model(options.model)  # a wrong name is answered before the cache is looked for
    from anomaly.distributed import join
    from anomaly.pipeline.plan import prepare

    with join(options.device) as world:
        return _train(options, prepare(options.plan()), world)


def _is_run(name: str) -> bool:
    """Whether what should be the name of a model is the folder of a run."""
    return (Path(name) / "run.json").is_file()


def _go_on(options: TrainOptions) -> Path:
    """Train a new run that begins with the weights of a finished one."""
    from anomaly.distributed import join
    from anomaly.pipeline.continuation import prepare_continuation

    with join(options.device) as world:
        if world.size > 1:
            raise InputError("a run is gone on from by one process: leave out torchrun")
        begun = prepare_continuation(options, display=progress)
        parent, joined, config = begun.parent, begun.joined, begun.prepared.config
        if joined:
            where = ", ".join(f"{count} to {name}" for name, count in joined.by_split.items())
            known = f"; {counted(joined.known, 'film')} of them the run had already" * bool(joined.known)
            say(f"{joined.path}: the films of {parent.path} and {counted(joined.films, 'new film')}: {where}{known}")
            if joined.patients:
                say(f"{counted(joined.patients, 'patient')} of {parent.path} have new films, in the split they were in")
        assert config.begun_with
        if begun.trained:
            say(
                f"begins with the weights of {parent.path}, after {counted(config.begun_with.epochs, 'epoch')}, and a "
                "new optimizer: one longer training would not have given the very same weights"
            )
        else:
            say(f"{config.model} is not trained by epochs: it is fitted to all of these films anew")
        return _train(options, begun.prepared, world)


def _train(options: TrainOptions, prepared: "Prepared", world: "World") -> Path:
    """Train as planned; of several processes the first one speaks."""
    from anomaly.pipeline.fit import continue_or_create, fit
    from anomaly.runs import Run
    from anomaly.training.device import choose_device

    device = choose_device(options.device)
    if not world.first:
        run = Run(world.same_path(None, device))
        fit(prepared, run, workers=options.workers, on_epoch=lambda report: None, world=world)
        return run.path
    run = continue_or_create(prepared, options.folder(), resume=options.resume)
    world.same_path(run.path, device)
    _announce(prepared, run, world)
    epochs = prepared.training.most_epochs
    with (
        progress("training", epochs, "epochs", start=run.epochs_done()) as advance,
        nullcontext(lambda state: False) if world.size > 1 else StopKey(epochs) as should_stop,
    ):

        def on_epoch(report: Any) -> None:
            figures = report.figures
            loss = sum(value for name, value in figures.items() if "." in name)
            note = f"loss {loss:.5g}  validation {figures['validation']:.5g}  best epoch {report.best_epoch}"
            advance(1, f"{note}  {figures['films_per_second']:.0f} films/s", report.seconds_left)
            for text in report.warnings:
                warn(f"epoch {report.epoch}: {text}")

        fit(
            prepared,
            run,
            workers=options.workers,
            on_epoch=on_epoch,
            world=world,
            track=options.track,
            should_stop=should_stop,
        )
    _conclude(prepared, run)
    return run.path


def _announce(prepared: "Prepared", run: "Run", world: "World") -> None:
    """Say what is trained on what."""
    plan, config = prepared.plan, prepared.config
    say(f"{run.path}: {plan.model}, {plan.preset}, seed {plan.seed}, {config.device} in {run.config.precision}")
    if world.size > 1:
        say(f"{world.size} processes share each batch")
    say(
        f"{prepared.cache.path}: {counted(config.films['train'], 'film')} to train on, {config.films['val']} to "
        f"validate with, variant {config.variant} at {config.size} px"
    )
    if prepared.outgrown:
        say(f"{prepared.outgrown}: each batch is read when it is needed; --workers 2 or more read ahead")
    if prepared.cache.synthetic:
        say(SYNTHETIC)
    if done := run.epochs_done():
        say(f"resuming after epoch {done}")
    if "abnormal" in config.films:
        say(f"{config.films['abnormal']} of the films to train on are abnormal")
    if config.weights:
        say(f"pretrained weights: {config.weights.file}")
    elif "weights" in config.settings.model:
        say("pretrained weights: none; --weights imagenet or FILE loads some")


def _conclude(prepared: "Prepared", run: "Run") -> None:
    """Say what the training gave, and what comes next."""
    from anomaly.training.trainer import NO_BETTER

    history, warnings = run.history(), run.warnings()
    best = min(history, key=lambda line: float(line["validation"]))
    kept = best if prepared.training.keep == "best" else history[-1]
    if any(NO_BETTER in text for text in warnings):
        weights = "the weights are those it began with"
    else:
        weights = f"weights of epoch {kept['epoch']}, validation loss {float(kept['validation']):.5g}"
    planned = counted(prepared.training.most_epochs, "epoch")
    say(f"{run.path}: trained for {len(history)} of at most {planned}; {weights}")
    for text in warnings:
        warn(text)
    pictures = ("learning_curve.png", "reconstructions.png", "maps.png", "samples.png", "detections.png")
    written = [name for name in pictures if (run.path / name).is_file()]
    say(f"{run.path}: pictures of the training: {', '.join(written)}")
    say(f"next: {command_line('anomaly', 'score', run.path)}")
    if prepared.plan.model in USES:
        say(f"next: anomaly preprocess FILMS {USES[prepared.plan.model]}:{shlex.quote(str(run.path))}")


@command(TuneOptions)
def tune(options: TuneOptions) -> None:
    """Search the settings of a model by Hyperband, on the validation split. The same command resumes the search."""
    from anomaly.models import find_model

    find_model(options.model)  # a wrong name is answered before the cache is looked for
    from anomaly.experiments import search
    from anomaly.experiments.search_report import summary
    from anomaly.experiments.study import SearchOptions
    from preprocessing.cache.reader import newest_cache

    plan = Plan(
        options.model,
        options.cache or newest_cache(CACHES),
        options.variant,
        options.preset,
        options.settings,
        options.seed,
        options.split_seed,
        options.device,
        options.precision,
        options.where,
    )
    how = SearchOptions(
        options.trials,
        options.jobs,
        options.objective,
        options.by,
        options.least_epochs,
        options.out,
        options.study,
        options.storage,
    )
    outcome = search.tune(plan, how)
    for line in summary(outcome):
        say(line)
    if outcome.synthetic:
        say(SYNTHETIC)
    if outcome.best:
        best = outcome.folder / "trials" / str(outcome.best.number)
        say(f"next: {command_line('anomaly', 'score', best)}")
    else:
        say(f"next: {command_line('anomaly', 'models', options.model)}")


@command(EnsembleOptions)
def ensemble(options: EnsembleOptions) -> None:
    """Combine runs into one, by the p-values of their scores among validation normals: RUN, or RUN:SCORE."""
    from anomaly.pipeline.ensemble import combine
    from anomaly.runs import run_and_score
    from anomaly.training.device import choose_device

    members, scores = zip(*(run_and_score(path) for path in options.runs), strict=True)
    run = combine(members, options.folder(), options.cache, choose_device(options.device), scores)
    say(f"{run.path}: an ensemble of {counted(len(members), 'run')}")
    say(f"next: {command_line('anomaly', 'score', run.path)}")
