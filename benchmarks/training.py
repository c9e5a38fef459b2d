"""CAE training step: as the loop runs it against the same network in plain NCHW float32, interleaved in one process."""

import argparse
import time

import torch

from anomaly.data import Films
from anomaly.models.cae import CAE, CAEConfig
from anomaly.train import TrainConfig, Trainer, choose_precision
from benchmarks.record import record, spread


def trainer(films: Films, size: int, batch: int, device: torch.device, *, plain: bool) -> Trainer:
    config = TrainConfig(batch_size=batch, augmentation="none")
    precision = "float32" if plain else choose_precision("auto", device, pays=CAE.low_precision)
    torch.manual_seed(0)
    made = Trainer(CAE(CAEConfig(), size), config, films, films, seed=0, device=device, precision=precision, workers=0)
    if plain:
        made.model.to(memory_format=torch.contiguous_format)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draw = torch.Generator().manual_seed(0)
    shape = (options.batch, options.size, options.size)
    film = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8).numpy()
    films = Films(film, film > 60, film[:, 0, 0].astype("int8") * 0)
    sides = {
        name: trainer(films, options.size, options.batch, device, plain=name == "plain") for name in ("plain", "ours")
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, side in sides.items():
            (batch,) = side.batches.epoch(number)
            side.model.train()
            start = time.perf_counter()
            for _ in side._steps(batch):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    per_film = {name: spread([s / options.batch * 1000 for s in values]) for name, values in seconds.items()}
    record(
        "cae training step",
        f"python -m benchmarks.training --size {options.size} --batch {options.batch} --rounds {options.rounds}",
        {
            "size": options.size,
            "batch": options.batch,
            "rounds": options.rounds,
            "precision": "bfloat16" if sides["ours"].autocast else "float32",
        },
        {
            "plain_ms_per_film": per_film["plain"],
            "ours_ms_per_film": per_film["ours"],
            "ratio": per_film["plain"]["median"] / per_film["ours"]["median"],
        },
    )


if __name__ == "__main__":
    main()
