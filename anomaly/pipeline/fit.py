"""From a plan to a finished run folder: train, calibrate, draw. One way for every model."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from anomaly import runs
from anomaly.console import warn
from anomaly.data.batch import Batch, as_batch
from anomaly.data.dataset import Films, StoredFilms, load_films
from anomaly.distributed import SINGLE_PROCESS, World
from anomaly.evaluation.calibration import calibrate
from anomaly.evaluation.predict import View
from anomaly.localization.base import LocalizationModel
from anomaly.localization.evaluate import choose_threshold
from anomaly.memory import keep_freed_memory
from anomaly.models.base import Detector, Model
from anomaly.pipeline.plan import Prepared, resolve
from anomaly.reporting.training_pictures import DRAWN, PICTURED, detections_picture, learning_curve, picture, samples
from anomaly.training.config import EpochReport
from anomaly.training.device import choose_device, make_repeatable
from anomaly.training.tracking import open_tracker
from anomaly.training.trainer import Trainer, history_csv
from preprocessing import InputError


def continue_or_create(prepared: Prepared, out: Path | None, *, resume: bool) -> runs.Run:
    """Return the run folder to train in; the same command after an interruption gets the folder it had.

    Without `out`, that is the unfinished `runs/<model>-<n>` of the very same settings, or else the next number. With
    `out`, a run there must be unfinished and have the same settings. `resume` insists on a run that is there, and takes
    a finished one too.
    """
    if out is None:
        for path in reversed(runs.numbered(prepared.plan.model)):
            if (path / "run.json").is_file():
                run = runs.Run(path)
                if not run.finished and not _changed(run, prepared) and not run.busy():
                    return run
        if resume:
            raise InputError(
                f"{runs.RUNS}/ has no unfinished {prepared.plan.model} of these settings; leave --resume out"
            )
        return _create(runs.next_path(prepared.plan.model), prepared)
    if not (out / "run.json").is_file():
        if resume:
            raise InputError(f"{out} is no run folder to go on with; leave --resume out")
        return _create(out, prepared)
    run = runs.Run(out)
    if changed := _changed(run, prepared):
        raise InputError(f"{out} was started with other settings: {'; '.join(changed)}; give those, or another --out")
    if run.finished and not resume:
        raise InputError(f"{out} exists and is finished; take another --out, or score it: `anomaly score {out}`")
    return run


def _create(path: Path, prepared: Prepared) -> runs.Run:
    return runs.create(path, prepared.config | {"created": now()})


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _changed(run: runs.Run, prepared: Prepared) -> list[str]:
    """Return in what a run differs from a plan; the same films under another path or name are the same films."""
    told = {"cache": {"content_hash": prepared.cache.content_hash}}
    old = {k: v for k, v in run.config.items() if k not in ("format", "created")}
    found = old | {"cache": {"content_hash": old.get("cache", {}).get("content_hash")}}
    return runs.differences(found, prepared.config | told)


def fit(
    prepared: Prepared,
    run: runs.Run,
    *,
    workers: int,
    on_epoch: Callable[[EpochReport], None],
    world: World = SINGLE_PROCESS,
    track: str = "none",
) -> runs.Run:
    """Train in `run` from wherever it stands, calibrate on validation films, and write all that a run holds.

    Of a `world` all train and the first one writes. `track` tells the history to a tracker as well.
    """
    plan, config = prepared.plan, prepared.config
    device = choose_device(plan.device)
    with run.locked() if world.first else nullcontext():
        if run.finished:
            return run
        make_repeatable(device)
        keep_freed_memory()
        torch.manual_seed(plan.seed)
        model_config, training = resolve(plan.model, plan.preset, plan.settings)
        model = prepared.model(model_config, config["size"])
        read = prepared.stored if prepared.outgrown else prepared.films
        films, validation = read("train"), read("val")
        trainer = Trainer(
            model,
            training,
            films,
            validation,
            seed=plan.seed,
            device=device,
            precision=config["precision"],
            workers=workers,
            world=world,
        )
        checkpoint = run.path / "checkpoint.safetensors"
        if checkpoint.is_file():
            trainer.restore(checkpoint)
        elif config["weights"]:
            model.load_pretrained(Path(config["weights"]["file"]))
        draw, end = _closing(model, prepared, validation, run, device)
        if not world.first:
            trainer.run(run, on_epoch)
            world.wait()
            return run
        with open_tracker(track, run.path, config) as tracker:

            def told(report: EpochReport) -> None:
                tracker.epoch(report.figures, report.epoch)
                on_epoch(report)

            kept = trainer.run(run, told, draw)
            state = trainer.state
            tracker.close({"epochs": state.epoch, "best_epoch": state.best_epoch, "best_validation": state.best})
        model.load_state_dict(kept)
        model.eval()
        if isinstance(model, Detector):
            with torch.inference_mode():
                model.fit_reference(batches(films, device))
        run.write("weights.safetensors", save({k: v.contiguous() for k, v in model.state_dict().items()}))
        run.write("history.csv", history_csv(trainer.state.history))
        run.write("warnings.json", runs.to_json({"warnings": trainer.state.warnings}))
        if model.players():
            curve = learning_curve(trainer.state.history, synthetic=prepared.cache.synthetic)
            run.write("learning_curve.png", curve)
        end()
        checkpoint.unlink(missing_ok=True)
        world.wait()
    return run


def _closing(
    model: Model, prepared: Prepared, validation: Films | StoredFilms, run: runs.Run, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what is done at every checkpoint, and what in the end, by what the model is for."""
    if isinstance(model, LocalizationModel):
        assert isinstance(validation, Films)
        synthetic = prepared.cache.synthetic

        def draw_detections() -> None:
            run.write("detections.png", detections_picture(model, validation, None, device, synthetic=synthetic))

        return draw_detections, lambda: finish_localization(model, validation, run, device, synthetic=synthetic)
    assert isinstance(model, Detector)
    view = _validation(prepared)

    def draw() -> None:
        if model.players():
            _pictures(model, view, run, device, None)

    return draw, lambda: finish(model, view, run, device)


