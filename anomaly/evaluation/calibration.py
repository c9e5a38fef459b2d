"""What validation films say: thresholds from which films are flagged, and the one scale of all maps.

They come from validation normals alone; the thresholds of a supervised model, which has seen labels anyway, from the
labelled validation films. No film of the test split moves them.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.classification import youden
from anomaly.evaluation.cohort import Groups, group
from anomaly.evaluation.figures import POOLINGS, Pooling, Unit
from anomaly.evaluation.heatmap_scale import scale_of
from anomaly.evaluation.histogram import StreamingHistogram
from anomaly.evaluation.predict import ScoreColumns, predict
from anomaly.models.base import Detector
from anomaly.runs import Record, Run

QUANTILE = 0.95
"""A threshold flags the 5 % of validation normals that score highest; a supervised model's is `youden`'s."""


class Calibration(Record):
    """calibration.json of a detector's run."""

    thresholds: dict[Pooling, dict[Unit, dict[str, float]]]
    """How films are pooled -> unit -> score -> the value from which films, studies or patients are flagged."""
    map_scale: float | None
    """Where a map's colors end, in the unit of the map; None where the model draws none."""
    quantile: float
    """Share of validation normals that lie below a threshold."""
    films: int
    """Validation films the thresholds rest on."""
    patients: int = 0
    """Normal patients that p-values rest on."""
    rule: Literal["quantile", "youden"] = "quantile"
    """How thresholds were found: as a quantile of validation normals, or on labelled validation films."""


def calibrate(model: Detector, films: FilmSet, device: torch.device) -> Calibration:
    """Return thresholds and map scale from validation films: normal ones, or all labelled ones for a supervised model.

    A map's scale comes from the normal ones in either case. One pass over the films.
    """
    supervised, label = model.targets == "labels", films.label
    columns, histogram = ScoreColumns(films), StreamingHistogram()
    draws_maps = False
    for predicted in predict(model, films, device, maps=True):
        columns.add(predicted)
        draws_maps = predicted.maps is not None
        for index in np.flatnonzero(predicted.films.label == 0) if draws_maps else ():
            histogram.add(predicted.smoothed_map(int(index))[predicted.films.mask[index]])
    scores = columns.finish()

    def threshold(name: str, groups: Groups) -> float:
        if not supervised:
            return float(np.quantile(groups.scores[name], QUANTILE))
        if {0, 1} <= set(groups.labels.tolist()):
            return youden(groups.labels, groups.scores[name])
        return youden(label, scores[name])  # every patient has an abnormal film: only films tell the classes apart

    units: dict[Unit, NDArray[np.generic]] = {
        "film": np.arange(len(label)),
        "study": films.column("study"),
        "patient": films.column("patient"),
    }
    return Calibration(
        thresholds={
            pooling: {
                unit: {name: threshold(name, groups) for name in scores}
                for unit, ids in units.items()
                for groups in [group(ids, label, scores, pooling)]
            }
            for pooling in POOLINGS
        },
        map_scale=scale_of(histogram) if draws_maps else None,
        quantile=QUANTILE,
        films=len(label),
        rule="youden" if supervised else "quantile",
    )


def read_calibration(run: Run) -> Calibration:
    """Return the calibration kept with a run."""
    return run.read("calibration.json", Calibration)
