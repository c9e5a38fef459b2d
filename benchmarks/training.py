"""CAE at 512 px: a training step and a whole epoch, as this project does them and as the original did.

The other side is a plain rendering of the original's way (Davletshina et al. 2020, described in docs/paper.md): the
same network in NCHW float32; for the epoch, a loader in the training's process that for each film, every epoch, decodes
the PNG in color and makes it grey, equalizes the histogram, augments by imgaug (flips, brightness, zoom, rotation on a
growing canvas) and resizes to 512 px with padding. Our side reads films prepared once from memory. Both have Adam's
fused form, the same batches of 8 and all cores. Films: SYNTHETIC.

Each side is a process that trains on request: steps and epochs take turns, and a ratio is the median over rounds of the
ratio of both sides' times in a round. Ours keeps freed memory, as `anomaly train` does; so does a third side, plain
otherwise, which shows the effect of that alone.
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anomaly.data.augment import import_augmenters
from anomaly.data.batch import Batch
from anomaly.data.dataset import Films, FilmSet
from anomaly.memory import keep_freed_memory
from anomaly.models import find_model
from anomaly.pipeline.plan import resolve
from anomaly.training.device import choose_precision, make_repeatable
from anomaly.training.trainer import Trainer
from benchmarks.record import record, spread
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trainer(
    name: str,
    films: Films,
    size: int,
    *settings: str,
    precision: str = "auto",
    plain: bool = False,
    keep: bool = True,
    workers: int = 0,
) -> Trainer:
    """Return a trainer of a model's preset `standard` on films in memory; `plain` is NCHW in float32."""
    if not plain:
        make_repeatable(DEVICE)  # as `anomaly train` does
    if keep:
        keep_freed_memory()
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
    """Return films of noise, SYNTHETIC, with masks: the content of films does not affect times."""
    film = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    return Films(film, film > 60, np.zeros(count, np.int8))


def step(made: Trainer, batch: Batch) -> None:
    """Do all steps of a batch."""
    for _ in made.apply_steps(batch):
        pass


class OriginalFilms(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """PNG files as the original prepares them anew in every epoch."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size
        iaa = import_augmenters()
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


def side(name: str, films: Films, files: list[Path], size: int, batch: int, connection: Connection) -> None:
    """Run in a process: for each request do the steps of all films, or an epoch, and send the seconds that took."""
    plain, threads = name != "ours", cv2.getNumThreads()
    made = trainer("cae", films, size, f"batch_size={batch}", plain=plain, keep=name != "plain")
    if plain:
        cv2.setNumThreads(threads)  # ours has it on one while training
    loader = DataLoader(OriginalFilms(files, size), batch_size=batch, shuffle=True)
    ready = next(made.batches.epoch(0))
    connection.send("bfloat16" if made.autocast else "float32")
    for word in iter(connection.recv, None):
        start = time.perf_counter()
        if word == "step":
            for _ in range(len(films) // batch):
                step(made, ready)
        elif plain:
            original_epoch(made, loader)
        else:
            our_epoch(made, 1)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        connection.send(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--films", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "films", seed=0, patients=options.films // 2)
        source = open_source(Path(folder) / "films")
        recipe = Recipe(name="limb", size=options.size)
        build(source, recipe, Path(folder) / "cache.h5", options=BuildOptions(variants=("full-he",), workers=1))
        cache = Cache(Path(folder) / "cache.h5")
        films = FilmSet(cache, "full-he", np.arange(options.films), options.size).read()
        files = [Path(folder) / "films" / path for path in cache.index["path"][: options.films]]
        for name in ("plain", "plain, memory kept", "ours"):
            sides[name], end = context.Pipe()
            arguments = (name, films, files, options.size, options.batch, end)
            context.Process(target=side, args=arguments, daemon=True).start()
            end.close()  # so that the death of a process ends recv
        precision = {name: connection.recv() for name, connection in sides.items()}

        def request(name: str, word: str) -> float:
            sides[name].send(word)
            seconds: float = sides[name].recv()
            return 1000 * seconds / options.films

        spent: dict[tuple[str, str], list[float]] = {}
        for number in range(options.rounds + 1):
            for word in ("step", "end to end"):
                for name in sides:
                    milliseconds = request(name, word)
                    if number:  # the first round warms up
                        spent.setdefault((word, name), []).append(milliseconds)
        for connection in sides.values():
            connection.send(None)
    figures: dict[str, Any] = {f"{word}, {name}, ms_per_film": spread(each) for (word, name), each in spent.items()}
    for word in ("step", "end to end"):
        for other, key in (("plain", "ratio"), ("plain, memory kept", "ratio to memory kept")):
            pairs = zip(spent[word, other], spent[word, "ours"], strict=True)
            figures[f"{word}, {key}"] = spread([theirs / ours for theirs, ours in pairs])
    record(
        "cae training",
        f"python -m benchmarks.training --size {options.size} --batch {options.batch} --films {options.films} "
        f"--rounds {options.rounds}",
        {**vars(options), "precision": precision["ours"], "device": DEVICE.type},
        figures,
    )


if __name__ == "__main__":
    main()
