"""Findings, each in three grades: obvious to a lay eye, seen with care, barely visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from preprocessing.phantom.anatomy import direction
from preprocessing.phantom.hand import Array, Fracture, Hand, LongBone, Rod, Shape, ShortBone, Spot
from preprocessing.phantom.plan import DIFFICULTIES, check_finding

_SEVERAL = 3.0  # size from which on a spot is not one but three


@dataclass(frozen=True)
class Edge:
    """Where a bone now stops that went on before."""

    at: Array  # (3,) mm
    ahead: Array  # (3,) unit vector along the bone, to what is gone
    half: float  # half-width of the bone, mm
    reach: float  # how far beyond, mm, what is gone belongs to the edge


@dataclass(frozen=True)
class Lesion:
    """A hand with its finding."""

    hand: Hand
    edge: Edge | None = None  # of missing bone alone: the ground truth lies there


@dataclass(frozen=True)
class Strength:
    """What is varied until a finding is as visible as its grade asks: 1 is what the grade mostly looks like."""

    change: float = 1.0  # of density, thickness or displacement
    size: float = 1.0


def add_finding(hand: Hand, finding: str, difficulty: str, strength: Strength, rng: np.random.Generator) -> Lesion:
    """The hand with its finding; the same generator gives the same bone, place and shape in every pose of a hand.

    A finding or difficulty that does not exist raises InputError.
    """
    check_finding(finding, difficulty)
    if finding == "missing":
        return _amputate(hand, DIFFICULTIES.index(difficulty), strength, rng)
    return Lesion(_ADD[finding](hand, DIFFICULTIES.index(difficulty), strength, rng))


def _break(hand: Hand, grade: int, strength: Strength, rng: np.random.Generator) -> Hand:
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
    bone = _long_bone_of(hand, str(rng.choice(names)))
    radius = bone.name == "radius"
    at = rng.uniform(0.1, 0.13) if radius else rng.uniform(0.35, 0.65)
    half = min(bone.width(at), 6.0)
    sign = _sign(rng)
    broken = Fracture(
        at=at,
        slope=sign * rng.uniform(0.25, 0.75),
        step=-sign * half * (0.95, 0.38, 0.12)[grade] * min(strength.change, 2.0),
        gap=(1.1, 0.75, 0.5)[grade] * strength.size**1.5,
        depth=min((1.0, 0.85, 0.6)[grade] * strength.change, 1.0),
        loose=-1.0 if radius else 1.0,
        jag=_phases(rng),
    )
    return _with_bone(hand, replace(bone, fracture=broken))


def _erode(hand: Hand, grade: int, strength: Strength, rng: np.random.Generator) -> Hand:
    """A lytic lesion: a hole in the bone, down to a shade."""
    return _spot(hand, grade, -min((0.92, 0.72, 0.5)[grade] * strength.change, 1.0), strength.size, rng)


def _harden(hand: Hand, grade: int, strength: Strength, rng: np.random.Generator) -> Hand:
    """A sclerotic lesion: a patch as dense as cortex, down to a haze."""
    return _spot(hand, grade, (0.75, 0.45, 0.26)[grade] * strength.change, strength.size, rng)


def _spot(hand: Hand, grade: int, change: float, size: float, rng: np.random.Generator) -> Hand:
    """The hand with bone taken away or added in a lobed spot, the smaller the subtler; of the largest size three."""
    digit = int(rng.integers(2, 6))
    names = [f"proximal {digit}", f"metacarpal {digit}", f"middle {digit}", "proximal 1", "radius"]
    names += ["capitate", "scaphoid", "lunate"] if grade else []  # among carpals nothing is obvious from the side
    for name in rng.choice(names, 3 if size >= _SEVERAL else 1, replace=False):
        bone = hand.bone(str(name))
        at, off = rng.uniform(0.2, 0.8), _sign(rng) * rng.uniform(0, 0.22)
        if isinstance(bone, ShortBone):
            at, radius = 0.0, float(bone.outline.mean()) * (0.85, 0.64, 0.5)[grade]
        else:
            at = 0.05 + 0.06 * at if name == "radius" else at  # near the wrist, where every film has it
            radius = min(bone.width(at), 8.0) * (1.05, 0.8, 0.64)[grade]
        hand = _with_bone(hand, replace(bone, spot=Spot(at, off, radius * size, change, _phases(rng))))
    return hand


def _swell(hand: Hand, grade: int, strength: Strength, rng: np.random.Generator) -> Hand:
    """Soft tissue swollen around a finger's joint."""
    chain = hand.fingers[int(rng.integers(0, 5))]
    before, after = chain[int(rng.choice([1, 1, 2]))]
    ahead = (after[0] - before[0]) / np.linalg.norm(after[0] - before[0])
    more, reach = (0.56, 0.36, 0.2)[grade] * strength.change, (32, 23, 17)[grade] * strength.size
    bulge = [
        (before[0] + reach * t * ahead, before[1] * (0.75 + (0.25 + more) * np.cos(np.pi * t / 2) ** 2))
        for t in np.linspace(-1, 1, 11)
    ]
    return replace(hand, fingers=tuple((*c, *pairwise(bulge)) if c is chain else c for c in hand.fingers))


