"""Settings of feature_mixture compared in seconds: films pass through the network once, their features are kept.

Features are kept in `CACHE.features/` beside the cache, float16, one memory-mapped file for each set of films, network,
blocks and levels, named by a hash of them all; the files that were used longest ago are removed beyond `--limit`. With
each `--set`, fitting and scoring are those of the model. Figures of `val` are to choose by, those of `test` to report.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.data.batch import batches
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.ranking import roc_auc
from anomaly.formatting import markdown
from anomaly.models.feature_mixture import FeatureMixture, FeatureMixtureConfig, pool
from anomaly.nn.backbone import channel_count
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import Prepared, prepare
from preprocessing import InputError

CPU = torch.device("cpu")
REUSED = ("weights", "backbone", "stride", "enlarge", "levels")
"""Settings that features depend on, beside the blocks: the same for all that are compared."""


@dataclass(frozen=True)
class KeptFeatures:
    """Features of films, read from a file when they are asked for; the cells that `model` wants of them."""

    model: FeatureMixture
    features: NDArray[np.float16]  # (n, G², C) of all kept blocks
    inside: NDArray[np.bool_]  # (n, G, G)
    columns: NDArray[np.int64]  # of the model's blocks among the C
    places: NDArray[np.int64]  # of the films among the n

    @property
    def films(self) -> int:
        """How many films there are."""
        return len(self.places)

    def __iter__(self) -> Iterator[Tensor]:
        for place in self.places:
            features = torch.from_numpy(self.features[place][:, self.columns].astype(np.float32))
            yield self.model.gather(features, torch.from_numpy(self.inside[place]))

    def evenly(self, count: int) -> "KeptFeatures":
        """Return those of `count` films taken evenly, or of all."""
        chosen = np.linspace(0, self.films - 1, min(count, self.films)).round().astype(np.int64)
        return KeptFeatures(self.model, self.features, self.inside, self.columns, self.places[chosen])


def keep(prepared: Prepared, films: FilmSet, limit: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return the features of all cells of `films`, (n, G², C), and which cells lie under the mask, (n, G, G): from
    their files, or else computed and written there; beyond `limit` bytes in the folder the oldest files go.
    """
    config = cast("FeatureMixtureConfig", prepared.model_config)
    weights = prepared.config.weights.sha256 if prepared.config.weights else "none"
    settings = {name: str(getattr(config, name)) for name in REUSED[1:]}
    what = [films.cache.content_hash, films.variant, films.size, weights, config.network, config.block_list, settings]
    name = hashlib.sha256(json.dumps([*what, films.rows.tolist()]).encode()).hexdigest()[:16]
    folder = films.cache.path.with_suffix(".features")
    paths = [folder / f"{name}.{part}.npy" for part in ("features", "inside")]
    if not all(path.is_file() for path in paths):
        model = _model(prepared)
        cells = model.backbone.cells.side
        shape = (len(films), cells**2, channel_count(config.network, config.block_list))
        _make_room(folder, limit, needed=2 * int(np.prod(shape)))
        partial = [path.with_suffix(".partial") for path in paths]
        features = np.lib.format.open_memmap(partial[0], "w+", np.float16, shape)
        inside = np.lib.format.open_memmap(partial[1], "w+", np.bool_, (len(films), cells, cells))
        place = 0
        with torch.inference_mode():
            for batch in batches(films, CPU):
                for own, mask in zip(model.features(model.levels(batch)), batch.mask, strict=True):
                    features[place], inside[place] = own.numpy(), model.inside(mask).numpy()
                    place += 1
        features.flush()
        inside.flush()
        for old, new in zip(partial, paths, strict=True):
            old.replace(new)
    for path in paths:
        path.touch()
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1])


def _make_room(folder: Path, limit: int, needed: int) -> None:
    """Remove the files that were used longest ago until `needed` bytes more stay within `limit`."""
    if needed > limit:
        raise InputError(f"the features take {needed / 1e9:.1f} GB: raise --limit, or take fewer blocks or films")
    folder.mkdir(exist_ok=True)
    files = sorted(folder.glob("*.*"), key=lambda path: path.stat().st_mtime)
    while files and sum(path.stat().st_size for path in files) + needed > limit:
        files.pop(0).unlink()


