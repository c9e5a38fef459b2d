"""A trained detector over films: the one pass that every score, map and picture comes from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.batch import as_batch
from anomaly.data.dataset import Films, chunks
from anomaly.evaluation.heatmap_scale import smooth
from anomaly.models.base import Detector
from preprocessing import InputError
from preprocessing.schema import STAGES, Cache, stage_of

SMOOTHING = 5 / 512
"""Standard deviation of the map's Gaussian as a share of the film's side: the paper's 5 pixels at 512."""


@dataclass(frozen=True)
class View:
    """Which films a model looks at: rows of one variant of a cache, at one size."""

    cache: Cache
    variant: str
    rows: NDArray[np.int64]
    size: int

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], Films]]:
        """Yield `(rows, films)`, about four million pixels at a time."""
        return chunks(self.cache, self.variant, self.rows, self.size, max(1, min(64, 2**22 // self.size**2)))

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the index for the rows."""
        column: NDArray[Any] = self.cache.index[name][self.rows]
        return column

    def trivial_scores(self) -> dict[str, NDArray[np.float64]]:
        """Return what a net has to beat: mean grey level and minus standard deviation, under the mask, name -> (n,).

        They are those of the film before its levels were spread or equalized, which would make them all alike.
        """
        grey = self.column("grey")[:, STAGES.index(stage_of(self.variant))]  # (n, 2)
        return {"mean_grey": grey[:, 0], "minus_std": -grey[:, 1]}


@torch.inference_mode()
def score(
    model: Detector, view: View, device: torch.device, on_films: Callable[[int], None] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return every score of the model and of the trivial detectors: name -> (n,) float64, in the view's order."""
    # Arrays of their whole length from the start: a small one kept from each pass would come to lie between the large
    # ones that the pass frees, whose place then can't be used again, and memory would grow with the films.
    scores: dict[str, NDArray[np.float64]] = {}
    done = 0
    for rows, films in view.chunks():
        for name, values in model.scores(as_batch(films, device)).items():
            if name not in scores:
                scores[name] = np.empty(len(view.rows))
            scores[name][done : done + len(rows)] = values.cpu().numpy()
        done += len(rows)
        if on_films:
            on_films(len(rows))
    for name, found in scores.items():
        if not np.isfinite(found).all():
            worst = view.column("path")[~np.isfinite(found)][0]
            raise InputError(
                f"score {name} of {worst} is not finite; the training diverged: lower --set learning_rate="
            )
    return scores | view.trivial_scores()


@torch.inference_mode()
def maps(
    model: Detector, view: View, device: torch.device
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield (row, smoothed map (S, S), film (S, S) in [0, 1], mask (S, S)) for every film of the view.

    Raises InputError where the model draws no map.
    """
    for rows, films in view.chunks():
        drawn = model.anomaly_map(as_batch(films, device))
        if drawn is None:
            raise InputError("this model draws no heatmap: it scores a film as a whole; the cae, for one, draws them")
        raw = drawn.float().cpu().numpy()[:, 0]
        for row, one, film, mask in zip(rows, raw, films.unit(), films.mask, strict=True):
            yield int(row), smooth(one, mask, view.size * SMOOTHING), film, mask
