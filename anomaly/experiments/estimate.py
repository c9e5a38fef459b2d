"""How long a bench will take on this machine."""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from anomaly.experiments.cells import describe
from anomaly.experiments.grid import Cell, Grid
from anomaly.pipeline.plan import prepare
from anomaly.training.config import Precision
from anomaly.training.device import choose_device
from anomaly.training.trainer import Trainer
from preprocessing import InputError


@dataclass(frozen=True)
class Estimate:
    """What the runs of one row will take."""

    row: str
    preset: str
    size: int  # pixels
    films: int  # of the training split
    epochs: int  # at most
    runs: int
    seconds: float  # of one run, at most


def estimate(grid: Grid) -> tuple[list[Estimate], dict[str, str]]:
    """Time a step of each row on this machine.

    Returns what the runs of each row will take, judged by its first cell, and row -> why it can't be trained.
    """
    cells = grid.cells()
    estimates, refused = [], {}
    for cell in cells[: len(grid.models)]:
        try:
            of_cell = _estimate(grid, cell)
        except InputError as error:
            refused[cell.row] = str(error)
        except (RuntimeError, MemoryError) as error:  # torch raises the first when memory is out
            refused[cell.row] = describe(error)
        else:
            estimates.append(replace(of_cell, runs=sum(other.row == cell.row for other in cells)))
    return estimates, refused


def _estimate(grid: Grid, cell: Cell) -> Estimate:
    """Time a step of one cell."""
    prepared = prepare(grid.plan(cell))
    training, films, device = prepared.training, prepared.films("train"), choose_device(grid.device)
    batch = films.part(np.concatenate(films.samples()[: training.batch_size]))
    model = prepared.model(prepared.model_config, prepared.config.size)
    seconds = 0.0
    if model.players():
        trainer = Trainer(
            model,
            training,
            batch,
            batch.part(np.arange(2)),
            seed=0,
            device=device,
            precision=cast("Precision", prepared.config.precision),
            workers=0,
        )
        seconds = min(trainer.train_epoch(number)["seconds"] for number in (1, 2)) / len(batch)
    most = training.most_epochs
    return Estimate(cell.row, cell.preset, films.size, len(films), most, 1, seconds * len(films) * most)
