"""How much of the bare training step's pace an epoch keeps: films in memory, augmented, moved, trained on.

The bare step has a batch in place; the epoch's take their films as `anomaly train` does, with the augmentation of the
preset `standard`; the validation after them is not in it. Same model, same number of steps; both sides alternate in one
process, and what is kept is the median over rounds of the bare steps' time over that of the epoch right after them.
Films are noise, SYNTHETIC.
"""

import argparse
from functools import partial

from anomaly.data.batch import Batch
from anomaly.training.trainer import Trainer
from benchmarks.record import record, rounds_of, spread
from benchmarks.training import DEVICE, noise, our_epoch, step, trainer

CASES = {"cae": ((128, 16, 8), (512, 8, 3)), "vae": ((128, 16, 8),), "bigan": ((128, 16, 2),)}
"""Model -> sizes in pixels, films a batch, batches an epoch."""


def bare(made: Trainer, ready: Batch, count: int) -> None:
    for _ in range(count):
        step(made, ready)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    figures: dict[str, object] = {}
    for name, cases in CASES.items():
        for size, batch, count in cases:
            films = noise(batch * count, size)
            made = trainer(name, films, size, f"batch_size={batch}", workers=options.workers)
            ready = next(made.batches.epoch(0))
            sides = {"bare": partial(bare, made, ready, count), "epoch": partial(our_epoch, made, 1)}
            spent = rounds_of(sides, options.rounds, units=batch * count)
            case = f"{name} {size} px"
            for side, seconds in spent.items():
                figures[f"{case}, {side}, ms_per_film"] = spread([1000 * s for s in seconds])
            figures[f"{case}, kept"] = spread([a / b for a, b in zip(spent["bare"], spent["epoch"], strict=True)])
    command = f"python -m benchmarks.data_loading --rounds {options.rounds} --workers {options.workers}"
    record("data_loading", command, {**vars(options), "device": DEVICE.type}, figures)


if __name__ == "__main__":
    main()
