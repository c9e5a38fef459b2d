"""How well anomaly maps find marked lesions, pixel by pixel."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.figures import PixelFigures
from anomaly.evaluation.histogram import StreamingHistogram
from anomaly.evaluation.ranking import finite_or_none, weighted_average_precision, weighted_roc_auc


class PixelRanking:
    """How well anomaly maps separate abnormal pixels from normal ones, over abnormal films added one at a time.

    Values that differ by less than .025 % count as tied (see `StreamingHistogram`). Memory does not grow with the
    films.
    """

    def __init__(self) -> None:
        self._normal, self._abnormal = StreamingHistogram(), StreamingHistogram()
        self._film_roc_aucs: list[float] = []  # of films that have pixels of both kinds

    def add(self, values: NDArray[Any], ground_truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> None:
        """Count a film's pixels: map (H, W) finite >= 0, where it is abnormal (H, W), which pixels count (H, W).

        Raises ValueError where the shapes differ or a value of the map is not finite or is negative.
        """
        if not values.shape == ground_truth.shape == mask.shape:
            raise ValueError(
                f"map {values.shape}, ground truth {ground_truth.shape} and mask {mask.shape} must have one shape"
            )
        abnormal, normal = StreamingHistogram(), StreamingHistogram()
        abnormal.add(values[ground_truth & mask])
        normal.add(values[~ground_truth & mask])
        roc_auc, _ = _ranking(abnormal, normal)
        if not math.isnan(roc_auc):
            self._film_roc_aucs.append(roc_auc)
        self._abnormal.counts += abnormal.counts
        self._normal.counts += normal.counts

    def figures(self) -> PixelFigures:
        """The figures of all films added so far."""
        roc_auc, ap = _ranking(self._abnormal, self._normal)
        abnormal = int(self._abnormal.counts.sum())
        pixels = abnormal + int(self._normal.counts.sum())
        return PixelFigures(
            roc_auc=finite_or_none(roc_auc),
            ap=finite_or_none(ap),
            film_roc_auc=float(np.mean(self._film_roc_aucs)) if self._film_roc_aucs else None,
            n_films=len(self._film_roc_aucs),
            n_pixels=pixels,
            prevalence=abnormal / pixels if pixels else None,
        )


def _ranking(abnormal: StreamingHistogram, normal: StreamingHistogram) -> tuple[float, float]:
    """ROC-AUC and average precision of the values counted in two histograms; nan where one is empty."""
    seen = np.flatnonzero(abnormal.counts + normal.counts)
    counts = [histogram.counts[seen].astype(np.float64)[None] for histogram in (abnormal, normal)]  # (1, G) each
    return float(weighted_roc_auc(*counts)[0]), float(weighted_average_precision(*counts)[0])
