"""Synthetic X-ray films of hands, with exact truth, in MURA's tree: data to start with where there is none.

A hand is a skeleton in millimetres and three dimensions: x towards the thumb, y towards the fingertips, z towards the
back of the hand. It is posed, turned, projected, and weighed along every ray: bone is a tube of cortex around spongy
bone, so that its bright edges come from geometry; soft tissue is an inflated outline. The film then darkens with
exposure, gamma, scatter and noise.

No shortcut to the label: whatever is no finding (anatomy, pose, view, carrier, marker, exposure, noise) is drawn from
streams that never see the label, and is measured on the hand as it would be without the finding. So a film and its
normal twin, `draw_film(replace(plan, finding="", difficulty=""))`, differ where the finding is and nowhere else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError

Array = NDArray[Any]

# Patients. Once validation and test have theirs, about 60 normal ones (150 films) are left to train on.
DEFAULT = 152
SIZE = 512
ABNORMAL = 0.3  # share of patients with an abnormal study
REVISION = 1  # of the drawing: raise it whenever the same seed gives other pixels

DIFFICULTIES = ("obvious", "medium", "subtle")
VIEWS = ("frontal", "oblique", "lateral")

_PROGRESS, _NOTE = ".phantoms.json", "SYNTHETIC.txt"
# Attenuation per mm at about 55 kV; bone's and metal's in excess of the tissue they replace.
_SOFT, _BONE, _METAL = 0.021, 0.062, 0.45
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


# ------------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class FilmPlan:
    """What one film will show. `finding` and `difficulty` are empty for a film of a normal study."""

    patient: int
    study: int
    image: int
    view: str = "frontal"
    finding: str = ""
    difficulty: str = ""

    @property
    def path(self) -> str:
        """The film's POSIX path in MURA's tree.

        >>> FilmPlan(patient=7, study=1, image=2, finding="lytic", difficulty="subtle").path
        'XR_HAND/patient00007/study1_positive/image2.png'
        """
        sign = "positive" if self.finding else "negative"
        return f"XR_HAND/patient{self.patient:05d}/study{self.study}_{sign}/image{self.image}.png"

    @property
    def files(self) -> tuple[str, ...]:
        """The POSIX paths of the truth beside the film, and last the film: where that exists, all do."""
        stem = self.path.removesuffix(".png")
        anomaly = (f"{stem}_anomaly.png",) if self.finding else ()
        return (f"{stem}.json", f"{stem}_hand.png", *anomaly, self.path)


def plan_films(*, seed: int = 0, patients: int = DEFAULT) -> list[FilmPlan]:
    """Deal studies, views and findings over patients; nothing is drawn. Films come in path order.

    Studies a patient (1-2), films a study (1-4) and views are dealt before labels, so they say nothing about them.
    Findings and difficulties are balanced over abnormal films as evenly as whole studies allow.

    >>> films = plan_films(seed=0, patients=20)
    >>> len({film.patient for film in films}), len({film.patient for film in films if film.finding})
    (20, 6)
    """
    _check(seed=seed, patients=patients, size=SIZE)
    rng = np.random.default_rng([seed, 0, 0, 0, 1])
    studies = [2 if several else 1 for several in rng.permutation(np.arange(patients) < round(0.14 * patients))]
    counts = rng.permutation(np.resize([2, 3, 1, 2, 3, 2, 4, 1, 2, 3], sum(studies)))
    keys = [(patient + 1, study + 1) for patient in range(patients) for study in range(studies[patient])]
    views = {key: _views(int(count), rng) for key, count in zip(keys, counts, strict=True)}

    sick = set(1 + rng.permutation(patients)[: max(1, round(ABNORMAL * patients))])
    positive = [key for key in keys if key[0] in sick]
    for patient in sick:  # of two studies both, the first or the second are abnormal
        if (patient, 2) in positive and (drop := rng.integers(3)) > 0:
            positive.remove((patient, int(drop)))

    cells: Counter[tuple[str, str]] = Counter()
    findings: Counter[str] = Counter()
    difficulties: Counter[str] = Counter()
    given: dict[tuple[int, int], tuple[str, str]] = {}
    deck = [(str(f), str(d)) for f in rng.permutation(FINDINGS) for d in rng.permutation(DIFFICULTIES)]
    for key in sorted((positive[i] for i in rng.permutation(len(positive))), key=lambda key: -len(views[key])):
        cell = min(deck, key=lambda cell: (cells[cell], difficulties[cell[1]], findings[cell[0]]))
        given[key] = cell
        cells[cell] += len(views[key])
        findings[cell[0]] += len(views[key])
        difficulties[cell[1]] += len(views[key])
    return [
        FilmPlan(*key, image + 1, view, *given.get(key, ("", "")))
        for key in keys
        for image, view in enumerate(views[key])
    ]


def _views(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """The views of a study: frontal first wherever there are several, then the others."""
    if count == 1:
        return (str(rng.choice(VIEWS, p=(0.6, 0.25, 0.15))),)
    second, third = rng.permutation(["oblique", "lateral"], axis=0) if rng.random() < 0.4 else ("oblique", "lateral")
    return ("frontal", str(second), str(third), str(rng.choice(VIEWS)))[:count]


# ---------------------------------------------------------------------------------------------------------- the anatomy


@dataclass(frozen=True)
class _Fracture:
    """A break across a long bone, at `at` of its length."""

    at: float
    slope: float
    step: float  # sideways displacement of the loose fragment at the break, mm; it closes towards the far joint
    gap: float  # mm
    depth: float  # 0..1: how empty the gap is
    loose: float  # 1: the part towards the bone's end is displaced; -1: that towards its start
    jag: tuple[float, float]  # phases of the ragged edge


@dataclass(frozen=True)
class _Spot:
    """A lesion inside one bone."""

    at: float  # 0..1 of its length; of a carpal always its middle
    off: float  # of its half-width
    radius: float  # mm
    change: float  # < 0 takes that share of bone away, > 0 adds to it
    lobes: tuple[float, float]


@dataclass(frozen=True)
class _Shape:
    """How a long bone departs from a tube with round ends."""

    cup: float = 0.0  # depth of the hollow at its start, mm
    notch: float = 0.0  # depth of the groove at its end, mm
    slant: float = 0.0  # of its start surface
    bow: float = 0.0  # sideways at mid-length, mm
    flat: float = 1.0  # depth over width


@dataclass(frozen=True)
class _Long:
    """A long bone: a tube of revolution around a line, tables over its length."""

    name: str
    start: Array  # (3,) mm
    end: Array  # (3,) mm
    outer: Array  # (256,) half-width, mm
    inner: Array  # (256,) half-width of the marrow, mm
    spongy: Array  # (256,) density of the marrow's bone, 0..1 of cortex
    shape: _Shape
    fracture: _Fracture | None = None
    spot: _Spot | None = None
    joins: tuple[str, ...] = ()  # a bridge adds only what these bones lack of `density`
    density: float = 1.0

    def width(self, at: float) -> float:
        """The half-width at 0..1 of its length, mm."""
        return float(self.outer[int(255 * at)])


@dataclass(frozen=True)
class _Short:
    """A carpal or sesamoid: a pebble with an outline in polar coordinates."""

    name: str
    centre: Array  # (3,) mm
    outline: Array  # (72,) radius over angle, mm
    depth: float  # thickness, mm
    spot: _Spot | None = None


_Ball = tuple[Array, float]  # centre (3,) and radius, mm
_Rod = tuple[Array, Array, float, float]  # start, end (3,), width, thickness, mm


@dataclass(frozen=True)
class _Hand:
    """A posed hand."""

    bones: tuple[_Long | _Short, ...]
    fingers: tuple[tuple[tuple[_Ball, _Ball], ...], ...]  # index to little finger, thumb: chains of tapering capsules
    palm: tuple[tuple[_Ball, ...], ...]  # groups, whose hulls are the rest of the outline: palm, forearm, and so on
    metal: tuple[_Rod, ...] = ()

    def bone(self, name: str) -> _Long | _Short:
        """The bone of that name."""
        return next(bone for bone in self.bones if bone.name == name)


@dataclass(frozen=True)
class _Anatomy:
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
    def draw(cls, rng: np.random.Generator) -> _Anatomy:
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
    shape: _Shape
    gap: float = 0.0  # of the joint before it
    bend: float = 0.0  # how much of the finger's flexion that joint takes


_METACARPAL = _Part("metacarpal", (6.6, 3.9, 6.7), (3.2, 6.2), _Shape(cup=0.9))
_PHALANGES = (
    _Part("proximal", (6.6, 4.0, 5.1), (2.6, 3.0), _Shape(cup=1.1, notch=0.8), gap=2.1, bend=0.8),
    _Part("middle", (5.7, 3.5, 4.4), (2.4, 2.8), _Shape(cup=0.7, notch=0.7), gap=1.5, bend=1.1),
    _Part("distal", (4.6, 2.1, 3.1), (2.2, 2.6), _Shape(cup=0.6), gap=1.25, bend=0.5),
)
_THUMB = (
    _Part("metacarpal", (7.2, 4.5, 6.7), (3.0, 5.0), _Shape(cup=1.0)),
    _Part("proximal", (6.6, 4.1, 5.3), (2.6, 3.2), _Shape(cup=0.9, notch=0.6), gap=1.9),
    _Part("distal", (5.9, 2.9, 3.9), (2.4, 3.0), _Shape(cup=0.7), gap=1.5),
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


def _long(name: str, start: Array, end: Array, part: _Part, anatomy: _Anatomy, factor: float = 1.0) -> _Long:
    """A bone of that kind between two points."""
    length = float(np.linalg.norm(end - start))
    base, shaft, head = (anatomy.stout * factor * width for width in part.widths)
    mm = np.linspace(0, length, 256)
    flare_base = np.exp(-((mm / (1.15 * base + 0.07 * length)) ** 2))
    flare_head = np.exp(-(((length - mm) / (1.05 * head + 0.05 * length)) ** 2))
    half = shaft + (base - shaft) * flare_base + (head - shaft) * flare_head
    ends = np.maximum(flare_base, flare_head)
    wall = anatomy.cortex * (0.36 * shaft * (1 - ends) ** 0.7 + 0.45)
    outer = half * _cap(mm, part.caps[0]) * _cap(length - mm, part.caps[1])
    inner = np.maximum(half - wall, 0) * _cap(mm - 0.8, part.caps[0]) * _cap(length - mm - 0.7, part.caps[1])
    spongy = anatomy.spongy * (0.10 + 0.20 * ends**0.8)
    return _Long(name, start, end, outer, inner, spongy, part.shape)


def _forearm(
    name: str, x: tuple[float, float], top: float, knots: str, shape: _Shape, anatomy: _Anatomy, length: float = 190.0
) -> _Long:
    """Radius or ulna, half-widths by "mm from the wrist,half-width" knots; it is longer than any film shows."""
    mm = np.linspace(0, length, 256)
    half = anatomy.stout * np.interp(mm, *_points(knots).T)
    half = np.convolve(np.pad(half, 4, mode="edge"), np.ones(9) / 9, mode="valid")
    end = np.exp(-mm / 16)
    wall = anatomy.cortex * (0.6 + 2.0 * (1 - end))
    outer = half * _cap(mm, 5.5)
    inner = np.maximum(half - wall, 0) * _cap(mm - 1.1, 5.5)
    spongy = anatomy.spongy * (0.07 + 0.11 * end)
    return _Long(name, np.array([x[0], top, 0.0]), np.array([x[1], top - length, 0.0]), outer, inner, spongy, shape)


def _points(text: str) -> Array:
    """The points "x,y x,y ..." as (N, 2)."""
    return np.array([pair.split(",") for pair in text.split()], dtype=float)


def _cap(mm: Array, over: float) -> Array:
    """Rounds an end off: 0 at 0 mm and outside, 1 from `over` mm on."""
    return np.asarray((1 - (1 - np.clip(mm / over, 0, 1)) ** 2.6) ** (1 / 2.2))


def _way(aside: float, bent: float) -> Array:
    """The unit vector `aside` degrees from the hand's axis towards the thumb, bent `bent` degrees to the palm."""
    a, b = np.deg2rad([aside, bent])
    return np.array([np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), -np.sin(b)])


