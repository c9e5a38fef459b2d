"""What each model is for: what it finds, what it costs, and what it was measured to give.

Figures are film ROC-AUCs of docs/results.md, where their intervals, settings and commands stand: on children's chests
(ZhangLab, `test`), and on the obvious lesions of the built-in SYNTHETIC hands, of revision 2 of the drawing for
feature_mixture, of revision 1 for the others. Costs are of two CPU cores. Imports nothing heavy: `anomaly models`
prints this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Finds = Literal["diffuse", "focal", "both", "labelled"]


@dataclass(frozen=True)
class Measured:
    """One film ROC-AUC."""

    roc_auc: float
    score: str
    setting: str  # preset or settings, where they are not the default ones


@dataclass(frozen=True)
class Profile:
    """What a model is for."""

    finds: Finds  # diffuse changes, focal lesions, both, or what labels say
    cost: str
    chest: Measured | None = None
    obvious: Measured | None = None


def _ms(milliseconds: int, side: int) -> str:
    return f"{milliseconds} ms a film and epoch, {side} px"


PROFILES: Mapping[str, Profile] = {
    "alphagan": Profile(
        "diffuse", _ms(168, 128), Measured(0.904, "atypicality", "64 px"), Measured(0.495, "mse", "64 px")
    ),
    "bigan": Profile(
        "diffuse", _ms(141, 128), Measured(0.917, "atypicality", "64 px"), Measured(0.496, "mse", "64 px")
    ),
    "cae": Profile(
        "diffuse",
        _ms(12, 128),
        Measured(0.943, "atypicality", "64 px, code_channels=4"),
        Measured(0.532, "mse", "64 px"),
    ),
    "classifier": Profile("labelled", "by its network", Measured(0.999, "probability", "mura"), None),
    "contrast_density": Profile(
        "diffuse",
        "20 ms a film, once",
        Measured(0.964, "atypicality", "64 px"),
        Measured(0.409, "atypicality", "64 px"),
    ),
    "dcgan": Profile(
        "diffuse", _ms(167, 512), Measured(0.860, "discriminator", "64 px"), Measured(0.614, "discriminator", "64 px")
    ),
    "feature_mixture": Profile(
        "both",
        "35 to 400 ms a film, once, 224 px",
        Measured(0.986, "top50", "diffuse"),
        Measured(0.905, "max", "focal"),
    ),
    "synthetic": Profile("focal", _ms(215, 448)),
    "vae": Profile("diffuse", _ms(7, 128), Measured(0.936, "atypicality", "64 px"), Measured(0.513, "mse", "64 px")),
}
"""By the name of the model; models of other packages have none."""
