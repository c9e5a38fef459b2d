"""Patients' healthy hands: an average adult's bones and flesh, varied, with their joints set for a film."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from preprocessing.phantom.hand import Array, Ball, Chain, Hand, LongBone, Shape, ShortBone

_CARPALS = {  # z and outline (x, y), mm
    "scaphoid": (-3, "6,-3 9,-7 14,-8 19,-5 24,1 25,6 21,7.5 16,5.5 11,5 7.5,2"),
    "lunate": (0, "-6,-5.5 -2,-8.3 4,-8.3 5,-4 6,0.5 3,1.5 -1,2.2 -5.5,1"),
    "triquetrum": (0, "-18,-1 -13,-5.5 -8,-4.5 -7,1 -9,3.5 -14,7 -18,4"),
    "pisiform": (-10, "-19,2 -14.5,-2.5 -10,1 -10,5 -14,7.5 -18,6"),
    "capitate": (1, "-1.5,5 2.5,3 6.5,5 8,9 8.5,14 8.7,21 4,23 -1,22 -2.8,15 -2.5,9"),
    "hamate": (-1, "-4.5,6 -4.2,14 -2.8,21 -8,21 -15,18.5 -16.5,14 -13,10 -8,5.5"),
    "trapezoid": (0, "10.3,8.5 14,8.3 16.5,10 17.5,15 18.5,20 14,22 11,20.5 10,14"),
    "trapezium": (-5, "18.5,10.5 22,9 28,8.5 31,12 28,17 23,19 19.5,16"),
}


@dataclass(frozen=True)
class Anatomy:
    """What stays a patient's own over all films."""

    lengths: Array  # (5, 4) factors of metacarpal and phalanges
    breadth: float
    stout: float  # half-widths of bones
    flesh: float
    cortex: float
    spongy: float
    ulna: float  # its length against the radius, mm
    carpals: Array  # (8, 72) factors of the outlines
    sesamoids: int
    right: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Anatomy:
        """A patient."""
        turns = np.arange(1, 5)[:, None] * np.linspace(0, 2 * np.pi, 72, endpoint=False)  # (4, 72)
        cosines, sines = rng.normal(0, 0.022, (2, 8, 4))
        carpals = 1 + cosines @ np.cos(turns) + sines @ np.sin(turns)
        return cls(
            lengths=rng.normal(1, 0.035, (5, 1)) * rng.normal(1, 0.02, (5, 4)),
            breadth=rng.uniform(0.93, 1.08),
            stout=rng.uniform(0.9, 1.12),
            flesh=rng.uniform(0.92, 1.16),
            cortex=rng.uniform(0.75, 1.2),
            spongy=rng.uniform(0.8, 1.25),
            ulna=rng.uniform(-2.5, 1.5),
            carpals=carpals,
            sesamoids=int(rng.integers(0, 3)),
            right=bool(rng.random() < 0.5),
        )


@dataclass(frozen=True)
class _Part:
    """What one kind of long bone looks like in an average adult, mm."""

    name: str
    widths: tuple[float, float, float]  # half-widths at base, shaft and head
    caps: tuple[float, float]  # over what length each end rounds off
    shape: Shape
    gap: float = 0.0  # of the joint before it
    bend: float = 0.0  # how much of the finger's flexion that joint takes


_METACARPAL = _Part("metacarpal", (6.6, 3.9, 6.7), (3.2, 6.2), Shape(cup=0.9))
_PHALANGES = (
    _Part("proximal", (6.6, 4.0, 5.1), (2.6, 3.0), Shape(cup=1.1, notch=0.8), gap=2.1, bend=0.8),
    _Part("middle", (5.7, 3.5, 4.4), (2.4, 2.8), Shape(cup=0.7, notch=0.7), gap=1.5, bend=1.1),
    _Part("distal", (4.6, 2.1, 3.1), (2.2, 2.6), Shape(cup=0.6), gap=1.25, bend=0.5),
)
_THUMB = (
    _Part("metacarpal", (7.2, 4.5, 6.7), (3.0, 5.0), Shape(cup=1.0)),
    _Part("proximal", (6.6, 4.1, 5.3), (2.6, 3.2), Shape(cup=0.9, notch=0.6), gap=1.9),
    _Part("distal", (5.9, 2.9, 3.9), (2.4, 3.0), Shape(cup=0.7), gap=1.5),
)