def _pose_hand(anatomy: _Anatomy, view: str, rng: np.random.Generator) -> _Hand:
    """The patient's hand with its joints set for one film; on lateral views the fingers are closed and fanned."""
    closed = view == "lateral"
    spread = rng.uniform(-2, 1) if closed else rng.uniform(-1, 8.5)
    bend = rng.uniform(8, 30) if closed else rng.uniform(4, 16)
    fan = rng.uniform(2, 14) if closed else rng.uniform(-4, 4)
    aside = rng.uniform(10, 30) if closed else rng.uniform(26, 50)
    wobble = rng.normal(0, 1.6, (5, 3))
    flex = bend + rng.normal(0, 3, (5, 3))

    bones: list[_Long | _Short] = []
    fingers: list[tuple[tuple[_Ball, _Ball], ...]] = []
    bases, heads, webs = {}, {}, {}
    for finger, ray in _RAYS.items():
        bases[finger] = np.array(ray.base) * (anatomy.breadth, 1, 1)
        heads[finger] = bases[finger] + ray.lengths[0] * anatomy.lengths[finger - 1, 0] * _way(ray.aside, -3)
        name = f"metacarpal {finger}"
        bones.append(_long(name, bases[finger], heads[finger], _METACARPAL, anatomy, ray.width))
        chain, webs[finger] = _pose_finger(finger, heads[finger], spread, fan, wobble, flex, anatomy, bones)
        fingers.append(chain)

    start = np.array([28.5 * anatomy.breadth, 19.2, -7])
    joints, down = [start], 18 + 0.3 * flex[0, 0]
    for number, part in enumerate(_THUMB):
        way = _way(aside, down)
        start = joints[-1] + part.gap * way
        joints.append(start + (45, 31, 22)[number] * anatomy.lengths[0, number] * way)
        bones.append(_long(f"{part.name} 1", start, joints[-1], part, anatomy))
        aside += (-10, -4, 0)[number] + wobble[0, number]
        down += 0.4 * flex[0, number]
    cmc, mcp = joints[:2]
    bones += _pebbles(anatomy, mcp)
    joints[-1] = joints[-1] + 2.8 * anatomy.flesh * way
    fingers.append(tuple(pairwise(zip(joints, anatomy.flesh * np.array([12.5, 11.3, 9.8, 6.9]), strict=True))))

    wide, flesh = anatomy.breadth, anatomy.flesh
    knots = "0,12.6 3,14 9,13.6 20,10.4 32,8.2 55,6.9 190,8"
    shape = _Shape(slant=-0.22, cup=1.6, bow=1.0, flat=0.62)
    bones.append(_forearm("radius", (8.2 * wide, 10.5), -8.6, knots, shape, anatomy))
    knots = "0,6 3,7.4 8,7.2 18,5.4 35,5.2 190,6.6"
    shape = _Shape(slant=0.22, bow=-0.8, flat=0.8)
    bones.append(_forearm("ulna", (-15.2 * wide, -12.5), -10.2 + anatomy.ulna, knots, shape, anatomy))

    wrist: list[_Ball] = [(np.array([x * wide, -8.0, 0.0]), 17.5 * flesh) for x in (-9.5, 10.5)]
    elbow: list[_Ball] = [(np.array([x * wide, -190.0, 0.0]), 27.0 * flesh) for x in (-13.0, 14.0)]
    knuckles: list[_Ball] = [(heads[f], 10.5 * flesh * min(_RAYS[f].width, 1)) for f in heads]
    heel: list[_Ball] = [
        (np.array([-21.0 * wide, 34, -6]), 13.0 * flesh),
        (np.array([-18.0 * wide, 6, -4]), 11.0 * flesh),
    ]
    palm: list[list[_Ball]] = [
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
    palm += [[(heads[a], 8.0), (heads[b], 8.0), (webs[a], 5.6), (webs[b], 5.6)] for a, b in pairwise(heads)]
    return _Hand(tuple(bones), tuple(fingers), tuple(tuple(group) for group in palm))


def _pose_finger(
    finger: int,
    head: Array,
    spread: float,
    fan: float,
    wobble: Array,
    flex: Array,
    anatomy: _Anatomy,
    bones: list[_Long | _Short],
) -> tuple[tuple[tuple[_Ball, _Ball], ...], Array]:
    """Add a finger's phalanges to the bones; returns its flesh and the point (3,) up to which the web reaches."""
    ray = _RAYS[finger]
    joints, aside, down = [head], 0.65 * ray.aside + spread * ray.spread, -3.0
    web = head
    for number, part in enumerate(_PHALANGES):
        aside += wobble[finger - 1, number]
        down += max(flex[finger - 1, number] * part.bend + fan * (3.5 - finger) * 0.5, -4)
        way = _way(aside, down)
        start = joints[-1] + part.gap * way
        length = ray.lengths[number + 1] * anatomy.lengths[finger - 1, number + 1]
        joints.append(start + length * way)
        bones.append(_long(f"{part.name} {finger}", start, joints[-1], part, anatomy, ray.width))
        web = start + 0.42 * length * way if number == 0 else web
    joints[-1] = joints[-1] + 2.6 * anatomy.flesh * way
    radii = ray.width * anatomy.flesh * np.array([10.6, 9.3, 7.9, 5.9])
    return tuple(pairwise(zip(joints, radii, strict=True))), web


def _pebbles(anatomy: _Anatomy, mcp: Array) -> list[_Long | _Short]:
    """Carpals, and what sesamoids the patient has at the thumb's middle joint `mcp` (3,)."""
    bones: list[_Long | _Short] = []
    for number, (name, (z, outline)) in enumerate(_CARPALS.items()):
        points = _points(outline) * (anatomy.breadth, 1)
        centre = (points.min(0) + points.max(0)) / 2
        radius = _polar(points - centre) * anatomy.carpals[number] * (1.04 + 0.1 * (anatomy.stout - 1))
        bones.append(_Short(name, np.array([*centre, z]), radius, depth=7.0 if name == "pisiform" else 10.5))
    for number in range(anatomy.sesamoids):
        side = np.array([3.2 - 6.4 * number, -1.5, -6])
        bones.append(_Short(f"sesamoid {number + 1}", mcp + side, np.full(72, 2.0 - 0.3 * number), depth=3.2))
    return bones


def _polar(points: Array) -> Array:
    """The outline through points around the origin, (N, 2) -> its radius at 72 angles, smoothed."""
    dense = np.concatenate([np.linspace(a, b, 40, endpoint=False) for a, b in pairwise([*points, points[0]])])
    angle = np.arctan2(dense[:, 1], dense[:, 0])
    order = np.argsort(angle)
    grid = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.interp(grid, angle[order], np.hypot(*dense.T)[order], period=2 * np.pi)
    return np.asarray(np.convolve(np.pad(radius, 3, mode="wrap"), np.array([1, 2, 3, 4, 3, 2, 1]) / 16, mode="valid"))


# --------------------------------------------------------------------------------------------------------- the findings


def _break(hand: _Hand, grade: int, rng: np.random.Generator) -> _Hand:
    """A fracture through a long bone: a ragged line, and the fragment beyond it displaced."""
    digit = int(rng.integers(2, 6))
    names = [
        f"proximal {digit}",
        f"middle {digit}",
        f"metacarpal {digit}",
        f"metacarpal {digit}",
        "metacarpal 1",
        "radius",
    ]
    bone = _of(hand, str(rng.choice(names)))
    radius = bone.name == "radius"
    at = rng.uniform(0.1, 0.13) if radius else rng.uniform(0.35, 0.65)
    half = min(bone.width(at), 6.0)
    sign = _sign(rng)
    broken = _Fracture(
        at=at,
        slope=sign * rng.uniform(0.25, 0.75),
        step=-sign * half * (0.95, 0.38, 0.12)[grade],
        gap=(1.1, 0.75, 0.5)[grade],
        depth=(1.0, 0.85, 0.6)[grade],
        loose=-1.0 if radius else 1.0,
        jag=_phases(rng),
    )
    return _swap(hand, replace(bone, fracture=broken))


def _erode(hand: _Hand, grade: int, rng: np.random.Generator) -> _Hand:
    """A lytic lesion: a hole in the bone, down to a shade."""
    return _spot(hand, grade, (-0.92, -0.72, -0.5)[grade], rng)


def _harden(hand: _Hand, grade: int, rng: np.random.Generator) -> _Hand:
    """A sclerotic lesion: a patch as dense as cortex, down to a haze."""
    return _spot(hand, grade, (0.75, 0.45, 0.26)[grade], rng)


def _spot(hand: _Hand, grade: int, change: float, rng: np.random.Generator) -> _Hand:
    """The hand with bone taken away or added in a lobed spot, the smaller the subtler."""
    digit = int(rng.integers(2, 6))
    names = [f"proximal {digit}", f"metacarpal {digit}", f"middle {digit}", "proximal 1", "radius"]
    names += ["capitate", "scaphoid", "lunate"] if grade else []  # among carpals nothing is obvious from the side
    bone = hand.bone(str(rng.choice(names)))
    at, off = rng.uniform(0.2, 0.8), _sign(rng) * rng.uniform(0, 0.22)
    if isinstance(bone, _Short):
        spot = _Spot(0, off, float(bone.outline.mean()) * (0.85, 0.64, 0.5)[grade], change, _phases(rng))
        return _swap(hand, replace(bone, spot=spot))
    if bone.name == "radius":
        at = 0.05 + 0.06 * at  # near the wrist, where every film has it
    spot = _Spot(at, off, min(bone.width(at), 8.0) * (1.05, 0.8, 0.64)[grade], change, _phases(rng))
    return _swap(hand, replace(bone, spot=spot))


def _swell(hand: _Hand, grade: int, rng: np.random.Generator) -> _Hand:
    """Soft tissue swollen around a finger's joint."""
    chain = hand.fingers[int(rng.integers(0, 5))]
    before, after = chain[int(rng.choice([1, 1, 2]))]
    ahead = (after[0] - before[0]) / np.linalg.norm(after[0] - before[0])
    more, reach = (0.56, 0.36, 0.2)[grade], (32, 23, 17)[grade]
    bulge = [
        (before[0] + reach * t * ahead, before[1] * (0.75 + (0.25 + more) * np.cos(np.pi * t / 2) ** 2))
        for t in np.linspace(-1, 1, 11)
    ]
    return replace(hand, fingers=tuple((*c, *pairwise(bulge)) if c is chain else c for c in hand.fingers))


def _amputate(hand: _Hand, grade: int, rng: np.random.Generator) -> _Hand:
    """Missing bone: two phalanges with their flesh, the last one with its flesh, or the tip of the last one alone."""
    digit = int(rng.integers(2, 6))
    if grade == 2:
        bone = _of(hand, f"distal {digit}")
        left = np.clip(rng.uniform(0.34, 0.46) * 16 - np.linspace(0, 16, 256), 0, 1)
        return _swap(hand, replace(bone, outer=bone.outer * left, inner=bone.inner * left))
    gone = {f"distal {digit}"} | ({f"middle {digit}"} if grade == 0 else set())
    chain = hand.fingers[digit - 2]
    (joint, radius), (beyond, _) = chain[1 + grade]
    stump = (*chain[: 1 + grade], ((joint, radius), (joint + 0.12 * (beyond - joint), 0.93 * radius)))
    return replace(
        hand,
        bones=tuple(bone for bone in hand.bones if bone.name not in gone),
        fingers=tuple(stump if c is chain else c for c in hand.fingers),
    )


def _fuse(hand: _Hand, grade: int, rng: np.random.Generator) -> _Hand:
    """A finger's joint closed by a bridge of bone."""
    digit = int(rng.integers(2, 6))
    pairs = (("metacarpal", "proximal"), ("proximal", "middle"), ("proximal", "middle"), ("middle", "distal"))
    near, far = (_of(hand, f"{part} {digit}") for part in pairs[int(rng.integers(4))])
    half = min(float(near.outer.max()), float(far.outer[:128].max())) * (1.12, 0.98, 0.92)[grade]
    reach = (7.0, 5.0, 3.6)[grade] * (far.end - near.start) / np.linalg.norm(far.end - near.start)
    outer = half * (1 - np.abs(np.linspace(-1, 1, 256)) ** 3) ** 0.5
    inner, spongy = np.maximum(outer - 0.9, 0), np.full(256, (0.42, 0.34, 0.28)[grade])
    bridge = _Long(
        f"bridge {digit}",
        near.end - reach,
        far.start + reach,
        outer,
        inner,
        spongy,
        _Shape(),
        joins=(near.name, far.name),
        density=(1.0, 0.95, 0.78)[grade],
    )
    return replace(hand, bones=(*hand.bones, bridge))


def _fix(hand: _Hand, grade: int, rng: np.random.Generator) -> _Hand:
    """Metal in or on a long bone: a plate with screws, two crossing wires, or one short pin."""
    digit = int(rng.integers(2, 6))
    names = [f"proximal {digit}", f"metacarpal {digit}", f"metacarpal {digit}", "metacarpal 1", "radius"]
    bone = _of(hand, str(rng.choice(names)))
    span = (0.03, 0.25) if bone.name == "radius" else (0.14, 0.86)
    low, high = (bone.start + t * (bone.end - bone.start) for t in span)
    across = np.cross(high - low, _way(90, 45))
    across *= _sign(rng) * bone.width(sum(span) / 2) / np.linalg.norm(across)
    middle, along = low + rng.uniform(0.3, 0.7) * (high - low), 0.16 * (high - low)
    if grade == 2:
        return replace(hand, metal=((middle - along + 0.3 * across, middle + along - 0.3 * across, 0.8, 0.6),))
    if grade == 1:
        wires = [(low + flip * 0.7 * across, high - flip * 0.75 * across, 1.15, 1.1) for flip in (1, -1)]
        return replace(hand, metal=tuple(wires))
    rods: list[_Rod] = [(low + 0.45 * across, high + 0.45 * across, 3.1, 1.5)]
    for at in np.linspace(low + 0.06 * (high - low), low + 0.94 * (high - low), 5):
        rods.append((at + 0.6 * across, at - 1.25 * across, 1.6, 2.0))
        rods.append((at + 0.75 * across, at + 0.55 * across, 3.4, 1.6))
    return replace(hand, metal=tuple(rods))


def _sign(rng: np.random.Generator) -> float:
    """To one side or the other."""
    return 1.0 if rng.random() < 0.5 else -1.0


def _phases(rng: np.random.Generator) -> tuple[float, float]:
    """Two angles, for an outline no two films share."""
    first, second = rng.uniform(0, 2 * np.pi, 2)
    return float(first), float(second)


def _of(hand: _Hand, name: str) -> _Long:
    """The long bone of that name."""
    bone = hand.bone(name)
    assert isinstance(bone, _Long)
    return bone


def _swap(hand: _Hand, bone: _Long | _Short) -> _Hand:
    """The hand with that bone in the place of its namesake."""
    return replace(hand, bones=tuple(bone if old.name == bone.name else old for old in hand.bones))


# Each adds its finding in three grades: obvious to a lay eye, seen with care, barely there.
_FINDINGS: dict[str, Callable[[_Hand, int, np.random.Generator], _Hand]] = {
    "fracture": _break,
    "hardware": _fix,
    "lytic": _erode,
    "sclerotic": _harden,
    "swelling": _swell,
    "missing": _amputate,
    "fused": _fuse,
}
FINDINGS = tuple(_FINDINGS)


def _add_finding(hand: _Hand, plan: FilmPlan, seed: int) -> _Hand:
    """The hand with its finding. The stream is the study's, so that all its films show the same one."""
    for name, value, allowed in (("finding", plan.finding, FINDINGS), ("difficulty", plan.difficulty, DIFFICULTIES)):
        if value not in allowed:
            raise InputError(f"no {name} {value!r}; there are: {', '.join(allowed)}")
    rng = np.random.default_rng([seed, plan.patient, plan.study, 0, 6])
    return _FINDINGS[plan.finding](hand, DIFFICULTIES.index(plan.difficulty), rng)


# ---------------------------------------------------------------------------------------------------------- the drawing


_Area = tuple[float, float, float, float]  # x0, y0, x1, y1, pixels
_Window = tuple[slice, slice]  # rows, columns
_Patch = tuple[_Window, Array]  # of a drawing, and where it belongs


@dataclass(frozen=True)
class _Pose:
    """Where a hand lies: turned about its long axis, mirrored if a right one, rolled on the film, scaled, put down."""

    turn: float  # degrees
    mirror: float  # 1 or -1
    roll: float  # degrees
    scale: float = 1.0  # pixels per mm
    offset: tuple[float, float] = (0.0, 0.0)  # pixels

    def film(self, points: Array) -> Array:
        """Project (..., 3) mm to (..., 2) film pixels (x, y)."""
        turn, roll = np.deg2rad([self.turn, self.roll])
        x = self.mirror * (points[..., 0] * np.cos(turn) + points[..., 2] * np.sin(turn))
        y = -points[..., 1]
        rolled = np.stack([x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)], axis=-1)
        return np.asarray(self.scale * rolled + self.offset)

    def fitted(self, hand: _Hand, area: _Area, fill: float, slack: tuple[float, float]) -> _Pose:
        """The pose that fits wrist to fingertips into `fill` of an area; `slack` 0..1 shares out what room is left."""
        balls = [ball for chain in hand.fingers for pair in chain for ball in pair] + list(hand.palm[0])
        balls += [(centre - (0, 24.0, 0), radius) for centre, radius in hand.palm[0][-2:]]  # a stub of forearm
        points = self.film(np.array([centre for centre, _ in balls]))  # (N, 2) in mm as yet
        radii = np.array([radius for _, radius in balls])[:, None]
        low, high = (points - radii).min(0), (points + radii).max(0)
        room = np.array([area[2] - area[0], area[3] - area[1]])
        scale = float((fill * room / (high - low)).min())
        corner = np.array(area[:2]) + np.array(slack) * (room - scale * (high - low))
        x, y = corner - scale * low
        return replace(self, scale=scale, offset=(float(x), float(y)))


