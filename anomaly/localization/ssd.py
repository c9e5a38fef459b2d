"""Single-shot detector of hands and side markers: torchvision's SSDlite with MobileNetV3.

Liu et al. 2016; Sandler et al. 2018; Howard et al. 2019. Davletshina et al. 2020 localize hands with an SSD on
MobileNet, whose weights were not published.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, nms

from anomaly.data.batch import Batch
from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import HANDS, NMS_IOU, SCORE_FLOOR, Detection
from anomaly.models.base import Settings, Step
from anomaly.models.search_space import Choice, Range
from preprocessing.cache.schema import BOX_CLASSES

SCALES = (0.07, 0.25, 0.5, 0.65, 0.8, 0.95, 1.0)
"""Sides of the default boxes of each layer, as shares of the film's. The first two are smaller than torchvision's
(.2, .35): a side marker is .05 to .1 of a film."""
MOMENTUM = 0.1
"""Of batch normalization. torchvision's .03 suits hundreds of thousands of steps: in a short training the running
averages, with which boxes are detected, lag behind the weights."""
HARD_NEGATIVES = 16
"""Default boxes of a film without hands that enter the loss: those that look most like one."""


class SSDConfig(Settings):
    """Settings of the localizer of hands."""

    box_weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of box coordinates relative to that of classes."""
    turned: float = Field(default=0.3, ge=0, lt=1)
    """Share of the training films that are turned by quarters and lose their hand boxes, so that the network learns to
    tell upright films from turned ones."""