@dataclass(frozen=True)
class _Ray:
    """One finger of an average adult, mm and degrees."""

    base: tuple[float, float, float]
    aside: float  # the metacarpal's angle towards the thumb
    lengths: tuple[float, float, float, float]  # of metacarpal and phalanges
    width: float  # factor of all half-widths
    spread: float  # how far it goes along when the fingers spread


_RAYS = {
    2: _Ray((14.6, 23.0, 0.0), 7.5, (66, 39.5, 22.5, 17), 1.0, 2.2),
    3: _Ray((3.5, 24.6, 1.5), 0.5, (63, 44, 27, 17.8), 1.03, 0.8),
    4: _Ray((-6.2, 22.6, 0.5), -8.0, (56.5, 41, 26, 18), 0.95, -0.7),
    5: _Ray((-14.2, 20.6, -2.0), -17.0, (52, 32.5, 18.5, 16), 0.87, -2.2),
}


def pose_hand(anatomy: Anatomy, view: str, rng: np.random.Generator) -> Hand:
    """The patient's hand with its joints set for one film; on lateral views the fingers are closed and fanned."""
    closed = view == "lateral"
    spread = rng.uniform(-2, 1) if closed else rng.uniform(-1, 8.5)
    bend = rng.uniform(8, 30) if closed else rng.uniform(4, 16)
    fan = rng.uniform(2, 14) if closed else rng.uniform(-4, 4)
    aside = rng.uniform(10, 30) if closed else rng.uniform(26, 50)
    wobble = rng.normal(0, 1.6, (5, 3))
    flex = bend + rng.normal(0, 3, (5, 3))

    bones: list[LongBone | ShortBone] = []
    fingers: list[Chain] = []
    bases, heads, webs = {}, {}, {}
    for finger, ray in _RAYS.items():
        bases[finger] = np.array(ray.base) * (anatomy.breadth, 1, 1)
        heads[finger] = bases[finger] + ray.lengths[0] * anatomy.lengths[finger - 1, 0] * direction(ray.aside, -3)
        name = f"metacarpal {finger}"
        bones.append(_long_bone(name, bases[finger], heads[finger], _METACARPAL, anatomy, ray.width))
        angles = _Angles(0.65 * ray.aside + spread * ray.spread, wobble[finger - 1], flex[finger - 1], fan)
        phalanges, chain, webs[finger] = _pose_finger(finger, heads[finger], angles, anatomy)
        bones += phalanges
        fingers.append(chain)
    thumb, chain, cmc, mcp = _pose_thumb(anatomy, aside, wobble[0], flex[0])
    fingers.append(chain)
    bones += [*thumb, *_small_bones(anatomy, mcp), *_forearm(anatomy)]
    return Hand(tuple(bones), tuple(fingers), _palm(anatomy, bases, heads, webs, cmc, mcp))


@dataclass(frozen=True)
class _Angles:
    """How one finger is held, degrees."""

    aside: float  # its angle towards the thumb
    wobble: Array  # (3,) what each phalanx adds to that
    flex: Array  # (3,) of each joint
    fan: float  # how far the fingers are fanned


def _pose_finger(finger: int, head: Array, angles: _Angles, anatomy: Anatomy) -> tuple[list[LongBone], Chain, Array]:
    """A finger's phalanges beyond `head` (3,), its flesh, and the point (3,) up to which the web reaches."""
    ray = _RAYS[finger]
    bones = []
    joints, aside, down = [head], angles.aside, -3.0
    web = head
    for number, part in enumerate(_PHALANGES):
        aside += angles.wobble[number]
        down += max(angles.flex[number] * part.bend + angles.fan * (3.5 - finger) * 0.5, -4)
        axis = direction(aside, down)
        start = joints[-1] + part.gap * axis
        length = ray.lengths[number + 1] * anatomy.lengths[finger - 1, number + 1]
        joints.append(start + length * axis)
        bones.append(_long_bone(f"{part.name} {finger}", start, joints[-1], part, anatomy, ray.width))
        web = start + 0.42 * length * axis if number == 0 else web
    joints[-1] = joints[-1] + 2.6 * anatomy.flesh * axis
    radii = ray.width * anatomy.flesh * np.array([10.6, 9.3, 7.9, 5.9])
    return bones, tuple(pairwise(zip(joints, radii, strict=True))), web


