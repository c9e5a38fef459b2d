"""One film and its ground truth: a hand on a carrier, exposed, developed, with noise and side markers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.phantom.anatomy import Anatomy, pose_hand
from preprocessing.phantom.findings import add_finding
from preprocessing.phantom.hand import Array, Hand
from preprocessing.phantom.markers import Box, Marker, place_markers
from preprocessing.phantom.plan import DEFAULT, SIZE, FilmPlan, check_settings
from preprocessing.phantom.projection import Area, Pose, draw_bones, draw_flesh, draw_metal

REVISION = 1  # of the drawing: raise it whenever the same seed gives other pixels
# Attenuation per mm at about 55 kV; bone's and metal's in excess of the tissue they replace.
_SOFT, _BONE, _METAL = 0.021, 0.062, 0.45


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
    seed: tuple[int, int, int, int]  # of the set, patient, study, image

    def ground_truth(self) -> dict[str, Any]:
        """The content of the JSON file beside the film."""
        return {
            "finding": self.plan.finding,
            "difficulty": self.plan.difficulty,
            "carrier": [[round(float(v), 2) for v in corner] for corner in self.carrier],
            "boxes": [{"class": name, "box": list(box)} for name, box in self.boxes],
            "inverted": self.inverted,
            "view": self.plan.view,
            "seed": list(self.seed),
        }


@dataclass(frozen=True)
class Carrier:
    """The lit field: a rectangle about `center`, half-sizes `half` (pixels), tilted by `tilt` degrees."""

    center: Array  # (2,)
    half: Array  # (2,)
    tilt: float

    @property
    def corners(self) -> NDArray[np.float32]:
        """(4, 2) corners (x, y), clockwise from the upright top left."""
        a = np.deg2rad(self.tilt)
        turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return np.asarray(self.center + (signs * self.half) @ turn, dtype=np.float32)

    def depth(self, shape: tuple[int, int]) -> Array:
        """How many pixels a place lies inside the nearest border (negative outside), (H, W) float32."""
        a = np.deg2rad(self.tilt)
        x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(self.center[0])
        y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(self.center[1])
        c, s = np.float32(np.cos(a)), np.float32(np.sin(a))
        from_sides = np.float32(self.half[0]) - np.abs(c * x + s * y)
        return np.minimum(from_sides, np.float32(self.half[1]) - np.abs(c * y - s * x))

    def room(self, shape: tuple[int, int]) -> Area:
        """An upright area (x0, y0, x1, y1) inside both carrier and frame."""
        a = abs(np.deg2rad(self.tilt))
        shrink = self.half - 0.75 * np.tan(a) * self.half[::-1]
        low, high = np.maximum(self.center - shrink, 0), np.minimum(self.center + shrink, np.array(shape[::-1], float))
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


@dataclass(frozen=True)
class _PlacedHand:
    """A hand where it lies on the film; `side` is "left" or "right"."""

    hand: Hand
    pose: Pose
    side: str


@dataclass(frozen=True)
class _Textures:
    """Fields of noise, (H, W) and of unit variance: the grain of bone, and clouds and streaks in soft tissue."""

    grain: Array
    cloud: Array
    streak: Array

    @classmethod
    def filtered(cls, noise: Array, unit: float) -> _Textures:
        """Filter white noise (3 or more, H, W); `unit` is pixels of this film to one of a film of 512."""
        return cls(
            grain=_band(noise[0], 0.75 * unit, 2.4 * unit, stretch=1.8),
            cloud=_band(noise[1], 9 * unit, 30 * unit),
            streak=_band(noise[2], 1.8 * unit, 6 * unit, stretch=3),
        )


def draw_film(plan: FilmPlan, *, seed: int = 0, size: int = SIZE) -> Phantom:
    """Draw one film, of which the longer side is `size` pixels (64 to 2048).

    It depends on its arguments alone. With no finding in the plan the same hand comes out healthy, on the same film.
    A finding or difficulty that does not exist raises InputError, as do `seed` < 0 and a `size` out of bounds.

    >>> film = draw_film(FilmPlan(patient=1, study=1, image=1), size=64)
    >>> max(film.pixels.shape), film.pixels.dtype.name, bool(film.anomaly.any())
    (64, 'uint8', False)
    """
    check_settings(seed=seed, patients=DEFAULT, size=size)
    key = (seed, plan.patient, plan.study, plan.image)
    # The last number distinguishes the streams.
    placement = np.random.default_rng([*key, 2])
    anatomy = Anatomy.draw(np.random.default_rng([seed, plan.patient, 0, 0, 3]))
    tone = np.random.default_rng([*key, 4])  # how the film looks
    dust = np.random.default_rng([*key, 5])  # fields, whose number of draws depends on the size

    pair = placement.random() < 0.06
    shape = _frame(size, pair, placement)
    carrier = _place_carrier(shape, placement)
    hands = _place_hands(anatomy, plan.view, pair, carrier.room(shape), placement)
    unit = size / 512
    noise = dust.standard_normal((5, *shape), dtype=np.float32)
    textures = _Textures.filtered(noise, unit)
    depth = carrier.depth(shape)
    lit = np.clip(depth + 0.5, 0, 1)

    (rays, mask), *others = [_attenuation(hand, textures) for hand in hands]
    background = np.sum([rays for rays, _ in others], axis=0, dtype=np.float32)
    develop = _developer(rays + background, depth, unit, tone)
    exposed, anomaly = develop(rays + background), np.zeros(shape, bool)
    occupied = np.logical_or.reduce([mask, *(mask for _, mask in others)])
    if plan.finding:
        sick = replace(hands[0], hand=add_finding(hands[0].hand, plan, seed))
        rays, mask = _attenuation(sick, textures)
        healthy, exposed = exposed, develop(rays + background)
        if plan.finding == "missing":  # the ground truth is where the bone would be
            bones = [draw_bones(hand.hand.bones, hand.pose, textures.grain) for hand in (hands[0], sick)]
            anomaly = _changed(lit * (bones[0] - bones[1]), least=0.4)  # mm
        else:
            anomaly = _changed(lit * np.abs(np.clip(exposed, 0, 1) - np.clip(healthy, 0, 1)), least=2 / 255)

    visible = [mask & (depth > 0) for mask in (mask, *(mask for _, mask in others))]
    sides = [hand.side for hand in hands]
    markers = place_markers(sides, occupied, depth, unit, placement)
    film = exposed + _noise(exposed, noise[3:], unit, tone)
    film = film * lit + (1 - lit) * (tone.uniform(0, 0.03) + 0.004 * noise[3])
    inverted = bool(tone.random() < 0.08)
    return Phantom(
        pixels=_as_pixels(film, markers, inverted=inverted),
        carrier=carrier.corners,
        boxes=(
            *((f"{side} hand", _bounding_box(mask)) for side, mask in zip(sides, visible, strict=True)),
            *((f"{marker.side} marker", marker.box) for marker in markers),
        ),
        hand=np.logical_or.reduce(visible),
        anomaly=anomaly,
        plan=plan,
        inverted=inverted,
        seed=key,
    )


def _frame(size: int, pair: bool, rng: np.random.Generator) -> tuple[int, int]:
    """(H, W) of the film: portrait, sometimes square, landscape for two hands and now and then for one."""
    ratio = rng.uniform(0.6, 0.92) if rng.random() < 0.75 else rng.uniform(0.92, 1.0)
    if pair:
        ratio = rng.uniform(0.62, 0.85)
    short = max(round(size * ratio), 2)
    return (short, size) if pair or rng.random() < 0.06 else (size, short)


def _place_carrier(shape: tuple[int, int], rng: np.random.Generator) -> Carrier:
    """A carrier that fills the film and runs out of it, lies upright with a margin, or lies tilted."""
    whole = np.array(shape[::-1], float)
    kind, wander, u = rng.random(), rng.normal(0, 1, 2), rng.random(2)
    if kind < 0.4:
        return Carrier(whole / 2 + 0.02 * wander * whole, whole * (0.53 + 0.04 * u), float(0.6 * wander[0]))
    if kind < 0.75:
        return Carrier(whole / 2 + 0.012 * wander * whole, whole * (0.41 + 0.075 * u), float(0.7 * wander[1]))
    tilt = float(np.sign(wander[0]) * rng.uniform(2.5, 11))
    return Carrier(whole / 2 + 0.015 * wander * whole, whole * (0.43 + 0.06 * u), tilt)


def _place_hands(anatomy: Anatomy, view: str, pair: bool, room: Area, rng: np.random.Generator) -> list[_PlacedHand]:
    """The patient's hand or both hands, posed and fitted into the room; the one examined comes first."""
    width = (room[2] - room[0]) / (2 if pair else 1)
    hands = []
    fill = rng.uniform(0.84, 0.99)
    turned = rng.random() < 0.5
    for number in range(2 if pair else 1):
        right = anatomy.right != (number == 1)
        hand = pose_hand(anatomy, view, rng)
        turn = {"frontal": rng.normal(0, 5), "oblique": rng.uniform(28, 46), "lateral": rng.uniform(58, 80)}[view]
        if turned and view != "frontal":
            turn = -turn
        roll = rng.normal(0, 7) if pair else rng.normal(0, 11)
        pose = Pose(turn=turn, mirror=-1.0 if right else 1.0, roll=float(np.clip(roll, -32, 32)))
        left = room[0] + (width if pair and right else 0)  # each lies on its own side
        slack = (rng.uniform(0.15, 0.85), rng.uniform(0.25, 0.9))
        pose = pose.fitted(hand, (left, room[1], left + width, room[3]), fill, slack)
        hands.append(_PlacedHand(hand, pose, "right" if right else "left"))
    return hands