class SSD(LocalizationModel):
    """MobileNetV3 with SSDlite heads: films (N, 1, S, S) -> boxes of right and left hands and markers."""

    Config = SSDConfig
    presets: ClassVar = {
        "standard": {
            "epochs": 60,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "augmentation": "upright",
            "patience": 0,
        },
        "fast": {
            "size": 224,
            "epochs": 18,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "augmentation": "upright",
            "patience": 0,
        },
    }
    space: ClassVar = {
        "learning_rate": Range(3e-4, 5e-3, log=True),
        "beta1": Range(0.8, 0.95),
        "batch_size": Choice((8, 16, 32)),
    }
    targets = "boxes"
    recipe: ClassVar = {"hand": "none", "mask": "none", "size": 320}
    variants = ("crop",)
    thresholds = tuple(round(0.05 * i, 2) for i in range(2, 19))

    anchors: Tensor

    def __init__(self, config: SSDConfig, size: int) -> None:
        """Build the network for films of `size` x `size` pixels; its weights do not depend on the size."""
        super().__init__()
        self.config, self.size = config, size
        self.net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1 + len(BOX_CLASSES))
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
        self.net.anchor_generator = DefaultBoxGenerator([[2, 3]] * 6, scales=list(SCALES))
        sides = [size // 16]
        while len(sides) < 6:
            sides.append(-(-sides[-1] // 2))
        image = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
        anchors = self.net.anchor_generator(image, [torch.zeros(1, 1, side, side) for side in sides])[0]
        self.register_buffer("anchors", anchors, persistent=False)  # (A, 4) default boxes in pixels

    @classmethod
    def check_size(cls, config: SSDConfig, size: int) -> str | None:
        """Smaller films leave the last layers nothing to see."""
        return None if size >= 96 and size % 32 == 0 else "needs a film side that is a multiple of 32, from 96 on"

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"detector": [self.net]}

    def _features(self, film: Tensor) -> list[Tensor]:
        return list(self.net.backbone((film * 2 - 1).expand(-1, 3, -1, -1)).values())

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets to the default boxes and logits of the classes: (N, 1, S, S) -> (N, A, 4), (N, A, 5)."""
        output = self.net.head(self._features(film))
        return output["bbox_regression"].float(), output["cls_logits"].float()

    def randomly_turned(self, batch: Batch) -> Batch:
        """Return the batch with a share of its films turned by quarters; these have their markers' boxes alone."""
        assert batch.boxes is not None
        film, boxes = batch.film, batch.boxes.clone()
        turns = torch.randint(1, 4, (len(film),), device=film.device)
        turns[torch.rand(len(film), device=film.device) >= self.config.turned] = 0
        film = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(film, turns, strict=True)])
        for rows, k in zip(boxes, turns, strict=True):  # (K, 5)
            for _ in range(int(k)):  # a quarter turn takes (x, y) to (y, S - x)
                x0, y0, x1, y1 = rows[:, :4].clone().unbind(dim=1)
                rows[:, :4] = torch.stack([y0, self.size - x1, y1, self.size - x0], dim=1)
            if k:
                rows[rows[:, 4] <= HANDS] = 0
        return Batch(film.contiguous(memory_format=torch.channels_last), batch.mask, batch.label, boxes=boxes)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the terms of SSD's loss, scalars: smooth L1 of coordinates, and cross-entropy with hard negative
        mining, as torchvision computes them (Liu et al. 2016, section 2.2).
        """
        assert batch.boxes is not None
        offsets, logits = self(batch.film)
        targets, matched = [], []
        for boxes in batch.boxes:  # (K, 5)
            boxes = boxes[boxes[:, 4] > 0]
            targets.append({"boxes": boxes[:, :4], "labels": boxes[:, 4].long()})
            unmatched = torch.full((len(self.anchors),), -1, dtype=torch.int64, device=offsets.device)
            matched.append(self.net.proposal_matcher(box_iou(boxes[:, :4], self.anchors)) if len(boxes) else unmatched)
        losses: dict[str, Tensor] = self.net.compute_loss(
            targets, {"bbox_regression": offsets, "cls_logits": logits}, [self.anchors] * len(targets), matched
        )
        classes = losses["classification"]
        handless = ~((batch.boxes[..., 4] > 0) & (batch.boxes[..., 4] <= HANDS)).any(dim=1)  # (N,)
        if handless.any():
            # torchvision takes three negatives per positive: it would learn nothing from a film without hands.
            entropy = -logits[handless].log_softmax(dim=-1)[..., 0]  # (n, A)
            negative = torch.stack([match < 0 for match, chosen in zip(matched, handless, strict=True) if chosen])
            hardest = (entropy * negative).topk(HARD_NEGATIVES, dim=1).values
            classes = classes + hardest.mean() * handless.float().mean()
        return losses["bbox_regression"] * self.config.box_weight, classes

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """One step down the sum of both terms."""
        boxes, classes = self._losses(self.randomly_turned(batch) if self.config.turned else batch)
        yield Step("detector", boxes=boxes, classes=classes)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the loss of each film: (N,)."""
        assert batch.boxes is not None
        single_films = (
            Batch(batch.film[i : i + 1], batch.mask[i : i + 1], batch.label[i : i + 1], boxes=batch.boxes[i : i + 1])
            for i in range(len(batch.film))
        )
        return torch.stack([torch.stack(self._losses(film)).sum() for film in single_films])

    def detect(self, batch: Batch) -> list[Detection]:
        """Return hands and markers, each suppressed among themselves whichever their side."""
        offsets, logits = self(batch.film)
        detections = []
        for offset, probabilities in zip(offsets, logits.softmax(dim=-1)[..., 1:], strict=True):  # (A, 4), (A, 4)
            boxes = self.net.box_coder.decode_single(offset, self.anchors).clamp(0, self.size)
            kept = []
            for first, last in ((0, HANDS), (HANDS, len(BOX_CLASSES))):
                score, side = probabilities[:, first:last].max(dim=1)
                rows = torch.cat([boxes, (side + first + 1).float()[:, None], score[:, None]], dim=1)  # (A, 6)
                rows = rows[score > SCORE_FLOOR]
                kept.append(rows[nms(rows[:, :4], rows[:, 5], NMS_IOU)])
            rows = torch.cat(kept)
            by_score = rows[rows[:, 5].argsort(descending=True, stable=True)].cpu().numpy()
            detections.append(Detection(by_score[:, :5].astype(np.float32), by_score[:, 5].astype(np.float32)))
        return detections