def _window(points: Array, reach: float, shape: tuple[int, int]) -> _Window | None:
    """Rows and columns within `reach` pixels of the points (N, 2), or None where that misses the film."""
    x0, y0 = np.floor(points.min(0) - reach).astype(int)
    x1, y1 = np.ceil(points.max(0) + reach).astype(int) + 1
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, shape[1]), min(y1, shape[0])
    return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None


def _along(ends: Array, window: _Window) -> tuple[Array, Array, float]:
    """Pixels along and across the line between two points (2, 2), over a window, and its length."""
    way = ends[1] - ends[0]
    length = max(float(np.hypot(*way)), 1e-3)
    ux, uy = (way / length).astype(np.float32)
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(ends[0, 0])
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(ends[0, 1])
    return x * ux + y * uy, y * ux - x * uy, length


def _draw_long(bone: _Long, pose: _Pose, grain: Array) -> _Patch | None:
    """The millimetres of cortex-equal bone along each ray through a long bone: (window, patch)."""
    ends = pose.film(np.stack([bone.start, bone.end]))
    true = float(np.linalg.norm(bone.end - bone.start))
    widest = float(bone.outer.max())
    aside = abs(bone.shape.bow) + (abs(bone.fracture.step) if bone.fracture else 0)
    window = _window(ends, pose.scale * (widest + aside) + 2, grain.shape)
    if window is None:
        return None
    s, d, pixels = _along(ends, window)
    short = pixels / (pose.scale * true)  # < 1 where the bone points out of the film's plane
    t = s / pixels
    d = d * np.float32(pose.mirror / pose.scale)  # mm, towards the same side of the bone on mirrored films
    d = d - np.float32(4 * bone.shape.bow) * t * (1 - t)
    gap: Array | None = None
    if (broken := bone.fracture) is not None:
        ragged = 0.5 * np.sin(2.3 * d + broken.jag[0]) + 0.3 * np.sin(5.1 * d + broken.jag[1])
        past = (t - broken.at) * true - broken.slope * d - ragged  # mm beyond the break
        far = np.clip(broken.loose * past / 0.3, 0, 1)
        closing = np.clip((1 - t) / (1 - broken.at), 0, 1) if broken.loose > 0 else 1
        d = d - broken.step * far * closing
        gap = 1 - broken.depth * np.exp(-((past / (0.5 * broken.gap)) ** 2))
    side = np.clip(d / widest, -1, 1)
    hollow = bone.shape.cup * side * side + bone.shape.slant * widest * side
    t = t + np.float32(1 / true) * (1 - np.clip(t, 0, 1)) ** 2 * hollow
    if bone.shape.notch:
        t = t + np.float32(bone.shape.notch / true) * np.clip(5 * t - 4, 0, 1) * np.exp(-((side / 0.3) ** 2))
    index = (255 * t + 0.5).astype(np.int32)
    outer, inner, spongy = (table.take(index, mode="clip") for table in (bone.outer, bone.inner, bone.spongy))
    inside = (t > 0) & (t < 1)
    dd = d * d
    whole = 2 * np.sqrt(np.maximum(outer * outer - dd, 0))
    marrow = 2 * np.sqrt(np.maximum(inner * inner - dd, 0))
    patch = (whole - marrow + marrow * spongy * (1 + 0.45 * grain[window])) * inside
    if bone.spot is not None:
        along = (s - pixels * bone.spot.at) / np.float32(pose.scale)
        patch = _draw_spot(bone.spot, patch, whole * inside, along, d - bone.spot.off * widest)
    if gap is not None:
        patch = patch * gap
    return window, np.asarray(patch * (bone.shape.flat / max(short, 0.6)), dtype=np.float32)


