"""The trained nets that prepare films in place of classical steps, and what they say."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from preprocessing import steps
from preprocessing.crop import Box4

Side = Literal["left", "right", ""]


@dataclass(frozen=True)
class Localization:
    """What a localizer found on the carrier.

    hands     side and box (x0, y0, x1, y1) of each hand, best first: two are taken; in pixels of the film as turned,
              whose edges are at 0 and its width or height
    markers   side and box of each side marker, likewise
    turns     quarter turns counter-clockwise, as of np.rot90(film, turns), that bring the film upright
    """

    hands: tuple[tuple[Side, Box4], ...]
    markers: tuple[tuple[Side, Box4], ...] = ()
    turns: int = 0


Localizer = Callable[[steps.Pixels], Localization | None]  # None: nothing was found
Segmenter = Callable[[steps.Pixels], steps.Mask | None]


@dataclass(frozen=True)
class Nets:
    """The trained nets that prepare films, in place of classical steps.

    localizer   upright carrier (h, w) -> Localization, or None: asked before the classical localization, unless nothing
                but raw films is made
    segmenter   crop (h, w) -> (h, w) bool, or None: asked before the classical segmentation

    To be recorded in a cache, a net has the text attributes `name`, `run` (where it was trained; empty for a net of the
    package) and `digest`, which tells its weights apart, and it can be sent to other processes.
    """

    localizer: Localizer | None = None
    segmenter: Segmenter | None = None

    def named(self) -> dict[str, Any]:
        """Give the nets there are: "localizer", "segmenter" -> net."""
        nets = {"localizer": self.localizer, "segmenter": self.segmenter}
        return {role: net for role, net in nets.items() if net is not None}

    def to_json(self) -> str:
        """Describe the nets: role -> name, run and digest; {} without any."""
        described = {
            role: {name: getattr(net, name) for name in ("name", "run", "digest")} for role, net in self.named().items()
        }
        return json.dumps(described, sort_keys=True)

    def open(self) -> None:
        """Load the nets that load lazily: one that is missing is no fault of the films.

        Raises InputError where a net cannot be loaded.
        """
        for net in self.named().values():
            opened = getattr(net, "opened", None)
            if opened is not None:
                opened()
