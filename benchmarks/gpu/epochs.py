"""Whole epochs as `anomaly train` does them, and what the paper's grid would take."""

import time
from typing import Any

import numpy as np

from anomaly.pipeline.plan import resolve
from anomaly.training.config import Precision
from anomaly.training.trainer import Trainer
from benchmarks.gpu.films import repeated
from benchmarks.gpu.setting import PAPER_MODELS, Case, step
from benchmarks.gpu.speed import idle

FILMS, VALIDATION, VARIANTS = 2846, 500, 6
"""Training films of the paper, validation films as its split rule leaves them about, variants of the preprocessing."""
PROFILED = 12  # batches


def epoch(case: Case, step_seconds: float, seconds: float) -> dict[str, Any]:
    """Train on as many films as take about `seconds`, at most the paper's; time epochs, without and with validation.

    step_seconds  of one batch in place
    """
    count = int(np.clip(seconds / step_seconds, 4, -(-FILMS // case.batch))) * case.batch
    count = min(count, FILMS)
    setting = case.setting
    setting.clear()
    precision: Precision = "bfloat16" if setting.device.type == "cuda" else "float32"
    films, held_out = repeated(case.films, count), repeated(case.films, max(2, count * VALIDATION // FILMS))
    # Times don't depend on the weights; at the paper's rates some training diverges on these films, which ends it.
    rate = "learning_rate=0.00001"
    trainer = case.trainer(precision, rate, films=films, validation=held_out)
    trainer.train_epoch(1)
    whole, training = [], []
    for number in (2, 3):
        start = time.perf_counter()
        _steps(trainer, number)
        setting.synchronize()
        training.append(time.perf_counter() - start)
        whole.append(trainer.train_epoch(number)["seconds"])
    batches = len(trainer.batches)
    figures: dict[str, Any] = {
        "films": count,
        "films_per_second": count / min(training),
        "share_of_bare_steps": step_seconds * batches * (count / batches / case.batch) / min(training),
        "epoch_s": whole,
    }
    if setting.device.type == "cuda":
        found = idle(setting, lambda: _steps(trainer, 4, PROFILED))
        figures |= {"idle_share": 1 - found["busy_share"], "kernels": found["kernels"]}
    return figures


def _steps(trainer: Trainer, number: int, most: int | None = None) -> None:
    trainer.model.train()  # a validation may have been before
    for done, batch in enumerate(trainer.batches.epoch(number)):
        if done == most:
            return
        step(trainer, batch)


def grid(measured: dict[str, dict[str, Any]], preset: str) -> dict[str, Any]:
    """Return the hours of all variants of each model at the epochs of its preset, one seed, from measured epochs."""
    hours: dict[str, float] = {}
    for name, figures in measured.items():
        seconds = min(figures["epoch_s"]) * FILMS / figures["films"]
        hours[name] = VARIANTS * resolve(name, preset, ())[1].epochs * seconds / 3600
    missing = [name for name in PAPER_MODELS if name not in hours]
    return {"hours_a_seed": hours, "all": sum(hours.values()), "not_measured": missing, "preset": preset}
