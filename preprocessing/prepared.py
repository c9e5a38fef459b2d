"""What a recipe makes of a film."""

from dataclasses import dataclass

from preprocessing import steps
from preprocessing.crop import Box4
from preprocessing.nets import Side


@dataclass(frozen=True)
class Prepared:
    """What a recipe makes of one film, or of one of the two hands on it.

    films       variant -> (S, S) uint8 | uint16, levels as told above, 0 outside the stage's mask
    masks       stage -> (S, S) bool, of the stages made: raw where the film is, crop where the crop lies on the film,
                full the foreground; all of them within the exposed field
    matrices    "raw", "crop" -> (2, 3) float64, film (x, y) -> (x, y) here, pixel centres; full shares crop's
    carrier     (4, 2) float32 corners (x, y) in the film, with square pixels, or None
    box         the crop (x0, y0, x1, y1) in pixels of the upright carrier as turned, of the film where there is no
                carrier, with square pixels; or None
    frame       where the crop lies in the stages crop and full: x0, y0, x1, y1, edges; beside it is padding
    inverted    whether the film had to be inverted
    fallbacks   what found nothing: "carrier", so the whole film was kept; "hand", so the whole carrier was; "mask", so
                the whole crop is the foreground; "polarity", so the film was not turned round; "exposed field", of
                which nothing lies in the crop, so all of it counts; "localizer" or "segmenter", so the classical step
                was asked instead
    grey        stage -> mean and standard deviation of its film under its mask before the levels were spread, as shares
                of the greatest level that the film's depth allows: how bright and how rich in contrast it was exposed
    anomaly     "raw", "crop" -> (S, S) bool, the pixel truth carried along, or None where none was given
    side        of the body that the hand is of, where a localizer said so
    hand        0 the film's only hand, or the whole film; 1, 2 of two, from left to right on the upright film
    turns       quarter turns counter-clockwise by which the carrier was turned upright, 0 to 3
    markers     how many side markers were blanked in the crop
    """

    films: dict[str, steps.Pixels]
    masks: dict[str, steps.Mask]
    matrices: dict[str, steps.Matrix]
    carrier: steps.Corners | None
    box: Box4 | None
    frame: Box4
    inverted: bool
    fallbacks: tuple[str, ...]
    grey: dict[str, tuple[float, float]]
    anomaly: dict[str, steps.Mask] | None
    side: Side = ""
    hand: int = 0
    turns: int = 0
    markers: int = 0
