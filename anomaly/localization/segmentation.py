"""What the networks that segment the foreground share: Dice loss, warnings, probabilities."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from anomaly.data.batch import Batch
from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import Detection
from anomaly.models.base import Step
from anomaly.nn.losses import masked_mean, soft_dice

Loss = Literal["dice", "dice+bce"]
COLLAPSED = 0.1
"""A network that detects less than this share of the annotated foreground has collapsed."""


class SegmentationModel(LocalizationModel):
    """A network that gives each pixel its probability of being foreground."""

    targets = "masks"
    recipe: ClassVar = {"size": 128}
    variants = ("crop", "full")
    thresholds = tuple(round(0.05 * i, 2) for i in range(4, 17))
    low_precision = True

    def __init__(self, loss: Loss) -> None:
        """Take the loss: `dice`, or `dice+bce`, its sum with the binary cross-entropy."""
        super().__init__()
        self.loss = loss

    @abstractmethod
    def forward(self, film: Tensor) -> Tensor:
        """Return logits: (N, 1, S, S) -> (N, 1, S, S), float32."""

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """One step down the loss; watched: the predicted and the annotated share of foreground."""
        assert batch.foreground is not None
        logits, target = self(batch.film), batch.foreground.float()
        predicted = logits.sigmoid()
        terms = {"dice": soft_dice(predicted, target, batch.mask).mean()}
        if self.loss == "dice+bce":
            entropy = binary_cross_entropy_with_logits(logits, target, reduction="none")
            terms["bce"] = masked_mean(entropy, batch.mask).mean()
        watched = {
            "foreground_predicted": (predicted * batch.mask).mean(),
            "foreground_annotated": (target * batch.mask).mean(),
        }
        yield Step("segmenter", watch=watched, **terms)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the Dice loss whichever loss is trained on, so that it can be compared between settings: (N,)."""
        assert batch.foreground is not None
        return soft_dice(self(batch.film).sigmoid(), batch.foreground.float(), batch.mask)

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say when the network predicts no foreground any more: with the Dice loss alone it may not recover."""
        predicted, annotated = figures["foreground_predicted"], figures["foreground_annotated"]
        if predicted < COLLAPSED * annotated:
            remedy = "lower learning_rate, or take loss=dice+bce" if self.loss == "dice" else "lower learning_rate"
            share = predicted / max(annotated, 1e-9)
            return [f"hardly any foreground is predicted ({share:.1%} of the annotated area): {remedy}"]
        return []

    def detect(self, batch: Batch) -> list[Detection]:
        """Return each pixel's probability of being foreground, 0 off the film's mask."""
        probabilities = (self(batch.film).sigmoid() * batch.mask).cpu().numpy()[:, 0]
        return [Detection(foreground=probability) for probability in probabilities]