def finish(model: Detector, view: View, run: runs.Run, device: torch.device) -> None:
    """Write the pictures and, last, calibration.json, whose presence says that the run is whole."""
    calibration = calibrate(model, view, device)
    _pictures(model, view, run, device, calibration.map_scale)
    run.write("calibration.json", runs.to_json(calibration.to_dict()))


def finish_localization(
    model: LocalizationModel, validation: Films, run: runs.Run, device: torch.device, *, synthetic: bool
) -> None:
    """Write the picture of its detections and, last, calibration.json: the threshold from which on they count."""
    choice = choose_threshold(model, validation, device)
    if choice.figure == 0:
        warn("nothing is detected correctly on the validation films at any threshold: train longer, or on more films")
    run.write("detections.png", detections_picture(model, validation, choice.threshold, device, synthetic=synthetic))
    run.write("calibration.json", runs.to_json({"threshold": choice.threshold, "films": len(validation)}))


def batches(films: Films | StoredFilms, device: torch.device) -> Iterator[Batch]:
    """Yield films as they are, in their order, some at a time."""
    side = films.film.shape[1] if isinstance(films, Films) else films.size
    count = max(1, min(64, 2**22 // side**2))
    for start in range(0, len(films), count):
        yield as_batch(films.part(slice(start, start + count)), device)


def _validation(prepared: Prepared) -> View:
    """Return the validation films that the model may be calibrated on: normal ones, or for labels both."""
    return View(prepared.cache, prepared.config["variant"], prepared.rows("val"), prepared.config["size"])


@torch.inference_mode()
def _pictures(model: Detector, view: View, run: runs.Run, device: torch.device, scale: float | None) -> None:
    """Write what the model draws as it stands: samples.png, and the maps, on `scale` if known, in reconstructions.png
    or, where it reconstructs nothing, maps.png.
    """
    model.eval()
    made = model.generate(DRAWN * DRAWN)
    if made is not None:
        run.write("samples.png", samples(made[:, 0].float().cpu().numpy(), synthetic=view.cache.synthetic))
    label = view.column("label")
    classes = [view.rows[label == value] for value in np.unique(label)]  # both, where both are validated with
    each = PICTURED // len(classes)
    rows = np.concatenate([own[:: max(1, len(own) // each)][:each] for own in classes])
    some = View(view.cache, view.variant, rows, view.size)
    batch = as_batch(load_films(some.cache, some.variant, some.rows, some.size), device)
    if model.anomaly_map(batch) is not None:
        name = "maps.png" if model.reconstruct(batch) is None else "reconstructions.png"
        run.write(name, picture(model, some, scale, device))
