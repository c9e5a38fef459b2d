"""Findings, each in three grades: obvious to a lay eye, seen with care, barely visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from preprocessing import InputError
from preprocessing.phantom.anatomy import direction
from preprocessing.phantom.hand import Fracture, Hand, LongBone, Rod, Shape, ShortBone, Spot
from preprocessing.phantom.plan import DIFFICULTIES, FINDINGS, FilmPlan


def add_finding(hand: Hand, plan: FilmPlan, seed: int) -> Hand:
    """The hand with its finding. The stream is the study's, so that all its films show the same one."""
    for name, value, allowed in (("finding", plan.finding, FINDINGS), ("difficulty", plan.difficulty, DIFFICULTIES)):
        if value not in allowed:
            raise InputError(f"no {name} {value!r}; there are: {', '.join(allowed)}")
    rng = np.random.default_rng([seed, plan.patient, plan.study, 0, 6])
    return _ADD[plan.finding](hand, DIFFICULTIES.index(plan.difficulty), rng)


def _break(hand: Hand, grade: int, rng: np.random.Generator) -> Hand:
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
        step=-sign * half * (0.95, 0.38, 0.12)[grade],
        gap=(1.1, 0.75, 0.5)[grade],
        depth=(1.0, 0.85, 0.6)[grade],
        loose=-1.0 if radius else 1.0,
        jag=_phases(rng),
    )
    return _with_bone(hand, replace(bone, fracture=broken))


def _erode(hand: Hand, grade: int, rng: np.random.Generator) -> Hand:
    """A lytic lesion: a hole in the bone, down to a shade."""
    return _spot(hand, grade, (-0.92, -0.72, -0.5)[grade], rng)


def _harden(hand: Hand, grade: int, rng: np.random.Generator) -> Hand:
    """A sclerotic lesion: a patch as dense as cortex, down to a haze."""
    return _spot(hand, grade, (0.75, 0.45, 0.26)[grade], rng)


def _spot(hand: Hand, grade: int, change: float, rng: np.random.Generator) -> Hand:
    """The hand with bone taken away or added in a lobed spot, the smaller the subtler."""
    digit = int(rng.integers(2, 6))
    names = [f"proximal {digit}", f"metacarpal {digit}", f"middle {digit}", "proximal 1", "radius"]
    names += ["capitate", "scaphoid", "lunate"] if grade else []  # among carpals nothing is obvious from the side
    bone = hand.bone(str(rng.choice(names)))
    at, off = rng.uniform(0.2, 0.8), _sign(rng) * rng.uniform(0, 0.22)
    if isinstance(bone, ShortBone):
        spot = Spot(0, off, float(bone.outline.mean()) * (0.85, 0.64, 0.5)[grade], change, _phases(rng))
        return _with_bone(hand, replace(bone, spot=spot))
    if bone.name == "radius":
        at = 0.05 + 0.06 * at  # near the wrist, where every film has it
    spot = Spot(at, off, min(bone.width(at), 8.0) * (1.05, 0.8, 0.64)[grade], change, _phases(rng))
    return _with_bone(hand, replace(bone, spot=spot))


def _swell(hand: Hand, grade: int, rng: np.random.Generator) -> Hand:
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


def _amputate(hand: Hand, grade: int, rng: np.random.Generator) -> Hand:
    """Missing bone: two phalanges with their flesh, the last one with its flesh, or the tip of the last one alone."""
    digit = int(rng.integers(2, 6))
    if grade == 2:
        bone = _long_bone_of(hand, f"distal {digit}")
        remaining = np.clip(rng.uniform(0.34, 0.46) * 16 - np.linspace(0, 16, 256), 0, 1)
        return _with_bone(hand, replace(bone, outer=bone.outer * remaining, inner=bone.inner * remaining))
    removed = {f"distal {digit}"} | ({f"middle {digit}"} if grade == 0 else set())
    chain = hand.fingers[digit - 2]
    (joint, radius), (beyond, _) = chain[1 + grade]
    stump = (*chain[: 1 + grade], ((joint, radius), (joint + 0.12 * (beyond - joint), 0.93 * radius)))
    return replace(
        hand,
        bones=tuple(bone for bone in hand.bones if bone.name not in removed),
        fingers=tuple(stump if c is chain else c for c in hand.fingers),
    )


def _fuse(hand: Hand, grade: int, rng: np.random.Generator) -> Hand:
    """A finger's joint closed by a bridge of bone."""
    digit = int(rng.integers(2, 6))
    pairs = (("metacarpal", "proximal"), ("proximal", "middle"), ("proximal", "middle"), ("middle", "distal"))
    near, far = (_long_bone_of(hand, f"{part} {digit}") for part in pairs[int(rng.integers(4))])
    half = min(float(near.outer.max()), float(far.outer[:128].max())) * (1.12, 0.98, 0.92)[grade]
    reach = (7.0, 5.0, 3.6)[grade] * (far.end - near.start) / np.linalg.norm(far.end - near.start)
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
        density=(1.0, 0.95, 0.78)[grade],
    )
    return replace(hand, bones=(*hand.bones, bridge))


def _fix(hand: Hand, grade: int, rng: np.random.Generator) -> Hand:
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
        return replace(hand, metal=((middle - along + 0.3 * across, middle + along - 0.3 * across, 0.8, 0.6),))
    if grade == 1:
        wires = [(low + flip * 0.7 * across, high - flip * 0.75 * across, 1.15, 1.1) for flip in (1, -1)]
        return replace(hand, metal=tuple(wires))
    rods: list[Rod] = [(low + 0.45 * across, high + 0.45 * across, 3.1, 1.5)]
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


def _long_bone_of(hand: Hand, name: str) -> LongBone:
    """The long bone of that name."""
    bone = hand.bone(name)
    assert isinstance(bone, LongBone)
    return bone


def _with_bone(hand: Hand, bone: LongBone | ShortBone) -> Hand:
    """The hand with that bone in the place of its namesake."""
    return replace(hand, bones=tuple(bone if old.name == bone.name else old for old in hand.bones))


# By the names of `FINDINGS`; grades are places in `DIFFICULTIES`.
_ADD: dict[str, Callable[[Hand, int, np.random.Generator], Hand]] = {
    "fracture": _break,
    "hardware": _fix,
    "lytic": _erode,
    "sclerotic": _harden,
    "swelling": _swell,
    "missing": _amputate,
    "fused": _fuse,
}
