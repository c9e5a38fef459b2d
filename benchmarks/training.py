"""CAE at 512 px: a training step and a whole epoch, as this project does them and as the original did.

The other side is a plain rendering of the original's way (Davletshina et al. 2020, described in docs/paper.md): the
same network in NCHW float32; for the epoch, a loader in the training's process that for each film, every epoch, decodes
the PNG in colour and makes it grey, equalises the histogram, augments by imgaug (flips, brightness, zoom, rotation on a
growing canvas) and resizes to 512 px with padding. Our side reads films prepared once from memory. Both have Adam's
fused form, the same batches of 8 and all cores. Films: SYNTHETIC; both sides alternate in one process.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anomaly.augment import _augmenters
from anomaly.data import Films, load_films
from anomaly.detector import Batch
from anomaly.fit import resolve
from anomaly.models import find_model
from anomaly.train import Trainer, choose_precision
from benchmarks.record import alternate, record
from preprocessing.build import build
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.schema import Cache
from preprocessing.sources import open_source

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trainer(
    name: str, films: Films, size: int, *settings: str, precision: str = "auto", plain: bool = False, workers: int = 0
) -> Trainer:
    """Return a trainer of a model's preset `standard` on films in memory; `plain` is NCHW in float32."""
    kind = find_model(name)
    config, training = resolve(name, "standard", settings)
    torch.manual_seed(0)
    chosen = choose_precision("float32" if plain else precision, DEVICE, pays=kind.pays_in_bfloat16(config))
    made = Trainer(kind(config, size), training, films, films, seed=0, device=DEVICE, precision=chosen, workers=workers)
    if plain:
        made.model.to(memory_format=torch.contiguous_format)
    made.model.train()
    return made


def noise(count: int, size: int) -> Films:
    """Return films of noise, SYNTHETIC, with a mask: what is in them changes no time."""
    film = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    return Films(film, film > 60, np.zeros(count, np.int8))


def step(made: Trainer, batch: Batch) -> None:
    """Do all steps of a batch."""
    for _ in made._steps(batch):
        pass


class OriginalFilms(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """PNG files as the original prepares them anew in every epoch."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size
        iaa = _augmenters()
        scale, turn = {"x": (0.8, 1.2), "y": (0.8, 1.2)}, iaa.Affine(rotate=(-20, 20), fit_output=True)
        some = (iaa.Multiply((0.8, 1.2)), iaa.Affine(scale=scale), turn)
        self.augmentation = iaa.Sequential([iaa.Fliplr(0.5), iaa.Flipud(0.5), *(iaa.Sometimes(0.5, a) for a in some)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        film: Any = cv2.imread(str(self.files[index]), cv2.IMREAD_COLOR)
        film = cv2.equalizeHist(cv2.cvtColor(film, cv2.COLOR_RGB2GRAY))
        film = self.augmentation(image=film)
        scale = self.size / max(film.shape)
        film = cv2.resize(film, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        height, width = (self.size - side for side in film.shape)
        film = cv2.copyMakeBorder(
            film, height // 2, height - height // 2, width // 2, width - width // 2, cv2.BORDER_CONSTANT, value=0
        )
        film = film.astype(np.float32)
        film = (film - film.min()) / max(1.0, float(film.max() - film.min()))
        whole = torch.from_numpy(film)[None]
        return whole, whole != 0


def original_epoch(made: Trainer, loader: DataLoader[Any]) -> None:
    for film, mask in loader:
        label = torch.zeros(len(film), dtype=torch.int64)
        step(made, Batch(*(tensor.to(DEVICE) for tensor in (film, mask, label))))


def our_epoch(made: Trainer, number: int) -> None:
    for batch in made.batches.epoch(number):
        step(made, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--films", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    settings = f"batch_size={options.batch}"
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "films", seed=0, patients=options.films // 2)
        source = open_source(Path(folder) / "films")
        recipe = Recipe(name="hand", size=options.size)
        build(source, recipe, Path(folder) / "cache.h5", variants=("full-he",))
        cache = Cache(Path(folder) / "cache.h5")
        films = load_films(cache, "full-he", np.arange(options.films))
        files = [Path(folder) / "films" / path for path in cache.index["path"][: options.films]]
        plain = trainer("cae", films, options.size, settings, plain=True)
        ours = trainer("cae", films, options.size, settings)
        loader = DataLoader(OriginalFilms(files, options.size), batch_size=options.batch, shuffle=True)
        ready = next(ours.batches.epoch(0))
        steps = alternate({"plain": lambda: step(plain, ready), "ours": lambda: step(ours, ready)}, options.rounds)
        epochs = alternate(
            {"original": lambda: original_epoch(plain, loader), "ours": lambda: our_epoch(ours, 1)}, options.rounds
        )
    step_ms = {name: {k: s / options.batch * 1000 for k, s in side.items()} for name, side in steps.items()}
    epoch_ms = {name: {k: s / options.films * 1000 for k, s in side.items()} for name, side in epochs.items()}
    record(
        "cae training",
        f"python -m benchmarks.training --size {options.size} --batch {options.batch} --films {options.films} "
        f"--rounds {options.rounds}",
        {**vars(options), "precision": "bfloat16" if ours.autocast else "float32", "device": DEVICE.type},
        {
            "step, plain, ms_per_film": step_ms["plain"],
            "step, ours, ms_per_film": step_ms["ours"],
            "step, ratio": step_ms["plain"]["median"] / step_ms["ours"]["median"],
            "end to end, original, ms_per_film": epoch_ms["original"],
            "end to end, ours, ms_per_film": epoch_ms["ours"],
            "end to end, ratio": epoch_ms["original"]["median"] / epoch_ms["ours"]["median"],
        },
    )


if __name__ == "__main__":
    main()
