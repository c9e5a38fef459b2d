"""A ceiling, not a detector: what a small head on frozen features finds when it is shown the lesions.

    python -m benchmarks.supervised_head CACHE [--variant full-he] [--size 256] [--weights lite0] [--blocks 2,4,10]

A multilayer perceptron on each cell of the features that `feature_mixture` takes learns from the marked lesions of
abnormal films, beside as many normal ones, which cells are lesion. Five folds by patient: no film is scored by a head
that saw its patient. Reported are the films of one split, so that the figures stand beside those of detectors; the
heads are trained on the other patients of all splits. What they reach, the films show to these features; what they do
not, no detector that rests on them should be expected to find.

Features are kept as float16 in a temporary file: memory doesn't grow with films x cells.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from anomaly.data.batch import batches
from anomaly.data.dataset import FilmSet
from anomaly.data.splits import assign_splits
from anomaly.evaluation.bootstrap import interval, mean_interval
from anomaly.evaluation.ranking import roc_auc
from anomaly.formatting import markdown
from anomaly.models.feature_mixture import FeatureMixture, FeatureMixtureConfig
from anomaly.nn.backbone import Backbone, Grid, resample, resampling
from anomaly.training.device import choose_device
from benchmarks.record import command_line, record
from preprocessing import InputError
from preprocessing.cache.reader import Cache

FOLDS = 5
LEARNED = 256
"""Cells a film that a head is shown: those of its lesion, at most half of them, and others drawn at random."""
LESION = 0.1
"""Share of a cell that a lesion covers from which on the cell is lesion; less, but not none, is left out."""
HIDDEN, STEPS, CELLS_A_STEP, RATE, DECAY = 64, 1500, 1024, 2e-3, 1e-2
TOP = 0.01
"""Share of a film's cells, the highest, that `top1` is the mean of."""


@dataclass(frozen=True)
class Cells:
    """The cells of films: N films of M = G x G cells with C features."""

    features: NDArray[np.float16]  # (N, M, C)
    lesion: NDArray[np.float32]  # (N, M) share of the cell under a lesion
    inside: NDArray[np.bool_]  # (N, M) under the film's mask


def extract(films: FilmSet, backbone: Backbone, folder: Path, device: torch.device) -> Cells:
    """Return the cells of the films; the features are a file in `folder`."""
    pixels, grid = Grid(1, 0.0, films.size), backbone.cells
    count, channels = grid.side**2, 0
    to_cells = resampling(pixels, grid, torch.device("cpu"))
    lesion = np.zeros((len(films), count), np.float32)
    inside = np.zeros((len(films), count), np.bool_)
    features: NDArray[np.float16] | None = None
    place = 0
    for batch in batches(films, device):
        for film, mask in zip(batch.film, batch.mask, strict=True):
            with torch.inference_mode():
                own = backbone(film[None])[0].cpu()
            if features is None:
                channels = own.shape[1]
                shape = len(films), count, channels
                features = np.memmap(folder / "features", np.float16, "w+", shape=shape)
            features[place] = own.numpy().clip(-6e4, 6e4)
            inside[place] = resample(mask[0].float().cpu(), to_cells).flatten().numpy() >= 0.5
            if (marked := films.marked(place)) is not None:
                lesion[place] = resample(torch.from_numpy(marked).float(), to_cells).flatten().numpy()
            place += 1
    assert features is not None
    return Cells(features, lesion, inside)


