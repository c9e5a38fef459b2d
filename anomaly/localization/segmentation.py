"""What the nets that find the foreground share: Dice loss, warnings, probabilities."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from anomaly.data.batch import Batch
from anomaly.localization.base import Detection, LocalizationModel
from anomaly.models.base import Step
from anomaly.nn.losses import masked_mean, soft_dice

Loss = Literal["dice", "dice+bce"]
EMPTY = 0.1
"""A net that finds less than this share of the foreground there is has collapsed."""


class Segmenter(LocalizationModel):
    """A net that tells how likely each pixel is foreground."""

    learns = "masks"
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
        """One step down the loss; watched: the share of the film that is found, and that there is."""
        assert batch.foreground is not None
        logits, truth = self(batch.film), batch.foreground.float()
        found = logits.sigmoid()
        terms = {"dice": soft_dice(found, truth, batch.mask).mean()}
        if self.loss == "dice+bce":
            entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none")
            terms["bce"] = masked_mean(entropy, batch.mask).mean()
        watched = {"foreground_found": (found * batch.mask).mean(), "foreground_there": (truth * batch.mask).mean()}
        yield Step("segmenter", watch=watched, **terms)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the Dice loss, whatever is trained: it can be compared between settings."""
        assert batch.foreground is not None
        return soft_dice(self(batch.film).sigmoid(), batch.foreground.float(), batch.mask)

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say when the net finds no foreground any more: with pure Dice it can stay there."""
        found, there = figures["foreground_found"], figures["foreground_there"]
        if found < EMPTY * there:
            mend = "lower learning_rate, or take loss=dice+bce" if self.loss == "dice" else "lower learning_rate"
            return [f"hardly any foreground is found ({found / max(there, 1e-9):.1%} of what there is): {mend}"]
        return []

    def find(self, batch: Batch) -> list[Detection]:
        """Return how likely each pixel is foreground."""
        shares = (self(batch.film).sigmoid() * batch.mask).cpu().numpy()[:, 0]
        return [Detection(foreground=share) for share in shares]