def _attenuation(placed: _PlacedHand, textures: _Textures) -> tuple[Array, NDArray[np.bool_]]:
    """Attenuation along each ray and the hand's mask, both (H, W)."""
    hand, pose, grain = placed.hand, placed.pose, textures.grain
    flesh = draw_flesh(hand, pose, (grain.shape[0], grain.shape[1]))
    up = pose.film(np.array([[0.0, 0, 0], [0.0, 1, 0]]))
    axis = (up[1] - up[0]) / pose.scale**2
    y = np.arange(grain.shape[0], dtype=np.float32)[:, None] - np.float32(up[0, 1])
    x = np.arange(grain.shape[1], dtype=np.float32)[None, :] - np.float32(up[0, 0])
    mm = x * np.float32(axis[0]) + y * np.float32(axis[1])  # towards the fingertips
    muscle = 1 + 0.35 / (1 + np.exp((mm - 5) / 22))  # the wrist and forearm are deeper than their outline suggests
    rays = _SOFT * flesh * muscle * (1 + 0.035 * textures.cloud + 0.02 * textures.streak)
    rays += _BONE * draw_bones(hand.bones, pose, grain)
    if hand.metal:
        rays += _METAL * draw_metal(hand, pose, (grain.shape[0], grain.shape[1]))
    return rays, flesh > 1.2