def shown(cells: Cells, film: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the cells of a film that a head learns from, (k, C), and which of them are lesion, (k,)."""
    share = cells.lesion[film]
    least = min(LESION, float(share.max())) or np.inf  # of a lesion that covers no cell so far, its greatest share
    positive = np.flatnonzero(share >= least)
    negative = np.flatnonzero((share == 0) & cells.inside[film])
    positive = rng.permutation(positive)[: LEARNED // 2]
    negative = rng.permutation(negative)[: LEARNED - len(positive)]
    chosen = np.concatenate([positive, negative])
    return cells.features[film][chosen].astype(np.float32), np.arange(len(chosen)) < len(positive)


def train_head(x: Tensor, lesion: Tensor, steps: int, generator: torch.Generator) -> nn.Module:
    """Return a head for cells, (K, C) -> (K, 1) logits, from some and whether they are lesion, (K,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        head = nn.Sequential(nn.BatchNorm1d(x.shape[1]), nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    # Lesions are rare; at the root of their odds the head still hears of every kind of normal cell.
    weight = ((len(lesion) - lesion.sum()) / lesion.sum().clamp(min=1)).sqrt()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (CELLS_A_STEP,), generator=generator)
        loss = binary_cross_entropy_with_logits(head(x[chosen])[:, 0], lesion[chosen].float(), pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def cross_validate(
    cells: Cells, patients: NDArray[Any], *, folds: int = FOLDS, steps: int = STEPS, seed: int = 0
) -> NDArray[np.float32]:
    """Return the logit of each cell by a head that saw none of its film's patient: (N, M).

    patients  (N,) whose film it is. Raises InputError where there are fewer patients than folds.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    names, whose = np.unique(patients, return_inverse=True)
    if len(names) < folds:
        raise InputError(f"{len(names)} patients are too few for {folds} folds; take a cache of more films")
    fold = rng.permutation(np.arange(len(names)) % folds)[whose]  # (N,)
    parts = [shown(cells, film, rng) for film in range(len(fold))]
    logits = np.zeros(cells.lesion.shape, np.float32)
    for number in range(folds):
        learned = [part for part, own in zip(parts, fold, strict=True) if own != number]
        x, lesion = (torch.from_numpy(np.concatenate(columns)) for columns in zip(*learned, strict=True))
        head = train_head(x, lesion, steps, generator)
        with torch.inference_mode():
            for film in np.flatnonzero(fold == number):
                logits[film] = head(torch.from_numpy(cells.features[film].astype(np.float32)))[:, 0].numpy()
    return logits


def film_scores(logits: NDArray[np.float32], inside: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Return the scores of films from the logits of their cells under the mask: name -> (N,)."""
    falling = [np.sort(own[under])[::-1] if under.any() else own for own, under in zip(logits, inside, strict=True)]
    top = [own[: max(1, round(TOP * len(own)))].mean() for own in falling]
    return {"max": np.array([own[0] for own in falling], float), "top1": np.array(top, float)}


def pixel_roc_auc(films: FilmSet, places: Sequence[int], logits: NDArray[np.float32], grid: Grid) -> list[float]:
    """Return the ROC-AUC of the pixels under the mask of each film with a marked lesion, by the interpolated logits."""
    to_pixels = resampling(grid, Grid(1, 0.0, films.size), torch.device("cpu"))
    figures = []
    for place in places:
        marked, mask = films.marked(place), films.part(slice(place, place + 1)).mask[0]
        assert marked is not None
        map = resample(torch.from_numpy(logits[place]).reshape(grid.side, grid.side), to_pixels).numpy()
        truth = marked[mask]
        figures.append(roc_auc(truth.astype(int), map[mask].astype(float)) if 0 < truth.sum() < truth.size else np.nan)
    return figures


def choose_films(
    cache: Cache, split: NDArray[Any], reported: str, pairs: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the rows of the films of the reported split, and of `pairs` abnormal and normal ones each of the others.

    Abnormal films without a marked lesion are left out. For "all" there are no others, and `pairs` bounds them.
    """
    label = cache.index["label"]
    classes = [(label == 1) & cache.has_truth, label == 0]
    if not all(own.any() for own in classes):
        raise InputError(
            f"{cache.path} has {classes[0].sum()} abnormal films with a marked lesion and {classes[1].sum()} normal "
            "ones; the head needs both: name a cache of films with masks"
        )
    shown = split == reported
    others = [rng.permutation(np.flatnonzero(own & ~shown))[:pairs] for own in classes]
    return np.sort(np.concatenate([*others, *(np.flatnonzero(own & shown) for own in classes)]))


def table(
    scores: dict[str, NDArray[np.float64]], pixels: NDArray[np.float64], known: dict[str, Any]
) -> list[list[str]]:
    """Return the lines of the table: all films, then each difficulty and each finding against all normal films."""
    label, patient = known["label"], known["patient"]
    groups = {"all": label >= 0}
    for column in ("difficulty", "finding"):
        names = sorted(set(known[column][label == 1].tolist()) - {""})
        groups |= {f"{column} {name}": (label == 0) | (known[column] == name) for name in names}
    lines = []
    for group, on in groups.items():
        figures = []
        for values in scores.values():
            low, high = interval(label[on], values[on], patient[on])
            figures.append(f"{roc_auc(label[on], values[on]):.3f} [{low:.3f}, {high:.3f}]")
        known_pixels = on & ~np.isnan(pixels)
        if known_pixels.any():
            mean, (low, high) = mean_interval(pixels[known_pixels], patient[known_pixels])
            figures.append(f"{mean:.3f} [{max(0.0, low):.3f}, {min(1.0, high):.3f}]")
        else:
            figures.append("")
        counts = [str(int((label[on] == 1).sum())), str(int((label[on] == 0).sum()))]
        lines.append([group, *counts, *(text.replace("0.", ".") for text in figures)])
    return lines


HEAD = ("films", "abnormal", "normal", "film ROC-AUC, max", "film ROC-AUC, top1", "pixel ROC-AUC, mean over films")


def load_backbone(arguments: argparse.Namespace, size: int, device: torch.device) -> Backbone:
    """Return the frozen network of `feature_mixture` with these weights."""
    config = FeatureMixtureConfig(weights=arguments.weights, blocks=arguments.blocks, stride=arguments.stride)
    if reason := FeatureMixture.check_size(config, size):
        raise InputError(f"feature_mixture {reason}; {size} were asked for")
    model = FeatureMixture(config, size)
    if file := FeatureMixture.weights_file(config):
        model.load_pretrained(file)
    return model.backbone.to(device).eval()


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--variant", default="full-he")
    parser.add_argument("--size", type=int, help="side of the films in pixels  [default: the cache's]")
    parser.add_argument("--weights", default="lite0", help="as those of feature_mixture")
    parser.add_argument("--blocks", default="2,4,10")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--split", default="test", choices=["test", "val", "train", "all"], help="films reported")
    parser.add_argument("--pairs", type=int, default=300, help="films of each class, from other splits, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    """Extract features, train the heads, print the table, add a line to results.jsonl."""
    arguments = parsed()
    cache = Cache(arguments.cache)
    size, device = arguments.size or cache.size, choose_device(arguments.device)
    index = cache.index
    split = assign_splits(index["patient"], index["label"], index["split"], seed=0)
    rng = np.random.default_rng(arguments.seed)
    everything = arguments.split == "all"
    rows = choose_films(cache, split, arguments.split, arguments.pairs, rng)
    films = FilmSet(cache, arguments.variant, rows, size)
    backbone = load_backbone(arguments, size, device)
    with tempfile.TemporaryDirectory() as folder:
        cells = extract(films, backbone, Path(folder), device)
        logits = cross_validate(cells, films.column("patient"), seed=arguments.seed)
    places = np.flatnonzero(np.full(len(rows), everything) | (split[rows] == arguments.split))
    pixels = np.full(len(rows), np.nan)
    marked = [int(place) for place in places if films.label[place] == 1]
    pixels[marked] = pixel_roc_auc(films, marked, logits, backbone.cells)
    scores = {name: values[places] for name, values in film_scores(logits, cells.inside).items()}
    known = {name: films.column(name)[places] for name in ("label", "patient", "finding", "difficulty")}
    lines = table(scores, pixels[places], known)
    told = {name: str(value) for name, value in vars(arguments).items() if name not in ("cache", "device")}
    told |= {"cache": cache.path.name, "size": size, "films": len(rows), "folds": FOLDS}
    record("supervised_head", command_line("supervised_head"), told, {line[0]: line[1:] for line in lines})
    print("\n".join(markdown(HEAD, lines)))


if __name__ == "__main__":
    main()
