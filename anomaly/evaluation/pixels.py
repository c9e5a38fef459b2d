"""How well anomaly maps find marked lesions, pixel by pixel."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.histogram import StreamingHistogram
from anomaly.evaluation.ranking import finite_or_none, weighted_average_precision, weighted_roc_auc


def pixel_roc_auc(
    maps: Iterable[tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]],
) -> dict[str, float | int | None]:
    """How well anomaly maps tell abnormal pixels from normal ones, over films that come one at a time.

    maps  (map (H, W) finite >= 0, truth (H, W) bool, mask (H, W) bool) per abnormal film; sizes may differ; pixels
    outside the mask do not count. Values are told apart to .025 % (see `StreamingHistogram`); closer ones
    count as tied. Memory does not grow with the films.

    Returns "roc_auc" and "ap" of all pixels together (large films and strong maps weigh more), "film_roc_auc" the mean
    over films that have pixels of both kinds, "n_films" how many those are, "n_pixels", and "prevalence" of abnormal
    pixels, the floor of "ap".
    """
    normal, abnormal = StreamingHistogram(), StreamingHistogram()
    per_film = []
    for values, truth, mask in maps:
        if not values.shape == truth.shape == mask.shape:
            raise ValueError(f"map {values.shape}, truth {truth.shape} and mask {mask.shape} must have one shape")
        inside, outside = StreamingHistogram(), StreamingHistogram()
        inside.add(values[truth & mask])
        outside.add(values[~truth & mask])
        per_film.append(_tally_figures(inside, outside)[0])
        abnormal.counts += inside.counts
        normal.counts += outside.counts
    area, precision = _tally_figures(abnormal, normal)
    told = [figure for figure in per_film if not math.isnan(figure)]
    pixels, lesions = int((normal.counts + abnormal.counts).sum()), int(abnormal.counts.sum())
    return {
        "roc_auc": finite_or_none(area),
        "ap": finite_or_none(precision),
        "film_roc_auc": finite_or_none(float(np.mean(told))) if told else None,
        "n_films": len(told),
        "n_pixels": pixels,
        "prevalence": lesions / pixels if pixels else None,
    }


def _tally_figures(abnormal: StreamingHistogram, normal: StreamingHistogram) -> tuple[float, float]:
    """ROC-AUC and AP of two tallies."""
    seen = np.flatnonzero(abnormal.counts + normal.counts)
    counts = [tally.counts[seen].astype(np.float64)[None] for tally in (abnormal, normal)]  # (1, G) each
    return float(weighted_roc_auc(*counts)[0]), float(weighted_average_precision(*counts)[0])