def _amputate(hand: Hand, grade: int, strength: Strength, rng: np.random.Generator) -> Lesion:
    """Missing bone: a finger's last phalanges with their flesh, or the end of one bone, resorbed to some share."""
    digit = int(rng.integers(2, 6))
    reach = 6 * strength.size
    if grade:
        names = (f"distal {digit}", "distal 1", f"middle {digit}", f"metacarpal {digit}", "ulna")
        bone = _long_bone_of(hand, str(rng.choice(names)))
        length = float(np.linalg.norm(bone.end - bone.start))
        lost = min(rng.uniform(0.8, 1.2) * (10, 8)[grade - 1] * strength.size, 0.6 * length)  # mm
        start, ahead = bone.start, _unit(bone.end - bone.start)
        mm = np.linspace(0, length, 256) - (length - lost)  # beyond the new end
        if bone.name == "ulna":  # it begins at the wrist
            mm, ahead, start = mm[::-1], -ahead, bone.end
        gone = min((0.6, 0.4)[grade - 1] * strength.change, 1.0)
        at, half = start + (length - lost) * ahead, float(bone.outer[mm > 0].max())
        left = 1 - gone * np.clip(mm + 0.5, 0, 1)
        return Lesion(_with_bone(hand, replace(bone, left=left)), Edge(at, ahead, half, reach))
    level = int(rng.integers(2))
    parts = ("metacarpal", "proximal", "middle", "distal")
    remaining, first, *_ = bones = [_long_bone_of(hand, f"{part} {digit}") for part in parts[level:]]
    chain = hand.fingers[digit - 2]
    (joint, radius), (beyond, _) = chain[level]
    stump = (*chain[:level], ((joint, radius), (joint + 0.12 * (beyond - joint), 0.93 * radius)))
    removed = {bone.name for bone in bones[1:]}
    amputated = replace(
        hand,
        bones=tuple(bone for bone in hand.bones if bone.name not in removed),
        fingers=tuple(stump if c is chain else c for c in hand.fingers),
    )
    half = float(first.outer[:64].max())
    return Lesion(amputated, Edge(remaining.end, _unit(first.end - first.start), half, reach))