def _model(prepared: Prepared) -> FeatureMixture:
    torch.manual_seed(prepared.plan.seed)
    model = FeatureMixture(cast("FeatureMixtureConfig", prepared.model_config), prepared.config.size)
    if prepared.config.weights:
        model.load_pretrained(Path(prepared.config.weights.file))
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def compare(arguments: argparse.Namespace) -> list[list[str]]:
    """Return a row for each setting: ROC-AUC of every score on val and test, and the seconds that it took."""
    shared = [*arguments.shared, f"blocks={arguments.blocks}"]
    superset = _prepared(arguments, shared)
    kept = cast("FeatureMixtureConfig", superset.model_config).block_list
    label = superset.cache.index["label"]
    rows = [
        np.flatnonzero((superset.split == split) & ((label == 0) if split == "train" else (label >= 0)))
        for split in ("train", "val", "test")
    ]
    films = FilmSet(superset.cache, superset.config.variant, np.concatenate(rows), superset.config.size)
    start = time.monotonic()
    features, inside = keep(superset, films, round(arguments.limit * 1e9))
    print(f"features of {len(films)} films: {time.monotonic() - start:.1f} s", flush=True)
    ends = np.cumsum([0, *map(len, rows)])
    places = [np.arange(first, last) for first, last in pairwise(ends)]
    table = []
    for text in arguments.settings:
        start = time.monotonic()
        prepared = _prepared(arguments, [*shared, *text.split()])
        config = cast("FeatureMixtureConfig", prepared.model_config)
        if missing := set(config.block_list) - set(kept):
            raise InputError(f"--set {text!r}: no features of blocks {missing} are kept; name all with --blocks")
        model = _model(prepared)
        offsets = {block: channel_count(config.network, kept[:index]) for index, block in enumerate(kept)}
        widths = {block: channel_count(config.network, (block,)) for block in kept}
        columns = np.concatenate([offsets[block] + np.arange(widths[block]) for block in config.block_list])
        train, *others = (KeptFeatures(model, features, inside, columns, own) for own in places)
        with torch.inference_mode():
            model.fit_cells(train)
            figures = [_figures(model, own, films.label) for own in others]
        table.append([text or "(defaults)", *figures[0], *figures[1], f"{time.monotonic() - start:.1f}"])
        print(" | ".join(table[-1]), flush=True)
    return table


def _figures(model: FeatureMixture, films: KeptFeatures, label: NDArray[np.int8]) -> list[str]:
    scores = [pool(model.score_cells(cells)) for cells in films]
    truth = label[films.places]
    return [f"{roc_auc(truth, np.array([float(own[name]) for own in scores])):.3f}" for name in model.score_names]


def _prepared(arguments: argparse.Namespace, settings: Sequence[str]) -> Prepared:
    plan = Plan(
        "feature_mixture", arguments.cache, arguments.variant, settings=tuple(settings), seed=arguments.seed,
        where=tuple(arguments.where), device="cpu",
    )  # fmt: skip
    return prepare(plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--variant")
    parser.add_argument("--where", nargs="*", default=[], help="only such films, as of train --where")
    parser.add_argument("--blocks", default="2,4,10,14", help="all blocks that are compared")
    parser.add_argument("--shared", nargs="*", default=[], help=f"settings of all: {', '.join(REUSED)}, size")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="'blocks=4,10 components=1200'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=8.0, help="gigabytes that features may take on the disk")
    arguments = parser.parse_args()
    arguments.settings = arguments.settings or [""]
    table = compare(arguments)
    names = [f"{split} {name}" for split in ("val", "test") for name in FeatureMixture.score_names]
    print("\n".join(markdown(["settings", *names, "s"], table)))


if __name__ == "__main__":
    main()