def _pose_thumb(
    anatomy: Anatomy, aside: float, wobble: Array, flex: Array
) -> tuple[list[LongBone], Chain, Array, Array]:
    """The thumb's bones and flesh, and its first two joints (3,): the carpometacarpal, the metacarpophalangeal."""
    bones = []
    start = np.array([28.5 * anatomy.breadth, 19.2, -7])
    joints, down = [start], 18 + 0.3 * flex[0]
    for number, part in enumerate(_THUMB):
        axis = direction(aside, down)
        start = joints[-1] + part.gap * axis
        joints.append(start + (45, 31, 22)[number] * anatomy.lengths[0, number] * axis)
        bones.append(_long_bone(f"{part.name} 1", start, joints[-1], part, anatomy))
        aside += (-10, -4, 0)[number] + wobble[number]
        down += 0.4 * flex[number]
    cmc, mcp = joints[:2]
    joints[-1] = joints[-1] + 2.8 * anatomy.flesh * axis
    radii = anatomy.flesh * np.array([12.5, 11.3, 9.8, 6.9])
    return bones, tuple(pairwise(zip(joints, radii, strict=True))), cmc, mcp


def _forearm(anatomy: Anatomy) -> tuple[LongBone, LongBone]:
    """Radius and ulna."""
    wide = anatomy.breadth
    knots = "0,12.6 3,14 9,13.6 20,10.4 32,8.2 55,6.9 190,8"
    shape = Shape(slant=-0.22, cup=1.6, bow=1.0, flat=0.62)
    radius = _forearm_bone("radius", (8.2 * wide, 10.5), -8.6, knots, shape, anatomy)
    knots = "0,6 3,7.4 8,7.2 18,5.4 35,5.2 190,6.6"
    shape = Shape(slant=0.22, bow=-0.8, flat=0.8)
    return radius, _forearm_bone("ulna", (-15.2 * wide, -12.5), -10.2 + anatomy.ulna, knots, shape, anatomy)


def _palm(
    anatomy: Anatomy,
    bases: dict[int, Array],
    heads: dict[int, Array],
    webs: dict[int, Array],
    cmc: Array,
    mcp: Array,
) -> tuple[tuple[Ball, ...], ...]:
    """The flesh around the metacarpals; points (3,) by finger, and the thumb's two joints (3,)."""
    wide, flesh = anatomy.breadth, anatomy.flesh
    wrist: list[Ball] = [(np.array([x * wide, -8.0, 0.0]), 17.5 * flesh) for x in (-9.5, 10.5)]
    elbow: list[Ball] = [(np.array([x * wide, -190.0, 0.0]), 27.0 * flesh) for x in (-13.0, 14.0)]
    knuckles: list[Ball] = [(heads[f], 10.5 * flesh * min(_RAYS[f].width, 1)) for f in heads]
    heel: list[Ball] = [
        (np.array([-21.0 * wide, 34, -6]), 13.0 * flesh),
        (np.array([-18.0 * wide, 6, -4]), 11.0 * flesh),
    ]
    groups: list[list[Ball]] = [
        [*knuckles, (bases[2], 11.0), (bases[5], 12.0), *wrist],
        [*wrist, *elbow],
        [*heel, (heads[5], 9.0)],
        [
            wrist[1],
            (cmc, 10.5 * flesh),
            ((cmc + mcp) / 2, 11.5 * flesh),
            (bases[2], 11.0),
            ((bases[2] + heads[2]) / 2, 8.0),
        ],
        [(mcp, 8.5 * flesh), ((cmc + mcp) / 2, 9.0), (0.35 * bases[2] + 0.65 * heads[2], 7.5), (bases[2], 8.0)],
    ]
    groups += [[(heads[a], 8.0), (heads[b], 8.0), (webs[a], 5.6), (webs[b], 5.6)] for a, b in pairwise(heads)]
    return tuple(tuple(group) for group in groups)