def _changed(change: Array, *, least: float) -> NDArray[np.bool_]:
    """The pixels (H, W) that a finding changed: by `least`, or by a share of its largest change."""
    most = float(change.max())
    mask = change > min(max(least, 0.06 * most), 0.3 * most)
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)


def _developer(healthy: Array, depth: Array, unit: float, tone: np.random.Generator) -> Callable[[Array], Array]:
    """How attenuation becomes grey, 0..1, on this film; exposed for the healthy hand, so that no finding shifts it."""
    blur = unit * tone.uniform(0.55, 0.95)
    inside = healthy[(healthy > 0.1) & (depth > 0)]
    white = float(np.percentile(inside, 97)) * tone.uniform(0.95, 1.3)
    bases = [tone.uniform(0.05, 0.12), tone.uniform(0.1, 0.2), tone.uniform(0.3, 0.5)]
    base = float(tone.choice(bases, p=(0.62, 0.3, 0.08)))
    gamma = tone.uniform(0.8, 1.3)
    knee = tone.uniform(0.6, 1.7)
    sharp = tone.uniform(0.2, 0.7) if tone.random() < 0.5 else 0.0
    height, width = depth.shape
    lean, heel = tone.normal(0, 0.03, 2), tone.uniform(0, 0.05)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    ramp = np.float32(lean[0]) * across + np.float32(lean[1]) * down - np.float32(heel) * (across**2 + down**2)
    border = float(tone.choice([0.0, tone.uniform(0.15, 0.6), -base]))  # none, bright or dark
    rim = border * np.exp(-np.maximum(depth, 0) / (unit * tone.uniform(1.5, 7)))
    haze = tone.uniform(0.02, 0.08)

    def develop(rays: Array) -> Array:
        rays = cv2.GaussianBlur(rays, (0, 0), blur)
        if sharp:
            rays = np.maximum(rays + sharp * (rays - cv2.GaussianBlur(rays, (0, 0), 3 * unit)), 0)
        shown = 1 - np.exp(-knee * rays / white)
        shown = (shown / (1 - np.exp(-knee))) ** gamma
        scatter = haze * np.exp(-rays / white)
        film = base + scatter + (0.93 - base) * shown + ramp * (0.4 + shown) + rim
        over = np.maximum(film - 0.8, 0)
        # A shoulder rather than an edge: dense things go on getting brighter.
        return np.asarray(np.minimum(film, 0.8) + 0.2 * (1 - np.exp(-over / 0.2)))

    return develop


def _noise(film: Array, noise: Array, unit: float, tone: np.random.Generator) -> Array:
    """Quantum noise, finer and coarser, (H, W)."""
    fine, coarse = noise[0], cv2.GaussianBlur(noise[1], (0, 0), max(1.1 * unit, 0.4))
    level = tone.uniform(0.004, 0.02)
    mix = tone.uniform(0.2, 0.8)
    mixed = (1 - mix) * fine + mix * coarse / max(float(coarse.std()), 1e-6)
    return np.asarray(level * (0.5 + 0.9 * np.sqrt(np.clip(film, 0, 1))) * mixed)


def _band(noise: Array, low: float, high: float, stretch: float = 1.0) -> Array:
    """Noise between two scales (pixels), unit variance; `stretch` draws it out along the film."""
    near = cv2.GaussianBlur(noise, (0, 0), max(low, 0.3), sigmaY=max(low, 0.3) * stretch)
    band = near - cv2.GaussianBlur(noise, (0, 0), max(high, 0.6), sigmaY=max(high, 0.6) * stretch)
    return np.asarray(band / max(float(band.std()), 1e-6))


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
