"""What validation films say: thresholds from which films are flagged, and the one scale of all maps."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from anomaly.data.batch import as_batch
from anomaly.data.dataset import Films
from anomaly.evaluation.classification import youden
from anomaly.evaluation.cohort import Groups, group
from anomaly.evaluation.figures import POOLINGS
from anomaly.evaluation.heatmap_scale import map_scale
from anomaly.evaluation.predict import View, maps, score
from anomaly.models.base import Detector
from anomaly.runs import Run

LEVELS = ("film", "study", "patient")
QUANTILE = 0.95
"""A threshold flags the 5 % of validation normals that score highest; a supervised model's is `youden`'s."""


@dataclass(frozen=True)
class Calibration:
    """What validation films say: from where a film, study or patient is flagged, and where a map's colors end."""

    thresholds: dict[str, dict[str, dict[str, float]]]  # mean | max over films -> level -> score -> threshold
    map_scale: float | None  # in the unit of the map; None where the model draws none
    quantile: float
    films: int  # validation films the thresholds rest on
    rule: Literal["quantile", "youden"] = "quantile"  # of validation normals, or on labelled validation films

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def calibrate(model: Detector, view: View, device: torch.device) -> Calibration:
    """Return thresholds and map scale from `view`: the validation normals, or for a supervised model all labelled ones.

    A map's scale comes from the normal ones in either case.
    """
    scores = score(model, view, device)
    label = view.column("label")

    def threshold(name: str, groups: Groups) -> float:
        if not model.supervised:
            return float(np.quantile(groups.scores[name], QUANTILE))
        if {0, 1} <= set(groups.labels.tolist()):
            return youden(groups.labels, groups.scores[name])
        return youden(label, scores[name])  # every patient has an abnormal film: what films say is all there is

    units = {"film": np.arange(len(label)), "study": view.column("study"), "patient": view.column("patient")}
    thresholds: dict[str, dict[str, dict[str, float]]] = {
        how: {
            level: {name: threshold(name, groups) for name in scores}
            for level, ids in units.items()
            for groups in [group(ids, label, scores, how)]
        }
        for how in POOLINGS
    }
    normals = View(view.cache, view.variant, view.rows[label == 0], view.size)
    with torch.inference_mode():
        first = next(normals.chunks())[1]
        draws = model.anomaly_map(as_batch(Films(first.film[:1], first.mask[:1], first.label[:1]), device)) is not None
    scale = map_scale((one, mask) for _, one, _, mask in maps(model, normals, device)) if draws else None
    return Calibration(thresholds, scale, QUANTILE, len(label), "youden" if model.supervised else "quantile")


def read_calibration(run: Run) -> Calibration:
    """Return the calibration kept with a run."""
    return Calibration(**run.read_json("calibration.json"))
