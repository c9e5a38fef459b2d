"""Which recipe suits a source: `limb` for limbs on a background, `plain` for films that fill the frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from preprocessing import InputError, steps
from preprocessing.readers import Film, read_film
from preprocessing.recipe import RECIPES
from preprocessing.steps.reduction import blurred, otsu, percentiles, reduced
from preprocessing.wording import counted

if TYPE_CHECKING:
    from preprocessing.sources import Source

SAMPLE = 64  # films looked at, spread evenly over the source
NAMED = 3  # films that do not fit and are named
SIDE = 128  # pixels of the longer side on which a film is looked at
FLAT = 6  # levels of 255, stretched: the gradient of air is no steeper
MIXED = 0.65  # share of films that the recipe suits; where fewer are, the source is mixed

# By benchmarks.preparation: a logistic regression of limbs against chests on the two `measures`.
WEIGHTS = {"flat": 13.4, "spread": -32.9}
OFFSET = 1.5
CLEAR = 1.0  # log-odds: a film does not fit a recipe where they are against it by more

SHOWS = {"limb": "a limb on a background", "plain": "what fills the frame"}


@dataclass(frozen=True)
class Choice:
    """What a sample of films says about the recipe that suits them.

    recipe  the one that suits more of them; `limb` if as many, or if none can be read
    fits    path -> log-odds that it shows a limb on a background, of the films sampled that can be read
    films   how many the source has, those sampled among them
    """

    recipe: str
    fits: Mapping[str, float]
    films: int

    def suited(self, recipe: str) -> int:
        """Count the films sampled that a recipe suits better than the other."""
        return sum((fit >= 0) == (recipe == "limb") for fit in self.fits.values())

    def misfits(self, recipe: str) -> list[str]:
        """List the paths of the films sampled that clearly ask for the other recipe, the clearest first."""
        against = {path: -fit if recipe == "limb" else fit for path, fit in self.fits.items()}
        return sorted((path for path, odds in against.items() if odds > CLEAR), key=lambda path: -against[path])

    def reason(self) -> str:
        """Say in a line which recipe is chosen, and why."""
        suited, sampled = self.suited(self.recipe), len(self.fits)
        if not sampled:
            return f"recipe {self.recipe}: none of the films looked at can be read"
        show = "shows" if suited == 1 else "show"
        line = f"recipe {self.recipe}: {suited} of {counted(sampled, 'film')} sampled {show} {SHOWS[self.recipe]}"
        mixed = "; the films are mixed: name a recipe with --recipe, or prepare them apart"
        return line + mixed * (suited < MIXED * sampled)

    def misfit_notes(self, recipe: str) -> tuple[str, ...]:
        """Say in a line how many of the films sampled a recipe does not fit, and name some; nothing if it fits all."""
        misfits = self.misfits(recipe)
        if not misfits:
            return ()
        other = next(name for name in RECIPES if name != recipe)
        named = ", ".join(misfits[:NAMED]) + ", ..." * (len(misfits) > NAMED)
        fit, show = ("does not fit", "it shows") if len(misfits) == 1 else ("do not fit", "they show")
        return (
            f"{len(misfits)} of {counted(len(self.fits), 'film')} sampled {fit} the recipe {recipe}: {show} "
            f"{SHOWS[other]} (--recipe {other}): {named}",
        )


def choose_recipe(source: Source, *, window: bool = False) -> Choice:
    """Look at SAMPLE films of a source, spread evenly over its order, and choose the recipe that suits most.

    window  whether DICOM films are seen through their display window. Films that cannot be read are passed over: the
    build names them.
    """
    fits: dict[str, float] = {}
    there = [record for record in source.records if not record.missing]
    for place in sorted({round(place) for place in np.linspace(0, max(0, len(there) - 1), SAMPLE)}):
        for record in there[place : place + 1]:
            try:
                film = read_film(record.path, source.read(record.path), window=window)
            except InputError:
                continue
            fits[record.path] = limb_evidence(film)
    limbs = sum(fit >= 0 for fit in fits.values())
    return Choice("limb" if 2 * limbs >= len(fits) else "plain", fits, len(source.records))


def limb_evidence(film: Film) -> float:
    """Weigh the evidence, in log-odds, that a film shows a limb on a background rather than what fills the frame."""
    return weigh(measures(film))


def weigh(measured: Mapping[str, float] | None) -> float:
    """Weigh what `measures` gives; 0 for nothing."""
    return 0.0 if measured is None else OFFSET + sum(WEIGHTS[name] * value for name, value in measured.items())


def measures(film: Film) -> dict[str, float] | None:
    """Measure what tells air around a limb, which is flat and even; None for a flat film.

    Of what lies within the exposed field, bones bright:

    flat     the share of pixels whose gradient is at most FLAT
    spread   interquartile range of the levels below Otsu's, as a share of all: around a limb these are air's, on a
             chest those of lungs, soft tissue and air
    """
    pixels, exposed = film.pixels, film.exposed
    if not film.polarity_known and steps.is_inverted(pixels, exposed=exposed):
        pixels = steps.invert(pixels)
    exposed = steps.find_field(pixels) if exposed is None else exposed
    if exposed is not None and exposed.any():
        rows, columns = np.flatnonzero(exposed.any(axis=1)), np.flatnonzero(exposed.any(axis=0))
        pixels = steps.fill(pixels, exposed)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    smooth = blurred(reduced(pixels, SIDE)[0])
    level = otsu(smooth)
    if level is None:
        return None
    first, third = percentiles(smooth[smooth <= level], (0.25, 0.75))
    gradient = np.asarray(cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))
    return {"flat": float((gradient <= FLAT).mean()), "spread": float(third - first) / 255}
