"""From a plan to a finished run folder: train, calibrate, draw. One way for every model."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save

from anomaly import runs
from anomaly.console import warn
from anomaly.data.batch import as_batch, batches
from anomaly.data.dataset import Films, FilmSet
from anomaly.distributed import SINGLE_PROCESS, World
from anomaly.evaluation.calibration import Calibration, calibrate
from anomaly.evaluation.torch_scorer import TorchScorer
from anomaly.formatting import command_line
from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import LocalizationCalibration
from anomaly.localization.evaluate import choose_threshold
from anomaly.manifest import list_files
from anomaly.memory import keep_freed_memory
from anomaly.models.base import Detector, Model
from anomaly.pipeline.film_reference import keep_reference
from anomaly.pipeline.plan import Prepared, prepares_films
from anomaly.reporting.charts.learning import learning_curve_png
from anomaly.reporting.training_pictures import DRAWN, PICTURED, detections_picture, picture, samples
from anomaly.training.config import EpochReport, Precision, State
from anomaly.training.device import choose_device, make_repeatable
from anomaly.training.tracking import open_tracker
from anomaly.training.trainer import Trainer, history_csv
from preprocessing import InputError
from preprocessing.wording import counted

LISTED = ("run.json", "weights.safetensors", "history.csv", "warnings.json", "films.safetensors")
"""What a training leaves, beside its calibration, that numbers are made of."""


def continue_or_create(prepared: Prepared, out: Path | None, *, resume: bool) -> runs.Run:
    """Return the run folder to train in, as `folder_for` finds it, created where it is new."""
    kept = ("precision",) if prepared.plan.precision == "auto" else ()
    return created(folder_for(prepared.config, out, resume=resume, kept=kept), prepared.config)


def folder_for(config: runs.RunConfig, out: Path | None, *, resume: bool, kept: Sequence[str] = ()) -> runs.Run | Path:
    """Return the run to go on with, or where to create it: the same command after an interruption gets what it had.

    Without `out`, that is the unfinished `runs/<model>-<n>` of the very same settings, or else the next number. With
    `out`, a run there must be unfinished and have the same settings. `resume` insists on a run that is there, and takes
    a finished one too. What is `kept` may differ: it stays what the run was begun with.
    """
    if out is None:
        for path in reversed(runs.numbered(config.model)):
            if (path / "run.json").is_file():
                run = runs.Run(path)
                if not run.ended and not _changed(run, config, kept) and not run.busy():
                    return run
        if resume:
            raise InputError(f"{runs.RUNS}/ has no unfinished {config.model} with these settings; leave out --resume")
        return runs.next_path(config.model)
    if not (out / "run.json").is_file():
        if resume:
            raise InputError(f"{out} is not a run folder that can be resumed; leave out --resume")
        return out
    run = runs.Run(out)
    if changed := _changed(run, config, kept):
        raise InputError(f"{out} was started with other settings: {'; '.join(changed)}; use those, or another --out")
    if run.ended and not resume:
        scores = command_line("anomaly", "score", out)
        raise InputError(f"{out} exists and is finished; choose another --out, or score it: `{scores}`")
    return run


def created(place: runs.Run | Path, config: runs.RunConfig) -> runs.Run:
    """Return the run that `folder_for` found, created where there was none."""
    if isinstance(place, runs.Run):
        return place
    return runs.create(place, config.model_copy(update={"created": runs.now()}))


def _changed(run: runs.Run, wanted: runs.RunConfig, kept: Sequence[str] = ()) -> list[str]:
    """Return in what a run differs from the one wanted; the same films under another path or name are the same."""

    def compared(config: runs.RunConfig) -> dict[str, object]:
        plain = config.model_dump(exclude={"format", "created", "cache", "stopped", "threads", *kept})
        return plain | {"cache": {"content_hash": config.cache.content_hash}}

    return runs.differences(compared(run.config), compared(wanted))


def fit(
    prepared: Prepared,
    run: runs.Run,
    *,
    workers: int,
    on_epoch: Callable[[EpochReport], None],
    world: World = SINGLE_PROCESS,
    track: str = "none",
    should_stop: Callable[[State], bool] = lambda state: False,
) -> runs.Run:
    """Train in `run` from wherever it stands, calibrate on validation films, and write all that a run holds.

    All processes of a `world` train and the first one writes. `track` also logs the history to a tracker. `should_stop`
    is asked between batches whether to train no longer and finish the run with what it has kept.
    """
    device = choose_device(prepared.plan.device)
    with run.locked() if world.first else nullcontext():
        checkpoint = run.path / runs.CHECKPOINT
        if run.finished:
            checkpoint.unlink(missing_ok=True)  # where a kill came just before
            return run
        make_repeatable(device)
        keep_freed_memory()
        torch.manual_seed(prepared.plan.seed)
        model = prepared.model(prepared.model_config, prepared.config.size)
        begun_with = None if checkpoint.is_file() else prepared.config.begun_with
        if begun_with:  # before the trainer, by which the model learns how many films of each class there are
            model.load_state_dict(weights_begun_with(begun_with))
        films, validation = prepared.films("train"), prepared.films("val")
        trainer = Trainer(
            model,
            prepared.training,
            films if prepared.outgrown else films.read(),
            validation if prepared.outgrown else validation.read(),
            seed=prepared.plan.seed,
            device=device,
            precision=cast("Precision", run.config.precision),  # what it was begun in, whatever `auto` says now
            workers=workers,
            world=world,
        )
        if checkpoint.is_file():
            trainer.restore(checkpoint)
        elif begun_with and trainer.parameters:  # else it is fitted anew, whatever it began with
            trainer.keep_start()
        elif prepared.config.weights:
            model.load_pretrained(Path(prepared.config.weights.file))
        if not world.first:
            trainer.run(run, on_epoch)
            world.wait()
            return run
        closing = _Closing(model, prepared, run, device, trainer.validation)
        _note_threads(run)
        _train(trainer, run, prepared, on_epoch, closing, track, should_stop)
        model.eval()
        with torch.inference_mode():
            model.fit_reference(batches(trainer.train, device))
        _write_outcome(run, model, trainer, synthetic=prepared.cache.synthetic)
        closing.finish()
        checkpoint.unlink(missing_ok=True)
        world.wait()
    return run


def _note_threads(run: runs.Run) -> None:
    """Record on how many threads the training goes on, and say so where that is another number than before."""
    now_used, before = torch.get_num_threads(), run.config.threads
    if before and before[-1] != now_used:
        warn(
            f"{run.path} was trained with {counted(before[-1], 'thread')} so far, now with {now_used}: sums round "
            "otherwise, so that its weights are not bit for bit those of an uninterrupted training; run.json says so"
        )
    if before[-1:] != [now_used]:
        run.update(threads=[*before, now_used])


def _train(
    trainer: Trainer,
    run: runs.Run,
    prepared: Prepared,
    on_epoch: Callable[[EpochReport], None],
    closing: "_Closing",
    track: str,
    should_stop: Callable[[State], bool],
) -> None:
    """Train to the end, log every epoch, and load the chosen weights."""
    with open_tracker(track, run.path, prepared.config) as tracker:

        def log(report: EpochReport) -> None:
            tracker.epoch(report.figures, report.epoch)
            on_epoch(report)

        kept = trainer.run(run, log, closing.draw, should_stop)
        state = trainer.state
        tracker.close({"epochs": state.epoch, "best_epoch": state.best_epoch, "best_validation": state.best})
    trainer.model.load_state_dict(kept)


def _write_outcome(run: runs.Run, model: Model, trainer: Trainer, *, synthetic: bool) -> None:
    """Write the weights, the history, and what was wrong with the training.

    Results of the run as it was before, unfinished, are removed: they are of other weights.
    """
    for name in runs.RESULTS:
        (run.path / name).unlink(missing_ok=True)
    if trainer.state.stopped is not None:
        run.update(stopped=trainer.state.stopped)
    write_weights(run, model)
    run.write("history.csv", history_csv(trainer.state.history))
    run.write("warnings.json", runs.to_json({"warnings": trainer.state.warnings}))
    if model.players():
        history = trainer.state.history
        columns = {name: [row[name] for row in history] for name in history[0]}
        run.write("learning_curve.png", learning_curve_png(columns, synthetic=synthetic))


def weights_begun_with(begun: runs.BegunWith) -> dict[str, torch.Tensor]:
    """Return the weights that a training goes on from; raises InputError where they are gone or others by now."""
    file = Path(begun.run) / "weights.safetensors"
    if not file.is_file():
        raise InputError(f"{file}, with which this run begins, is gone; put it back, or train without it")
    if runs.sha256(file) != begun.weights:
        raise InputError(f"{file} has other weights than those with which this run begins; start a new one from them")
    return load_file(file)


def write_weights(run: runs.Run, model: Model) -> None:
    """Write the weights of a model, with all its buffers."""
    run.write("weights.safetensors", save({k: v.contiguous().cpu() for k, v in model.state_dict().items()}))


class _Closing:
    """What is drawn at every checkpoint, and what ends a run, by what the model is for."""

    def __init__(
        self, model: Model, prepared: Prepared, run: runs.Run, device: torch.device, validation: Films | FilmSet
    ) -> None:
        self.model, self.run, self.device = model, run, device
        self.films = prepared.films("val")
        self.localizes = prepares_films(prepared.model)
        self.validation = validation

    def draw(self) -> None:
        """Write the pictures of the model as it stands."""
        if self.localizes:
            self._draw_detections(None)
        elif self.model.players():
            write_pictures(cast("Detector", self.model), self.films, self.run, self.device)

    def finish(self) -> None:
        """Calibrate, write the pictures and, last, calibration.json, whose presence says that the run is whole."""
        if not self.localizes:
            finish(cast("Detector", self.model), self.films, self.run, self.device)
            return
        films = cast("Films", self.validation)
        choice = choose_threshold(cast("LocalizationModel", self.model), films, self.device)
        if choice.figure == 0:
            warn(
                "nothing is detected correctly on the validation films at any threshold: train longer, or on more films"
            )
        self._draw_detections(choice.threshold)
        calibration = LocalizationCalibration(threshold=choice.threshold, films=len(films))
        conclude(self.run, runs.to_json(calibration.model_dump()))

    def _draw_detections(self, threshold: float | None) -> None:
        model, films = cast("LocalizationModel", self.model), cast("Films", self.validation)
        synthetic = self.films.cache.synthetic
        self.run.write("detections.png", detections_picture(model, films, threshold, self.device, synthetic=synthetic))


def finish(model: Detector, films: FilmSet, run: runs.Run, device: torch.device) -> None:
    """Write what normal films look like, the pictures and, last, calibration.json: a run that has it is whole.

    films  the validation films that it may be calibrated on: normal ones, or for labels both.
    """
    calibration = calibrate(TorchScorer(model, device), films)
    keep_reference(run, films.cache.path)
    write_pictures(model, films, run, device, calibration)
    conclude(run, runs.to_json(calibration.model_dump()))


def conclude(run: runs.Run, calibration: str) -> None:
    """Write calibration.json, whose presence says that the run is whole, once all files are in the manifest."""
    list_files(run.path, LISTED, {"calibration.json": calibration})
    run.write("calibration.json", calibration)


@torch.inference_mode()
def write_pictures(
    model: Detector, films: FilmSet, run: runs.Run, device: torch.device, calibration: Calibration | None = None
) -> None:
    """Write what the model draws as it stands: samples.png, and the maps in reconstructions.png or, where it
    reconstructs nothing, maps.png; while it trains, without a calibration, on a scale of their own.
    """
    model.eval()
    generated = model.generate(DRAWN * DRAWN)
    if generated is not None:
        grey = generated[:, 0].float().cpu().numpy()
        run.write("samples.png", samples(grey, synthetic=films.cache.synthetic))
    label = films.label
    classes = [np.flatnonzero(label == value) for value in np.unique(label)]  # both, where both are validated with
    each = PICTURED // len(classes)
    few = films.subset(np.concatenate([places[:: max(1, len(places) // each)][:each] for places in classes]))
    part = few.read()
    batch = as_batch(part, device)
    prediction = model.preview(batch) if calibration is None else model.predict(batch, maps=True)
    scale = None if calibration is None else calibration.map_scale
    if prediction.map is not None:
        name = "maps.png" if prediction.reconstruction is None else "reconstructions.png"
        shown = picture(prediction, part, scale, unit=model.map_unit, synthetic=films.cache.synthetic)
        run.write(name, shown)