def _draw_short(bone: _Short, pose: _Pose, grain: Array) -> _Patch | None:
    """The millimetres of cortex-equal bone along each ray through a carpal: (window, patch)."""
    centre = pose.film(bone.centre)
    reach = float(bone.outline.max())
    window = _window(centre[None], pose.scale * reach + 2, grain.shape)
    if window is None:
        return None
    up = pose.film(bone.centre + np.array([0.0, 1.0, 0.0])) - centre
    y, x, _ = _along(np.stack([centre, centre + up]), window)
    turn = np.deg2rad(pose.turn)
    x = x * np.float32(pose.mirror / pose.scale / np.hypot(np.cos(turn), 0.85 * np.sin(turn)))
    y = y / np.float32(pose.scale)
    index = (np.arctan2(y, x) * (72 / (2 * np.pi)) * 4).astype(np.int32)
    fine = np.interp(np.arange(288) / 4, np.arange(73), [*bone.outline, bone.outline[0]]).astype(np.float32)
    radius = fine.take(index, mode="wrap")
    distance = np.hypot(x, y)
    q = np.minimum(distance / radius, 1)
    core = np.minimum(distance / (radius - 0.75), 1)
    whole = bone.depth * np.sqrt(1 - q**3)
    marrow = 0.88 * bone.depth * np.sqrt(1 - core**3)
    patch = whole - marrow + marrow * 0.25 * (1 + 0.4 * grain[window])
    if bone.spot is not None:
        patch = _draw_spot(bone.spot, patch, whole, y, x - bone.spot.off * reach)
    return window, np.asarray(patch, dtype=np.float32)


