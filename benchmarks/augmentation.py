"""Augmentation in milliseconds a film: imgaug on a whole batch in this process, the batched warp on this device.

imgaug takes stored levels (uint8), the warp what follows them: levels as float32 in [0, 1] and masks, on the device
already, for both move the same bytes there. OpenCV has one thread, as in training, torch all. The warp's time is that
of the host drawing and the device working. Films are low-pass noise.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import count

import cv2
import numpy as np
import torch

from anomaly.data.augment import Augmentation, AugmentationName, DeviceAugmentation
from benchmarks.record import alternate, record

BATCHES = {128: 16, 512: 8}
SETS: tuple[AugmentationName, ...] = ("flips", "advanced")


def sides(size: int, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the two ways of every set; each call takes the next seed, the same for both."""
    draw = np.random.default_rng(0)
    films = np.stack([cv2.resize(draw.random((size // 8, size // 8)), (size, size)) for _ in range(batch)])
    levels, masks = (films * 255).astype(np.uint8), films > 0.3
    unit = (torch.from_numpy(levels)[:, None] / 255).to(device)
    inside = torch.from_numpy(masks)[:, None].to(device)

    def imgaug(made: Augmentation, seeds: Iterator[int]) -> Callable[[], object]:
        return lambda: made(levels, masks, next(seeds))

    def warp(made: DeviceAugmentation, seeds: Iterator[int]) -> Callable[[], object]:
        return lambda: made(unit, inside, next(seeds))

    ways: dict[str, Callable[[], object]] = {}
    for name in SETS:
        ways[f"{name}, imgaug"] = imgaug(Augmentation(name), count())
        ways[f"{name}, warp"] = warp(DeviceAugmentation(name), count())
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, object] = {}
    for size, batch in BATCHES.items():
        seconds = alternate(sides(size, batch, device), options.rounds, units=batch / 1000)
        for name, values in seconds.items():
            figures[f"{size} px, {name}, ms_per_film"] = values
        for name in SETS:
            ratio = seconds[f"{name}, imgaug"]["median"] / seconds[f"{name}, warp"]["median"]
            figures[f"{size} px, {name}, imgaug_over_warp"] = ratio
    record(
        "augmentation",
        f"python -m benchmarks.augmentation --rounds {options.rounds}",
        {"batch": BATCHES, "device": device.type, "rounds": options.rounds},
        figures,
    )


if __name__ == "__main__":
    main()
