"""One film and its ground truth: a hand on a carrier, exposed, developed, with noise and side markers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.phantom.hand import Array
from preprocessing.phantom.lesion import Study, settle
from preprocessing.phantom.markers import Box, Marker, place_markers
from preprocessing.phantom.plan import DEFAULT, SIZE, FilmPlan, check_finding, check_settings
from preprocessing.phantom.scene import Scene
from preprocessing.phantom.visibility import MEASURED_SIZE, NormalTwin, Visibility

REVISION = 2  # of the drawing: raise it whenever the same seed gives other pixels


@dataclass(frozen=True)
class Phantom:
    """One film and its ground truth."""

    pixels: NDArray[np.uint8]  # (H, W), the longer side `size`
    carrier: NDArray[np.float32]  # (4, 2) corners (x, y), clockwise from the upright top left; may leave the frame
    boxes: tuple[tuple[str, Box], ...]  # class ("left hand", "right marker", ...), box
    hand: NDArray[np.bool_]  # (H, W) soft tissue and bones, of both hands if there are two
    anomaly: NDArray[np.bool_]  # (H, W) what the finding changed; empty for a normal film
    plan: FilmPlan
    inverted: bool
    visibility: Visibility | None  # of the finding, on this film at `MEASURED_SIZE` pixels; None for a normal film
    seed: tuple[int, int, int, int]  # of the set, patient, study, image

    def ground_truth(self) -> dict[str, Any]:
        """The content of the JSON file beside the film."""
        return {
            "finding": self.plan.finding,
            "difficulty": self.plan.difficulty,
            "visibility": self.visibility and self.visibility.ground_truth(),
            "carrier": [[round(float(v), 2) for v in corner] for corner in self.carrier],
            "boxes": [{"class": name, "box": list(box)} for name, box in self.boxes],
            "inverted": self.inverted,
            "view": self.plan.view,
            "seed": list(self.seed),
        }


def draw_film(plan: FilmPlan, *, seed: int = 0, size: int = SIZE) -> Phantom:
    """Draw one film, of which the longer side is `size` pixels (64 to 2048).

    It depends on its arguments alone. With no finding in the plan the same hand comes out healthy, on the same film.
    A finding or difficulty that does not exist raises InputError, as do `seed` < 0 and a `size` out of bounds.

    >>> film = draw_film(FilmPlan(patient=1, study=1, image=1), size=64)
    >>> max(film.pixels.shape), film.pixels.dtype.name, bool(film.anomaly.any())
    (64, 'uint8', False)
    """
    check_settings(seed=seed, patients=DEFAULT, size=size)
    if plan.views and plan.views[plan.image - 1 : plan.image] != (plan.view,):
        raise InputError(f"image {plan.image}: its view {plan.view!r} is not that of the study's, {plan.views}")
    key = (seed, plan.patient, plan.study, plan.image)
    scene = Scene.draw(key, plan.view, size)
    exposed, masks = scene.film, list(scene.masks)
    anomaly, visibility = np.zeros(exposed.shape, bool), None
    if plan.finding:
        check_finding(plan.finding, plan.difficulty)
        study = Study.of(plan, seed)
        shown = settle(study)[study.images.index(plan.image)]
        visibility = shown.visibility
        change, anomaly = study.drawn(scene, shown)
        if change is not None:
            exposed, masks[0] = exposed.copy(), masks[0].copy()
            exposed[change.window], masks[0][change.window] = change.film, change.hand

    visible = [mask & (scene.depth > 0) for mask in masks]
    sides = [hand.side for hand in scene.hands]
    markers = place_markers(sides, np.logical_or.reduce(scene.masks), scene.depth, scene.unit, scene.placement)
    film = exposed + scene.noise.amplitude(exposed) * scene.noise.field(scene.white[3:])
    film = film * scene.lit + (1 - scene.lit) * (scene.tone.uniform(0, 0.03) + 0.004 * scene.white[3])
    inverted = bool(scene.tone.random() < 0.08)
    return Phantom(
        pixels=_as_pixels(film, markers, inverted=inverted),
        carrier=scene.carrier.corners,
        boxes=(
            *((f"{side} hand", _bounding_box(mask)) for side, mask in zip(sides, visible, strict=True)),
            *((f"{marker.side} marker", marker.box) for marker in markers),
        ),
        hand=np.logical_or.reduce(visible),
        anomaly=anomaly,
        plan=plan,
        inverted=inverted,
        visibility=visibility,
        seed=key,
    )


@dataclass(frozen=True)
class Observation:
    """What an observer who knows a finding's place and shape is given, at `MEASURED_SIZE` pixels; gray is 0..1."""

    film: Array  # (H, W) with noise, without markers
    twin: Array  # (H, W) the same without the finding, its noise another one
    template: Array  # (H, W) change over local variance and d', in the mask: responds with unit variance
    visibility: Visibility


def observe(plan: FilmPlan, *, seed: int = 0) -> Observation:
    """Draw an abnormal film, its normal twin and the matched filter that tells them apart.

    A finding or difficulty that does not exist raises InputError.
    """
    check_finding(plan.finding, plan.difficulty)
    key = (seed, plan.patient, plan.study, plan.image)
    scene, study = Scene.draw(key, plan.view, MEASURED_SIZE), Study.of(plan, seed)
    shown = settle(study)[study.images.index(plan.image)]
    change, mask = study.drawn(scene, shown)
    sick = scene.film.copy()
    if change is not None:
        sick[change.window] = change.film
    white = np.random.default_rng([*key, 7]).standard_normal((2, 2, *sick.shape), dtype=np.float32)
    film, twin = (
        np.clip(gray + scene.noise.amplitude(gray) * scene.noise.field(field), 0, 1)
        for gray, field in zip((sick, scene.film), white, strict=True)
    )
    normal = NormalTwin.of(scene.film, scene.noise)
    template = mask * (np.clip(sick, 0, 1) - normal.film) / normal.beside / shown.visibility.detectability
    return Observation(film, twin, template, shown.visibility)


def _as_pixels(film: Array, markers: list[Marker], *, inverted: bool) -> NDArray[np.uint8]:
    """The film (H, W), 0..1, with markers on it, as 8-bit pixels."""
    for marker in markers:
        film = marker.over(film)
    pixels = np.asarray(np.rint(255 * np.clip(film, 0, 1)), np.uint8)
    return 255 - pixels if inverted else pixels


def _bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The box (x0, y0, x1, y1) around a mask, the last ones excluded; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