def _draw_spot(spot: _Spot, patch: Array, whole: Array, s: Array, d: Array) -> Array:
    """The patch with bone taken away or added: `whole` its own depth, (s, d) the place from the spot's middle, mm."""
    angle = np.arctan2(s, d)
    edge = spot.radius * (1 + 0.16 * np.cos(2 * angle + spot.lobes[0]) + 0.1 * np.cos(3 * angle + spot.lobes[1]))
    weight = np.clip((1.15 - np.hypot(s, d) / edge) / 0.35, 0, 1)
    weight = weight * weight * (3 - 2 * weight)
    return np.asarray(patch * (1 + spot.change * weight) if spot.change < 0 else patch + spot.change * weight * whole)


def _draw_bones(bones: Sequence[_Long | _Short], pose: _Pose, grain: Array) -> Array:
    """The millimetres of cortex-equal bone along each ray, (H, W) float32.

    Where a pixel is coarser than a joint's gap, finer rays are averaged: else small films would lose what is thin.
    """
    fine = max(1, round(1.6 / pose.scale))
    if fine > 1:
        x, y = pose.offset
        offset = (fine * (x + 0.5) - 0.5, fine * (y + 0.5) - 0.5)
        grid = (fine * grain.shape[1], fine * grain.shape[0])
        pose = replace(pose, scale=fine * pose.scale, offset=offset)
        drawn = _draw_bones(bones, pose, cv2.resize(grain, grid, interpolation=cv2.INTER_NEAREST))
        return np.asarray(cv2.resize(drawn, grain.shape[::-1], interpolation=cv2.INTER_AREA))
    total = np.zeros_like(grain)
    patches = {bone.name: _draw_bone(bone, pose, grain) for bone in bones}
    for bone in bones:
        if (placed := patches[bone.name]) is None:
            continue
        window, patch = placed
        if isinstance(bone, _Long) and bone.joins:
            there = np.zeros_like(grain)
            for neighbour in filter(None, (patches[name] for name in bone.joins)):
                there[neighbour[0]] += neighbour[1]
            patch = np.maximum(bone.density * patch - there[window], 0)
        total[window] += patch
    return total


def _draw_bone(bone: _Long | _Short, pose: _Pose, grain: Array) -> _Patch | None:
    """One bone's share of that; None where it lies outside the film."""
    return _draw_long(bone, pose, grain) if isinstance(bone, _Long) else _draw_short(bone, pose, grain)


