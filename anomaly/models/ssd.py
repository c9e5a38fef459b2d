"""Single-shot detector of hands and side markers: torchvision's SSDlite with MobileNetV3.

Liu et al. 2016; Sandler et al. 2018; Howard et al. 2019. Davletshina et al. 2020 localise hands by an SSD with
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

from anomaly.detector import Batch, Choice, Range, Settings, Step
from anomaly.finder import HANDS, Finder, Found
from preprocessing.cache.schema import BOX_CLASSES

SCALES = (0.07, 0.25, 0.5, 0.65, 0.8, 0.95, 1.0)
"""Sides of the default boxes by layer, as shares of the film's. The first two are smaller than torchvision's (.2, .35):
a side marker is .05 to .1 of a film."""
MOMENTUM = 0.1
"""Of batch normalisation. torchvision's .03 is for trainings of hundreds of thousands of steps: in short ones the
running averages, by which finds are made, stay behind the weights."""
LEAST = 0.05
"""Less sure finds are not even looked at."""
OVERLAP = 0.45
"""Of two finds that overlap by more than this (IoU) the surer stays."""


HARDEST = 16
"""Default boxes of a film without hands that the loss looks at: those that most look like one."""


class SSDConfig(Settings):
    """Settings of the detector of hands."""

    box_weight: float = Field(default=1.0, gt=0)
    """Weight of where a box lies, in the loss, beside what it holds."""
    turned: float = Field(default=0.3, ge=0, lt=1)
    """Share of the training's films that are shown lying on a side or upside down, with no hands to find: so that an
    upright film can be told from a turned one."""


class SSD(Finder):
    """MobileNetV3 with SSDlite heads: films (N, 1, S, S) to boxes of two hands and two side markers."""

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
    learns = "boxes"
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
        shown = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
        anchors = self.net.anchor_generator(shown, [torch.zeros(1, 1, side, side) for side in sides])[0]
        self.register_buffer("anchors", anchors, persistent=False)  # (A, 4) the default boxes, pixels

    @classmethod
    def check_size(cls, config: SSDConfig, size: int) -> str | None:
        """The last layers see nothing of smaller films."""
        return None if size >= 96 and size % 32 == 0 else "needs a film side that is a multiple of 32, from 96 on"

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"detector": [self.net]}

    def _features(self, film: Tensor) -> list[Tensor]:
        return list(self.net.backbone((film * 2 - 1).expand(-1, 3, -1, -1)).values())

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets to the default boxes and logits of the classes: (N, 1, S, S) -> (N, A, 4), (N, A, 5)."""
        out = self.net.head(self._features(film))
        return out["bbox_regression"].float(), out["cls_logits"].float()

    def _some_turned(self, batch: Batch) -> Batch:
        """Turn some of the films by quarters, and take the hands off their boxes."""
        assert batch.boxes is not None
        film, boxes = batch.film, batch.boxes.clone()
        turns = torch.randint(1, 4, (len(film),), device=film.device)
        turns[torch.rand(len(film), device=film.device) >= self.config.turned] = 0
        film = torch.stack([one.rot90(int(k), (1, 2)) for one, k in zip(film, turns, strict=True)])
        for one, k in zip(boxes, turns, strict=True):  # (K, 5)
            for _ in range(int(k)):  # what was at x lies at height S - x, what was at height y at y
                x0, y0, x1, y1 = one[:, :4].clone().unbind(dim=1)
                one[:, :4] = torch.stack([y0, self.size - x1, y1, self.size - x0], dim=1)
            if k:
                one[one[:, 4] <= HANDS] = 0
        return Batch(film.contiguous(memory_format=torch.channels_last), batch.mask, batch.label, boxes=boxes)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the terms of SSD's loss (Liu et al. 2016, section 2.2): smooth L1 and cross-entropy with the hardest
        of the negatives, as torchvision computes them.
        """
        assert batch.boxes is not None
        offsets, logits = self(batch.film)
        targets, matched = [], []
        for boxes in batch.boxes:  # (K, 5)
            there = boxes[boxes[:, 4] > 0]
            targets.append({"boxes": there[:, :4], "labels": there[:, 4].long()})
            nothing = torch.full((len(self.anchors),), -1, dtype=torch.int64, device=offsets.device)
            matched.append(self.net.proposal_matcher(box_iou(there[:, :4], self.anchors)) if len(there) else nothing)
        losses: dict[str, Tensor] = self.net.compute_loss(
            targets, {"bbox_regression": offsets, "cls_logits": logits}, [self.anchors] * len(targets), matched
        )
        classes = losses["classification"]
        bare = ~((batch.boxes[..., 4] > 0) & (batch.boxes[..., 4] <= HANDS)).any(dim=1)  # (N,)
        if bare.any():
            # torchvision takes three negatives for each positive: of a film with no hands it would learn nothing.
            wrong = -logits[bare].log_softmax(dim=-1)[..., 0]  # (n, A)
            free = torch.stack([match < 0 for match, none in zip(matched, bare, strict=True) if none])
            classes = classes + (wrong * free).topk(HARDEST, dim=1).values.mean() * bare.float().mean()
        return losses["bbox_regression"] * self.config.box_weight, classes

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """One step down both terms."""
        boxes, classes = self._losses(self._some_turned(batch) if self.config.turned else batch)
        yield Step("detector", boxes=boxes, classes=classes)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the loss of each film."""
        assert batch.boxes is not None
        single = (
            Batch(batch.film[i : i + 1], batch.mask[i : i + 1], batch.label[i : i + 1], boxes=batch.boxes[i : i + 1])
            for i in range(len(batch.film))
        )
        return torch.stack([torch.stack(self._losses(one)).sum() for one in single])

    def find(self, batch: Batch) -> list[Found]:
        """Return hands and markers; of hands that overlap, whichever the side, the surer stays, of markers too."""
        offsets, logits = self(batch.film)
        found = []
        for offset, shares in zip(offsets, logits.softmax(dim=-1)[..., 1:], strict=True):  # (A, 4), (A, 4)
            boxes = self.net.box_coder.decode_single(offset, self.anchors).clamp(0, self.size)
            kept = []
            for first, last in ((0, HANDS), (HANDS, len(BOX_CLASSES))):
                score, kind = shares[:, first:last].max(dim=1)
                sure = score > LEAST
                some = torch.cat([boxes, (kind + first + 1).float()[:, None], score[:, None]], dim=1)[sure]
                kept.append(some[nms(some[:, :4], some[:, 5], OVERLAP)])
            rows = torch.cat(kept)
            surest = rows[rows[:, 5].argsort(descending=True, stable=True)].cpu().numpy()
            found.append(Found(surest[:, :5].astype(np.float32), surest[:, 5].astype(np.float32)))
        return found
