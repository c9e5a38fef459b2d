"""A hand on its film, exposed and developed, before noise and markers; and what a finding changes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.phantom.anatomy import Anatomy, pose_hand
from preprocessing.phantom.exposure import Developer, Noise
from preprocessing.phantom.hand import Array, Hand, LongBone
from preprocessing.phantom.projection import (
    Area,
    Pose,
    Window,
    draw_bones,
    draw_fingers,
    draw_metal,
    draw_palm,
    window_around,
)

# Attenuation per mm at about 55 kV; bone's and metal's in excess of the tissue they replace.
_SOFT, _BONE, _METAL = 0.021, 0.062, 0.45
_FLESH = 1.2  # mm of soft tissue from which on a pixel belongs to the hand


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
class PlacedHand:
    """A hand where it lies on the film; `side` is "left" or "right"."""

    hand: Hand
    pose: Pose
    side: str


@dataclass(frozen=True)
class Textures:
    """Fields of noise, (H, W) and of unit variance: the grain of bone, and clouds and streaks in soft tissue."""

    grain: Array
    cloud: Array
    streak: Array

    @classmethod
    def filtered(cls, noise: Array, unit: float) -> Textures:
        """Filter white noise (3 or more, H, W); `unit` is pixels of this film to one of a film of 512."""
        return cls(
            grain=_band(noise[0], 0.75 * unit, 2.4 * unit, stretch=1.8),
            cloud=_band(noise[1], 9 * unit, 30 * unit),
            streak=_band(noise[2], 1.8 * unit, 6 * unit, stretch=3),
        )

    def within(self, window: Window) -> Textures:
        """The part in a window."""
        return Textures(self.grain[window], self.cloud[window], self.streak[window])


@dataclass(frozen=True)
class Change:
    """What a changed hand looks like, where it differs from the healthy one."""

    window: Window  # of the film; outside it nothing changes
    film: Array  # (h, w) developed, without noise
    hand: NDArray[np.bool_]  # (h, w) the hand's mask


@dataclass(frozen=True)
class Scene:
    """A film of a healthy hand, developed, without noise and markers."""

    unit: float  # pixels of this film to one of a film of 512
    carrier: Carrier
    depth: Array  # (H, W) pixels inside the carrier's nearest border
    hands: tuple[PlacedHand, ...]  # the one examined comes first
    masks: tuple[NDArray[np.bool_], ...]  # (H, W) of each hand
    film: Array  # (H, W)
    noise: Noise
    white: Array  # (5 or 3, H, W) standard normal: the first three went into textures, the others are for noise
    placement: np.random.Generator  # what is placed after the hand
    tone: np.random.Generator  # what the film looks like beyond that
    develop: Developer
    textures: Textures
    palm: Array  # (H, W) of the hand examined, as `draw_palm` has it
    background: Array  # (H, W) attenuation of the other hand

    @property
    def lit(self) -> Array:
        """How much of a pixel lies on the carrier, 0..1, (H, W)."""
        return np.clip(self.depth + 0.5, 0, 1)

    @classmethod
    def draw(cls, key: tuple[int, int, int, int], view: str, size: int, *, noisy: bool = True) -> Scene:
        """The scene of (set, patient, study, image), longer side `size`; `noisy`: with white noise for its noise."""
        # The last number distinguishes the streams.
        placement = np.random.default_rng([*key, 2])
        anatomy = Anatomy.draw(np.random.default_rng([key[0], key[1], 0, 0, 3]))
        tone = np.random.default_rng([*key, 4])  # how the film looks
        dust = np.random.default_rng([*key, 5])  # fields, whose number of draws depends on the size

        pair = placement.random() < 0.06
        shape = _frame(size, pair, placement)
        carrier = _place_carrier(shape, placement)
        hands = _place_hands(anatomy, view, pair, carrier.room(shape), placement)
        unit = size / 512
        white = dust.standard_normal((5 if noisy else 3, *shape), dtype=np.float32)
        textures = Textures.filtered(white, unit)
        depth = carrier.depth(shape)

        palms = [draw_palm(placed.hand, placed.pose, shape) for placed in hands]
        drawn = [_attenuation(placed, palm, textures) for placed, palm in zip(hands, palms, strict=True)]
        background = np.sum([rays for rays, _ in drawn[1:]], axis=0, dtype=np.float32)
        rays = drawn[0][0] + background
        develop = Developer.draw(rays, depth, unit, tone)
        return cls(
            unit=unit,
            carrier=carrier,
            depth=depth,
            hands=tuple(hands),
            masks=tuple(mask for _, mask in drawn),
            film=develop(rays),
            noise=Noise.draw(unit, tone),
            white=white,
            placement=placement,
            tone=tone,
            develop=develop,
            textures=textures,
            palm=palms[0],
            background=np.broadcast_to(background, shape),
        )

    def changed(self, hand: Hand) -> Change | None:
        """The film with `hand` in the place of the one examined; None where the film shows no difference.

        Only a window around what differs is drawn, wide enough that blur has no border in it.
        """
        placed, shape = self.hands[0], (self.depth.shape[0], self.depth.shape[1])
        spread = self.develop.reach + 2
        extents = list(_extents(placed.hand, hand))
        if not extents:
            return None
        points = placed.pose.film(np.array([point for point, _ in extents]))
        reach = placed.pose.scale * np.array([radius for _, radius in extents])[:, None] + 2
        corners = np.concatenate([points - reach, points + reach])
        outer, inner = window_around(corners, 2 * spread, shape), window_around(corners, spread, shape)
        if outer is None or inner is None:
            return None
        x, y = placed.pose.offset
        pose = replace(placed.pose, offset=(x - outer[1].start, y - outer[0].start))
        rays, mask = _attenuation(replace(placed, hand=hand, pose=pose), self.palm[outer], self.textures.within(outer))
        film = self.develop(rays + self.background[outer], outer)
        rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
        return Change(inner, film[rows, columns], mask[rows, columns])


def _extents(healthy: Hand, sick: Hand) -> Iterator[tuple[Array, float]]:
    """Points (3,) and radii, mm, around all that differs between two hands."""
    before, after = ({bone.name: bone for bone in hand.bones} for hand in (healthy, sick))
    for name in before | after:
        old, new = before.get(name), after.get(name)
        if old is new:
            continue
        if isinstance(new, LongBone) and (spot := new.spot) is not None:  # beyond it the bone is as it was
            around = 1.5 * spot.radius + abs(spot.off) * new.reach + abs(new.shape.bow)
            yield new.start + spot.at * (new.end - new.start), around
            continue
        for bone in (old, new):
            if isinstance(bone, LongBone):
                yield from ((bone.start, bone.reach), (bone.end, bone.reach))
            elif bone is not None:
                yield bone.center, bone.reach
    for old_chain, new_chain in zip(healthy.fingers, sick.fingers, strict=True):
        if old_chain is not new_chain:
            yield from (ball for pair in (*old_chain, *new_chain) for ball in pair)
    for start, end, width, _ in (*healthy.metal, *sick.metal):
        yield from ((start, width), (end, width))


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


def _place_hands(anatomy: Anatomy, view: str, pair: bool, room: Area, rng: np.random.Generator) -> list[PlacedHand]:
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
        hands.append(PlacedHand(hand, pose, "right" if right else "left"))
    return hands


def _attenuation(placed: PlacedHand, palm: Array, textures: Textures) -> tuple[Array, NDArray[np.bool_]]:
    """Attenuation along each ray and the hand's mask, both (H, W), with the hand's palm as `draw_palm` has it."""
    hand, pose, grain = placed.hand, placed.pose, textures.grain
    flesh = draw_fingers(hand, pose, palm)
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
    return rays, flesh > _FLESH


def _band(noise: Array, low: float, high: float, stretch: float = 1.0) -> Array:
    """Noise between two scales (pixels), unit variance; `stretch` draws it out along the film."""
    near = cv2.GaussianBlur(noise, (0, 0), max(low, 0.3), sigmaY=max(low, 0.3) * stretch)
    band = near - cv2.GaussianBlur(noise, (0, 0), max(high, 0.6), sigmaY=max(high, 0.6) * stretch)
    return np.asarray(band / max(float(band.std()), 1e-6))
