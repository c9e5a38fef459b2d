"""Detectors whose `predict` goes film by film, or by OpenCV or gradients, in the operations that ONNX has.

`anomaly.export.forms` has those of their parts. Each form has the detector's `predict`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad, softplus

from anomaly.data.batch import Batch
from anomaly.export.contrast_form import ContrastDensityForm
from anomaly.export.forms import FORMS, Forms
from anomaly.export.pullback import pullback
from anomaly.models.base import Prediction
from anomaly.models.classifier import Classifier
from anomaly.models.contrast_density import ContrastDensity
from anomaly.models.feature_mixture import HALF, TOP, FeatureMixture
from anomaly.models.synthetic import PEAK, Synthetic, inside_cells
from anomaly.nn.atypicality import cells
from anomaly.nn.backbone import resample, resampling
from anomaly.nn.filters import local_mean
from anomaly.nn.losses import masked_mean, topk_mean

CPU = torch.device("cpu")


class ClassifierForm(nn.Module):
    """`Classifier`, the gradient of its Grad-CAM written out."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.before, self.after = model.cam_parts()

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """`Classifier.predict`."""
        activation = self.before((batch.film - self.model.shift) / self.model.spread)
        outputs, pull = pullback(self.after, activation)
        logit = outputs[:, 0] if self.model.config.outputs == 1 else outputs[:, 1] - outputs[:, 0]
        weights = [[1.0]] if self.model.config.outputs == 1 else [[-1.0, 1.0]]
        gradient = pull(torch.ones_like(outputs) * torch.tensor(weights))
        cam = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1, keepdim=True).relu()
        fine = interpolate(cam, size=batch.film.shape[2:], mode="bilinear", align_corners=False)
        return Prediction({"probability": 1 / (1 + torch.exp(-logit.double()))}, fine * batch.mask)


class FeatureMixtureForm(nn.Module):
    """`FeatureMixture`: the cells of all films at once."""

    def __init__(self, model: FeatureMixture) -> None:
        super().__init__()
        self.model = model
        backbone, pixels = model.backbone, model.pixels
        grids = [grid for grid in backbone.maps.values() if grid != backbone.cells]
        self.aligned = {grid: resampling(grid, backbone.cells, CPU) for grid in grids}
        self.to_cells, self.to_pixels = resampling(pixels, backbone.cells, CPU), resampling(backbone.cells, pixels, CPU)
        self.floor = float(model.floor)

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """`FeatureMixture.predict`."""
        inside = self._inside(batch.mask)  # (N, G, G)
        features = self._features(self.model.levels(batch)).permute(0, 2, 3, 1).flatten(0, 2)  # (N G², C)
        under = inside.flatten().nonzero()[:, 0]
        scores = self.model.score_cells(features[under])  # (M,)
        cells = torch.zeros_like(inside.flatten(), dtype=scores.dtype).scatter(0, under, scores).view_as(inside)
        falling = torch.where(inside, cells, -torch.inf).flatten(1).sort(dim=1, descending=True).values
        count = inside.sum(dim=(1, 2)).double()
        rank = torch.arange(int(falling.shape[1]))
        pooled = {"max": falling[:, 0]}
        for name, share in TOP.items():
            taken = (count * share).round().clamp(min=1)[:, None]
            pooled[name] = (torch.where(rank < taken, falling.double(), 0).sum(dim=1) / taken[:, 0]).float()
        scores_of = {name: pooled[name] for name in self.model.score_names}
        return Prediction(scores_of, self._map(cells, inside, batch.mask) if maps else None)

    def _features(self, film: Tensor) -> Tensor:
        """`FeatureMixture.features`, averaged over neighbors: (N, 1, S, S) -> (N, C, G, G)."""
        config, backbone = self.model.config, self.model.backbone
        if config.enlarge > 1:
            film = interpolate(film, scale_factor=float(config.enlarge), mode="bilinear", align_corners=False)
        outputs = enumerate(backbone.network((film - backbone.shift) / backbone.spread))
        maps = [(backbone.maps[index], output) for index, output in outputs if index in backbone.maps]
        aligned = [resample(output, self.aligned[grid]) if grid in self.aligned else output for grid, output in maps]
        features = torch.cat(aligned, dim=1)
        width = config.neighborhood
        return features if width == 1 else avg_pool2d(features, width, 1, width // 2, count_include_pad=False)

    def _inside(self, mask: Tensor) -> Tensor:
        """`FeatureMixture.inside`: (N, 1, S, S) -> (N, G, G)."""
        share = resample(mask[:, 0].float(), self.to_cells)
        return share >= share.amax(dim=(1, 2), keepdim=True).clamp(max=0.5) - HALF

    def _map(self, cells: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
        radius = round(self.model.config.margin * self.model.size)
        off = pad((~mask).float(), [radius] * 4, value=1.0)
        inner = self._inside(max_pool2d(off, 2 * radius + 1, 1) == 0)
        grid = torch.where(inside & inner, (cells - self.floor).clamp(min=0), 0)
        weight = resample(inside.to(cells.dtype), self.to_pixels).clamp(min=1e-6)
        return (resample(grid, self.to_pixels) / weight)[:, None] * mask


class SyntheticForm(nn.Module):
    """`Synthetic`: the cells of all films at once."""

    def __init__(self, model: Synthetic) -> None:
        super().__init__()
        self.model = model

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """`Synthetic.predict`."""
        model, normals, mask = self.model, self.model.normals, batch.mask
        logits, features = model.passed(batch.film)
        inside = inside_cells(mask)  # (N, M)
        whitened = normals.whitening(features.flatten(0, 1))
        expected = normals.expected[normals.kinds(whitened)].view_as(inside)
        calibrated = softplus(logits - model.enlarged(expected)) * mask
        unusual = normals.mixture(whitened).view_as(inside).double()
        count = inside.sum(dim=1).double()
        most = torch.where(inside, unusual, -torch.inf).sort(dim=1, descending=True).values
        top = torch.arange(int(most.shape[1])) < (0.01 * count).ceil()[:, None]
        scores = {
            "peak": local_mean(calibrated, mask, model.size * PEAK).amax(dim=(1, 2, 3)),
            "top01": topk_mean(calibrated, mask, 0.001),
            "top1": topk_mean(calibrated, mask, 0.01),
            "mean": masked_mean(calibrated, mask),
            "atypicality": normals.atypicality(cells(logits, mask)),
            "mixture": (unusual * inside).sum(dim=1) / count,
            "mixture_top1": torch.where(top, most, 0).sum(dim=1) / (0.01 * count).ceil(),
        }
        return Prediction(scores, calibrated if maps else None)


DETECTOR_FORMS: Forms = FORMS | {
    Classifier: ClassifierForm,
    ContrastDensity: ContrastDensityForm,
    FeatureMixture: FeatureMixtureForm,
    Synthetic: SyntheticForm,
}