def _draw_flesh(hand: _Hand, pose: _Pose, shape: tuple[int, int]) -> Array:
    """The millimetres of soft tissue along each ray, (H, W) float32; > 0 inside the outline.

    Squared thicknesses add up: of a round finger that is 4 (r² - d²), of the palm what `_inflate` gives; so nothing
    jumps where they meet.
    """
    outline = np.zeros(shape, np.uint8)
    circle = np.stack([np.cos(np.linspace(0, 2 * np.pi, 32)), np.sin(np.linspace(0, 2 * np.pi, 32))], axis=-1)
    for group in hand.palm:
        rims = np.concatenate([pose.film(centre) + pose.scale * radius * circle for centre, radius in group])
        hull = cv2.convexHull(rims.astype(np.float32))
        cv2.fillConvexPoly(outline, np.rint(hull * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(outline, (0, 0), max(1.9 * pose.scale, 0.5))  # rounds the corners where hulls meet
    squared = _inflate(soft > 127, 12.5 * pose.scale)
    for chain in hand.fingers:
        links = [(pose.film(np.stack([a, b])), pose.scale * ra, pose.scale * rb) for (a, ra), (b, rb) in chain]
        thick = max(max(ra, rb) for _, ra, rb in links)
        window = _window(np.concatenate([ends for ends, _, _ in links]), thick + 2, shape)
        if window is None:
            continue
        finger = np.float32(0)
        for ends, ra, rb in links:
            s, d, length = _along(ends, window)
            at = np.clip(s, 0, length)
            radius = ra + (rb - ra) / length * at
            finger = np.maximum(finger, 4 * (radius * radius - (s - at) ** 2 - d * d))
        squared[window] += finger
    return np.asarray(np.sqrt(squared) / pose.scale, dtype=np.float32)


def _inflate(inside: NDArray[np.bool_], reach: float) -> Array:
    """The squared thickness (pixels²) of a body with that outline, (H, W) float32: round at the rim, flat far inside.

    8 u with ∇²u - u / reach² = -1 inside and u = 0 outside: for a strip much narrower than `reach` (pixels) exactly a
    round tube. Relaxed from coarse to fine grids.
    """
    height, width = inside.shape
    solid = inside.astype(np.float32)
    u: Array | None = None
    for step in (32, 16, 8, 4, 2, 1):
        if step > 1 and reach < 2.5 * step:
            continue
        grid = (-(-width // step), -(-height // step))
        part = (cv2.resize(solid, grid, interpolation=cv2.INTER_AREA) > 0.5).astype(np.float32)
        gain = part / np.float32(1 + step * step / (3 * reach * reach))
        rounds = 60 if u is None else 6 if step == 1 else 18
        u = reach * reach * part if u is None else cv2.resize(u, grid, interpolation=cv2.INTER_LINEAR)
        for _ in range(rounds):  # a mean over 3 x 3 cells is u + step² ∇²u / 3
            u = (cv2.blur(u, (3, 3), borderType=cv2.BORDER_REPLICATE) + np.float32(step * step / 3)) * gain
    assert u is not None
    return np.asarray(8 * u)


def _draw_metal(hand: _Hand, pose: _Pose, shape: tuple[int, int]) -> Array:
    """The millimetres of metal along each ray, (H, W) float32."""
    total = np.zeros(shape, np.float32)
    for start, end, width, thickness in hand.metal:
        ends = pose.film(np.stack([start, end]))
        window = _window(ends, pose.scale * width + 2, shape)
        if window is None:
            continue
        s, d, length = _along(ends, window)
        beyond = s - np.clip(s, 0, length)
        wide = pose.scale * width
        cover = min(1.0, wide) * np.clip(0.5 * wide + 0.5 - np.hypot(d, beyond), 0, 1)
        total[window] = np.maximum(total[window], thickness * cover)
    return total


# ------------------------------------------------------------------------------------------------------------- the film


_Box = tuple[int, int, int, int]  # x0, y0, x1, y1, pixels, the last ones excluded


@dataclass(frozen=True)
class Phantom:
    """One film and its truth."""

    pixels: NDArray[np.uint8]  # (H, W), the longer side `size`
    carrier: NDArray[np.float32]  # (4, 2) corners (x, y), clockwise from the upright top left; may leave the frame
    boxes: tuple[tuple[str, _Box], ...]  # class ("left hand", "right marker", ...), box
    hand: NDArray[np.bool_]  # (H, W) soft tissue and bones, of both hands where there are two
    anomaly: NDArray[np.bool_]  # (H, W) what the finding changed; empty for a normal film
    plan: FilmPlan
    inverted: bool
    seed: tuple[int, int, int, int]  # of the set, patient, study, image

    def truth(self) -> dict[str, Any]:
        """What lies beside the film as JSON."""
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
class _Carrier:
    """The lit field: a rectangle about `centre`, half-sizes `half` (pixels), tilted by `tilt` degrees."""

    centre: Array  # (2,)
    half: Array  # (2,)
    tilt: float

    @property
    def corners(self) -> NDArray[np.float32]:
        """(4, 2) corners (x, y), clockwise from the upright top left."""
        a = np.deg2rad(self.tilt)
        turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return np.asarray(self.centre + (signs * self.half) @ turn, dtype=np.float32)

    def depth(self, shape: tuple[int, int]) -> Array:
        """How many pixels a place lies inside the nearest border (negative outside), (H, W) float32."""
        a = np.deg2rad(self.tilt)
        x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(self.centre[0])
        y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(self.centre[1])
        c, s = np.float32(np.cos(a)), np.float32(np.sin(a))
        from_sides = np.float32(self.half[0]) - np.abs(c * x + s * y)
        return np.minimum(from_sides, np.float32(self.half[1]) - np.abs(c * y - s * x))

    def room(self, shape: tuple[int, int]) -> _Area:
        """An upright area (x0, y0, x1, y1) inside both carrier and frame."""
        a = abs(np.deg2rad(self.tilt))
        shrink = self.half - 0.75 * np.tan(a) * self.half[::-1]
        low, high = np.maximum(self.centre - shrink, 0), np.minimum(self.centre + shrink, np.array(shape[::-1], float))
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def draw_film(plan: FilmPlan, *, seed: int = 0, size: int = SIZE) -> Phantom:
    """Draw one film, of which the longer side is `size` pixels (64 to 2048).

    It depends on its arguments alone. With no finding in the plan the same hand comes out healthy, on the same film.
    A finding or difficulty that does not exist raises InputError, as do `seed` < 0 and a `size` out of bounds.

    >>> film = draw_film(FilmPlan(patient=1, study=1, image=1), size=64)
    >>> max(film.pixels.shape), film.pixels.dtype.name, bool(film.anomaly.any())
    (64, 'uint8', False)
    """
    _check(seed=seed, patients=DEFAULT, size=size)
    key = (seed, plan.patient, plan.study, plan.image)
    rng = np.random.default_rng([*key, 2])  # the last number tells the streams apart; where things lie
    anatomy = _Anatomy.draw(np.random.default_rng([seed, plan.patient, 0, 0, 3]))
    tone = np.random.default_rng([*key, 4])  # how the film looks
    dust = np.random.default_rng([*key, 5])  # fields, whose number of draws depends on the size

    pair = rng.random() < 0.06
    shape = _frame(size, pair, rng)
    carrier = _lay_carrier(shape, rng)
    hands, poses, sides = _lay_hands(anatomy, plan.view, pair, carrier.room(shape), rng)

    unit = size / 512
    noise = dust.standard_normal((5, *shape), dtype=np.float32)
    grain = _band(noise[0], 0.75 * unit, 2.4 * unit, stretch=1.8)
    cloud = _band(noise[1], 9 * unit, 30 * unit)
    streak = _band(noise[2], 1.8 * unit, 6 * unit, stretch=3)
    depth = carrier.depth(shape)
    lit = np.clip(depth + 0.5, 0, 1)

    weighed = [_weigh(hand, pose, grain, cloud, streak) for hand, pose in zip(hands, poses, strict=True)]
    others = np.sum([rays for rays, _ in weighed[1:]], axis=0, dtype=np.float32)
    rays, mask = weighed[0]
    develop = _developer(rays + others, depth, unit, tone)
    drawn, anomaly = develop(rays + others), np.zeros(shape, bool)
    free = np.logical_or.reduce([mask for _, mask in weighed])
    if plan.finding:
        sick = _add_finding(hands[0], plan, seed)
        rays, mask = _weigh(sick, poses[0], grain, cloud, streak)
        healthy, drawn = drawn, develop(rays + others)
        change, least = np.abs(np.clip(drawn, 0, 1) - np.clip(healthy, 0, 1)), 2 / 255  # grey levels
        if plan.finding == "missing":  # mm of bone: where there is none, the truth is where it would be
            change = _draw_bones(hands[0].bones, poses[0], grain) - _draw_bones(sick.bones, poses[0], grain)
            least = 0.4
        change = lit * change
        most = float(change.max())
        anomaly = change > min(max(least, 0.06 * most), 0.3 * most)
        anomaly = cv2.morphologyEx(anomaly.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0

    inside = depth > 0
    visible = [mask & inside for mask in (mask, *(other for _, other in weighed[1:]))]
    boxes = [(f"{side} hand", _bounds(mask)) for side, mask in zip(sides, visible, strict=True)]
    markers = _lay_markers(sides, free, depth, unit, rng)

    film = drawn + _grain(drawn, noise[3:], unit, tone)
    film = film * lit + (1 - lit) * (tone.uniform(0, 0.03) + 0.004 * noise[3])
    for _, _, plate, letter, level in markers:
        film = film * (1 - 0.75 * plate) + 0.75 * plate * level
        film = film + letter * (0.97 - film)
    boxes += [(f"{side} marker", box) for side, box, *_ in markers]
    inverted = bool(tone.random() < 0.08)
    pixels = np.rint(255 * np.clip(film, 0, 1)).astype(np.uint8)
    return Phantom(
        pixels=255 - pixels if inverted else pixels,
        carrier=carrier.corners,
        boxes=tuple(boxes),
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


def _lay_carrier(shape: tuple[int, int], rng: np.random.Generator) -> _Carrier:
    """A carrier that fills the film and runs out of it, lies upright with a margin, or lies tilted."""
    whole = np.array(shape[::-1], float)
    kind, wander, u = rng.random(), rng.normal(0, 1, 2), rng.random(2)
    if kind < 0.4:
        return _Carrier(whole / 2 + 0.02 * wander * whole, whole * (0.53 + 0.04 * u), float(0.6 * wander[0]))
    if kind < 0.75:
        return _Carrier(whole / 2 + 0.012 * wander * whole, whole * (0.41 + 0.075 * u), float(0.7 * wander[1]))
    tilt = float(np.sign(wander[0]) * rng.uniform(2.5, 11))
    return _Carrier(whole / 2 + 0.015 * wander * whole, whole * (0.43 + 0.06 * u), tilt)


def _lay_hands(
    anatomy: _Anatomy, view: str, pair: bool, room: _Area, rng: np.random.Generator
) -> tuple[list[_Hand], list[_Pose], list[str]]:
    """The patient's hand or both of them, posed and put into the room there is; the examined one comes first."""
    width = (room[2] - room[0]) / (2 if pair else 1)
    hands, poses, sides = [], [], []
    fill = rng.uniform(0.84, 0.99)
    turned = rng.random() < 0.5
    for number in range(2 if pair else 1):
        right = anatomy.right != (number == 1)
        hand = _pose_hand(anatomy, view, rng)
        turn = {"frontal": rng.normal(0, 5), "oblique": rng.uniform(28, 46), "lateral": rng.uniform(58, 80)}[view]
        if turned and view != "frontal":
            turn = -turn
        roll = rng.normal(0, 7) if pair else rng.normal(0, 11)
        pose = _Pose(turn=turn, mirror=-1.0 if right else 1.0, roll=float(np.clip(roll, -32, 32)))
        left = room[0] + (width if pair and right else 0)  # each lies on its own side
        slack = (rng.uniform(0.15, 0.85), rng.uniform(0.25, 0.9))
        hands.append(hand)
        poses.append(pose.fitted(hand, (left, room[1], left + width, room[3]), fill, slack))
        sides.append("right" if right else "left")
    return hands, poses, sides


def _weigh(hand: _Hand, pose: _Pose, grain: Array, cloud: Array, streak: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Attenuation along each ray and the hand's mask, both (H, W)."""
    flesh = _draw_flesh(hand, pose, (grain.shape[0], grain.shape[1]))
    up = pose.film(np.array([[0.0, 0, 0], [0.0, 1, 0]]))
    way = (up[1] - up[0]) / pose.scale**2
    y = np.arange(grain.shape[0], dtype=np.float32)[:, None] - np.float32(up[0, 1])
    x = np.arange(grain.shape[1], dtype=np.float32)[None, :] - np.float32(up[0, 0])
    mm = x * np.float32(way[0]) + y * np.float32(way[1])  # towards the fingertips
    muscle = 1 + 0.35 / (1 + np.exp((mm - 5) / 22))  # the wrist and forearm are deeper than their outline tells
    rays = _SOFT * flesh * muscle * (1 + 0.035 * cloud + 0.02 * streak)
    rays += _BONE * _draw_bones(hand.bones, pose, grain)
    if hand.metal:
        rays += _METAL * _draw_metal(hand, pose, (grain.shape[0], grain.shape[1]))
    return rays, flesh > 1.2


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


def _grain(film: Array, noise: Array, unit: float, tone: np.random.Generator) -> Array:
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


_Marker = tuple[str, _Box, Array, Array, float]  # side, box, plate (H, W), letter (H, W), the plate's level


def _lay_markers(
    sides: Sequence[str], hand: NDArray[np.bool_], depth: Array, unit: float, rng: np.random.Generator
) -> list[_Marker]:
    """Side markers where the hand is not; none where there is no room."""
    height, width = hand.shape
    laid: list[_Marker] = []
    taken = cv2.dilate(hand.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    for side in sides:
        tall = unit * rng.uniform(26, 46)
        wide = tall * rng.uniform(0.75, 1.1)
        angle = rng.normal(0, 10) + rng.choice([0, 0, 0, 90, -90])
        level = rng.choice([0.03, 0.25, 0.0]) + rng.uniform(0, 0.1)
        plated, wanted = rng.random() < 0.6, rng.random() < 0.85
        initials = rng.random() < 0.3
        stroke = rng.uniform(0.09, 0.14) * (0.6 if initials else 1)
        places = rng.uniform(0, 1, (60, 2)) * (width, height)
        if not wanted:
            continue
        turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2]
        corners = np.array([[-wide, -tall], [wide, -tall], [wide, tall], [-wide, tall]]) / 2 @ turn.T
        reach = np.abs(corners).max(0) + 1
        for x, y in places:
            x0, y0 = int(x - reach[0]), int(y - reach[1])
            x1, y1 = int(np.ceil(x + reach[0])), int(np.ceil(y + reach[1]))
            if x0 < 0 or y0 < 0 or x1 >= width or y1 >= height:
                continue
            spot = (slice(y0, y1 + 1), slice(x0, x1 + 1))
            if taken[spot].any() or float(depth[spot].min()) < 2 * unit:
                continue
            plate, letter = np.zeros(hand.shape, np.uint8), np.zeros(hand.shape, np.uint8)
            cv2.fillConvexPoly(plate, _fixed(corners + np.array([x, y])), 255, cv2.LINE_AA, 4)
            for line in _letter(side, initials):
                points = (line * (0.62 * wide, 0.74 * tall)) @ turn.T + np.array([x, y])
                for a, b in pairwise(points):
                    across = (b - a)[::-1] * (-1, 1) / max(float(np.hypot(*(b - a))), 1e-6) * stroke * tall / 2
                    bar = np.stack([a + across, b + across, b - across, a - across])
                    cv2.fillConvexPoly(letter, _fixed(bar), 255, cv2.LINE_AA, 4)
                    cv2.circle(letter, _fixed(b).tolist(), round(8 * stroke * tall), 255, -1, cv2.LINE_AA, 4)
            taken[spot] = True
            box = (x0, y0, x1 + 1, y1 + 1)
            laid.append((side, box, plate / np.float32(255) * plated, letter / np.float32(255), float(level)))
            break
    return laid


def _letter(side: str, initials: bool) -> list[Array]:
    """L or R as strokes in -.5..+.5, smaller where a plate has its owner's initials below."""
    if side == "left":
        strokes = [[(-0.4, -0.5), (-0.4, 0.5), (0.4, 0.5)]]
    else:
        bowl = [(-0.4 + 0.45 + 0.32 * np.sin(a), -0.25 - 0.25 * np.cos(a)) for a in np.linspace(0, np.pi, 9)]
        strokes = [[(-0.4, 0.5), (-0.4, -0.5), *bowl, (-0.4, 0.0)], [(0.02, 0.0), (0.42, 0.5)]]
    lines = [np.array(stroke, float) for stroke in strokes]
    if not initials:
        return lines
    marks = [
        [(-0.4, 0.5), (-0.4, 0.28)],
        [(-0.15, 0.28), (0.05, 0.5), (0.05, 0.28)],
        [(0.25, 0.28), (0.42, 0.28), (0.42, 0.5), (0.25, 0.5)],
    ]
    return [line * (1, 0.62) - (0, 0.19) for line in lines] + [np.array(mark, float) for mark in marks]


def _fixed(points: Array) -> NDArray[np.int32]:
    """Points in OpenCV's fixed point with 4 bits after the point."""
    fixed: NDArray[np.int32] = np.rint(np.asarray(points) * 16).astype(np.int32)
    return fixed


def _bounds(mask: NDArray[np.bool_]) -> _Box:
    """The box (x0, y0, x1, y1) around a mask, the last ones excluded; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# ---------------------------------------------------------------------------------------------------------- the writing


@dataclass(frozen=True)
class Summary:
    """What a set holds: numbers of films (normal and abnormal ones), patients and studies."""

    films: int
    normal: int
    abnormal: int
    patients: int
    studies: int


def write_phantoms(
    out: Path,
    *,
    seed: int = 0,
    patients: int = DEFAULT,
    size: int = SIZE,
    on_film: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write the films of `plan_films` with their truth to `out`; `on_film(done, total)` follows each.

    A complete set with the same settings is left as it is; one that was interrupted is completed. Anything else in
    `out` raises InputError, as do settings out of bounds (`seed` >= 0, `patients` >= 4, `size` 64..2048) and a folder
    that cannot be written.
    """
    _check(seed=seed, patients=patients, size=size)
    plans = plan_films(seed=seed, patients=patients)
    settings = {"revision": REVISION, "seed": seed, "patients": patients, "size": size}
    summary = Summary(
        films=len(plans),
        normal=sum(not plan.finding for plan in plans),
        abnormal=sum(bool(plan.finding) for plan in plans),
        patients=patients,
        studies=len({(plan.patient, plan.study) for plan in plans}),
    )
    try:
        if _stands(out, plans, settings, _note(settings, summary)):
            return summary
        out.mkdir(parents=True, exist_ok=True)
        _put(out / _PROGRESS, json.dumps(settings).encode())
        for done, plan in enumerate(plans, start=1):
            if not (out / plan.path).exists():
                _write_film(out, draw_film(plan, seed=seed, size=size))
            if on_film is not None:
                on_film(done, len(plans))
        _put(out / _NOTE, _note(settings, summary).encode())
        (out / _PROGRESS).unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    return summary


def _stands(out: Path, plans: Sequence[FilmPlan], settings: dict[str, int], note: str) -> bool:
    """Whether the very same set is complete in `out`; InputError where something else is in the way."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out}: is a file; name a new or empty folder for the synthetic films")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found:
        return False
    planned = {file for plan in plans for file in plan.files}
    strange = (
        found - planned - {_NOTE, _PROGRESS} - {_draft(Path(file)).as_posix() for file in (*planned, _NOTE, _PROGRESS)}
    )
    written = _read(out / _NOTE) if _NOTE in found else None
    if not strange and written == note and planned <= found:
        (out / _PROGRESS).unlink(missing_ok=True)
        return True
    if not strange and written is None and _PROGRESS in found and _read(out / _PROGRESS) == json.dumps(settings):
        return False
    asked = ", ".join(f"{name} {value}" for name, value in settings.items())
    what = f"something else, e.g. {min(strange)}" if strange else "other or damaged synthetic films"
    raise InputError(
        f"{out}: holds {what}, not the synthetic films asked for ({asked}); name a new folder or remove this one"
    )


def _read(path: Path) -> str:
    """A small text file; bytes that are no text never equal one of ours."""
    return path.read_text(encoding="utf-8", errors="replace")


def _note(settings: dict[str, int], summary: Summary) -> str:
    """The text of SYNTHETIC.txt, which also tells one set from another."""
    counts = ", ".join(f"{value} {name}" for name, value in asdict(summary).items())
    return (
        "SYNTHETIC FILMS: drawn by a program, of nobody. They show that the path works, and nothing about real films.\n"
        f"Contents: {counts}.\n"
        f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}.\n"
        "Made by `anomaly phantom`. Beside each film: image1.json (finding, difficulty, carrier, boxes, ...),\n"
        "image1_hand.png (the hand), and for abnormal films image1_anomaly.png (the pixels the finding changed;\n"
        "of a missing bone those it would cover).\n"
    )


def _write_film(out: Path, film: Phantom) -> None:
    """Write the truth, then the film."""
    parts = {
        "": film.pixels,
        "_hand": film.hand.astype(np.uint8) * 255,
        "_anomaly": film.anomaly.astype(np.uint8) * 255,
    }
    (out / film.plan.path).parent.mkdir(parents=True, exist_ok=True)
    for file in film.plan.files:
        if file.endswith(".json"):
            _put(out / file, (json.dumps(film.truth()) + "\n").encode())
            continue
        kind = next(kind for kind in ("_hand", "_anomaly", "") if file.endswith(f"{kind}.png"))
        done, png = cv2.imencode(".png", parts[kind])
        assert done
        _put(out / file, png.tobytes())


def _draft(path: Path) -> Path:
    """The name of a file that is not whole yet; the same each time, so that an interruption leaves no litter."""
    return path.with_name(f".{path.name}.draft")


def _put(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    _draft(path).write_bytes(data)
    _draft(path).replace(path)


def _check(*, seed: int, patients: int, size: int) -> None:
    """Refuse settings out of bounds."""
    if seed < 0:
        raise InputError(f"seed {seed}: synthetic films need a seed of 0 or more")
    if patients < 4:
        raise InputError(f"{patients} patients: synthetic films need at least 4")
    if not 64 <= size <= 2048:
        raise InputError(f"size {size}: synthetic films have a longer side of 64 to 2048 pixels")