def _long_bone(name: str, start: Array, end: Array, part: _Part, anatomy: Anatomy, factor: float = 1.0) -> LongBone:
    """A bone of that kind between two points."""
    length = float(np.linalg.norm(end - start))
    base, shaft, head = (anatomy.stout * factor * width for width in part.widths)
    mm = np.linspace(0, length, 256)
    flare_base = np.exp(-((mm / (1.15 * base + 0.07 * length)) ** 2))
    flare_head = np.exp(-(((length - mm) / (1.05 * head + 0.05 * length)) ** 2))
    half = shaft + (base - shaft) * flare_base + (head - shaft) * flare_head
    ends = np.maximum(flare_base, flare_head)
    wall = anatomy.cortex * (0.36 * shaft * (1 - ends) ** 0.7 + 0.45)
    outer = half * _rounded_end(mm, part.caps[0]) * _rounded_end(length - mm, part.caps[1])
    inner = (
        np.maximum(half - wall, 0)
        * _rounded_end(mm - 0.8, part.caps[0])
        * _rounded_end(length - mm - 0.7, part.caps[1])
    )
    spongy = anatomy.spongy * (0.10 + 0.20 * ends**0.8)
    return LongBone(name, start, end, outer, inner, spongy, part.shape)


def _forearm_bone(
    name: str, x: tuple[float, float], top: float, knots: str, shape: Shape, anatomy: Anatomy, length: float = 190.0
) -> LongBone:
    """Radius or ulna, half-widths by "mm from the wrist,half-width" knots; it is longer than any film shows."""
    mm = np.linspace(0, length, 256)
    half = anatomy.stout * np.interp(mm, *_parse_points(knots).T)
    half = np.convolve(np.pad(half, 4, mode="edge"), np.ones(9) / 9, mode="valid")
    end = np.exp(-mm / 16)
    wall = anatomy.cortex * (0.6 + 2.0 * (1 - end))
    outer = half * _rounded_end(mm, 5.5)
    inner = np.maximum(half - wall, 0) * _rounded_end(mm - 1.1, 5.5)
    spongy = anatomy.spongy * (0.07 + 0.11 * end)
    return LongBone(name, np.array([x[0], top, 0.0]), np.array([x[1], top - length, 0.0]), outer, inner, spongy, shape)


def _small_bones(anatomy: Anatomy, mcp: Array) -> list[LongBone | ShortBone]:
    """Carpals, and what sesamoids the patient has at the thumb's middle joint `mcp` (3,)."""
    bones: list[LongBone | ShortBone] = []
    for number, (name, (z, outline)) in enumerate(_CARPALS.items()):
        points = _parse_points(outline) * (anatomy.breadth, 1)
        center = (points.min(0) + points.max(0)) / 2
        radius = _polar(points - center) * anatomy.carpals[number] * (1.04 + 0.1 * (anatomy.stout - 1))
        bones.append(ShortBone(name, np.array([*center, z]), radius, depth=7.0 if name == "pisiform" else 10.5))
    for number in range(anatomy.sesamoids):
        side = np.array([3.2 - 6.4 * number, -1.5, -6])
        bones.append(ShortBone(f"sesamoid {number + 1}", mcp + side, np.full(72, 2.0 - 0.3 * number), depth=3.2))
    return bones


def _parse_points(text: str) -> Array:
    """The points "x,y x,y ..." as (N, 2)."""
    return np.array([pair.split(",") for pair in text.split()], dtype=float)


def _rounded_end(mm: Array, over: float) -> Array:
    """Rounds an end off: 0 at 0 mm and outside, 1 from `over` mm on."""
    return np.asarray((1 - (1 - np.clip(mm / over, 0, 1)) ** 2.6) ** (1 / 2.2))


def direction(aside: float, bent: float) -> Array:
    """The unit vector `aside` degrees from the hand's axis towards the thumb, bent `bent` degrees to the palm."""
    a, b = np.deg2rad([aside, bent])
    return np.array([np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), -np.sin(b)])


def _polar(points: Array) -> Array:
    """The outline through points around the origin, (N, 2) -> its radius at 72 angles, smoothed."""
    dense = np.concatenate([np.linspace(a, b, 40, endpoint=False) for a, b in pairwise([*points, points[0]])])
    angle = np.arctan2(dense[:, 1], dense[:, 0])
    order = np.argsort(angle)
    grid = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.interp(grid, angle[order], np.hypot(*dense.T)[order], period=2 * np.pi)
    return np.asarray(np.convolve(np.pad(radius, 3, mode="wrap"), np.array([1, 2, 3, 4, 3, 2, 1]) / 16, mode="valid"))