def _fuse(hand: Hand, grade: int, strength: Strength, rng: np.random.Generator) -> Hand:
    """A finger's joint closed by a bridge of bone."""
    digit = int(rng.integers(2, 6))
    pairs = (("metacarpal", "proximal"), ("proximal", "middle"), ("proximal", "middle"), ("middle", "distal"))
    near, far = (_long_bone_of(hand, f"{part} {digit}") for part in pairs[int(rng.integers(4))])
    half = min(float(near.outer.max()), float(far.outer[:128].max())) * (1.12, 0.98, 0.92)[grade]
    half *= strength.size**0.4  # it grows along the finger rather than out of it
    reach = (7.0, 5.5, 5.0)[grade] * strength.size * _unit(far.end - near.start)
    outer = half * (1 - np.abs(np.linspace(-1, 1, 256)) ** 3) ** 0.5
    inner, spongy = np.maximum(outer - 0.9, 0), np.full(256, (0.42, 0.34, 0.28)[grade])
    bridge = LongBone(
        f"bridge {digit}",
        near.end - reach,
        far.start + reach,
        outer,
        inner,
        spongy,
        Shape(),
        joins=(near.name, far.name),
        density=(1.5, 0.95, 0.5)[grade] * strength.change,
    )
    return replace(hand, bones=(*hand.bones, bridge))


def _fix(hand: Hand, grade: int, strength: Strength, rng: np.random.Generator) -> Hand:
    """Metal in or on a long bone: a plate with screws, two crossing wires, or one short pin."""
    digit = int(rng.integers(2, 6))
    names = [f"proximal {digit}", f"metacarpal {digit}", f"metacarpal {digit}", "metacarpal 1", "radius"]
    bone = _long_bone_of(hand, str(rng.choice(names)))
    span = (0.03, 0.25) if bone.name == "radius" else (0.14, 0.86)
    low, high = (bone.start + t * (bone.end - bone.start) for t in span)
    across = np.cross(high - low, direction(90, 45))
    across *= _sign(rng) * bone.width(sum(span) / 2) / np.linalg.norm(across)
    middle, along = low + rng.uniform(0.3, 0.7) * (high - low), 0.16 * (high - low)
    if grade == 2:
        rods: list[Rod] = [(middle - along + 0.3 * across, middle + along - 0.3 * across, 0.8, 0.6)]
    elif grade == 1:
        rods = [(low + flip * 0.7 * across, high - flip * 0.75 * across, 1.15, 1.1) for flip in (1, -1)]
    else:
        rods = [(low + 0.45 * across, high + 0.45 * across, 3.1, 1.5)]
        for at in np.linspace(low + 0.06 * (high - low), low + 0.94 * (high - low), 5):
            rods.append((at + 0.6 * across, at - 1.25 * across, 1.6, 2.0))
            rods.append((at + 0.75 * across, at + 0.55 * across, 3.4, 1.6))
    metal = [(start, end, strength.size * width, strength.change * thick) for start, end, width, thick in rods]
    return replace(hand, metal=tuple(metal))


def _unit(vector: Array) -> Array:
    """The vector at length 1."""
    return np.asarray(vector / np.linalg.norm(vector))


def _sign(rng: np.random.Generator) -> float:
    """To one side or the other."""
    return 1.0 if rng.random() < 0.5 else -1.0


def _phases(rng: np.random.Generator) -> tuple[float, float]:
    """Two angles, for an outline no two films share."""
    first, second = rng.uniform(0, 2 * np.pi, 2)
    return float(first), float(second)


def _long_bone_of(hand: Hand, name: str) -> LongBone:
    """The long bone of that name."""
    bone = hand.bone(name)
    assert isinstance(bone, LongBone)
    return bone


def _with_bone(hand: Hand, bone: LongBone | ShortBone) -> Hand:
    """The hand with that bone in the place of its namesake."""
    return replace(hand, bones=tuple(bone if old.name == bone.name else old for old in hand.bones))


# By the names of `FINDINGS` but `missing`, which has an edge too; grades are places in `DIFFICULTIES`.
_ADD: dict[str, Callable[[Hand, int, Strength, np.random.Generator], Hand]] = {
    "fracture": _break,
    "hardware": _fix,
    "lytic": _erode,
    "sclerotic": _harden,
    "swelling": _swell,
    "fused": _fuse,
}
