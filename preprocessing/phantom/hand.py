"""What a hand consists of, with whatever has happened to it, in millimeters.

x runs towards the thumb, y towards the fingertips, z towards the back of the hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Fracture:
    """A break across a long bone, at `at` of its length."""

    at: float
    slope: float
    step: float  # sideways displacement of the loose fragment at the break, mm; it closes towards the far joint
    gap: float  # mm
    depth: float  # 0..1: how empty the gap is
    loose: float  # 1: the part towards the bone's end is displaced; -1: that towards its start
    jag: tuple[float, float]  # phases of the ragged edge


@dataclass(frozen=True)
class Spot:
    """A lesion inside one bone."""

    at: float  # 0..1 of its length; of a carpal always its middle
    off: float  # of its half-width
    radius: float  # mm
    change: float  # < 0 takes that share of bone away, > 0 adds to it
    lobes: tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """How a long bone departs from a tube with round ends."""

    cup: float = 0.0  # depth of the hollow at its start, mm
    notch: float = 0.0  # depth of the groove at its end, mm
    slant: float = 0.0  # of its start surface
    bow: float = 0.0  # sideways at mid-length, mm
    flat: float = 1.0  # depth over width


@dataclass(frozen=True)
class LongBone:
    """A long bone: a tube of revolution around a line, tables over its length."""

    name: str
    start: Array  # (3,) mm
    end: Array  # (3,) mm
    outer: Array  # (256,) half-width, mm
    inner: Array  # (256,) half-width of the marrow, mm
    spongy: Array  # (256,) density of the marrow's bone, 0..1 of cortex
    shape: Shape
    fracture: Fracture | None = None
    spot: Spot | None = None
    joins: tuple[str, ...] = ()  # a bridge adds what these bones lack of it, times `density`
    density: float = 1.0
    left: Array | None = None  # (256,) share of it that is left over its length

    @property
    def reach(self) -> float:
        """How far it comes to lie from the line between its ends, mm."""
        return float(self.outer.max()) + abs(self.shape.bow) + (abs(self.fracture.step) if self.fracture else 0.0)

    def width(self, at: float) -> float:
        """The half-width at 0..1 of its length, mm."""
        return float(self.outer[int(255 * at)])


@dataclass(frozen=True)
class ShortBone:
    """A carpal or sesamoid: a pebble with an outline in polar coordinates."""

    name: str
    center: Array  # (3,) mm
    outline: Array  # (72,) radius over angle, mm
    depth: float  # thickness, mm
    spot: Spot | None = None

    @property
    def reach(self) -> float:
        """How far it comes to lie from its center, mm."""
        return float(self.outline.max())


Ball = tuple[Array, float]  # center (3,) and radius, mm
Chain = tuple[tuple[Ball, Ball], ...]  # tapering capsules, each between two balls
Rod = tuple[Array, Array, float, float]  # start, end (3,), width, thickness, mm


@dataclass(frozen=True)
class Hand:
    """A posed hand."""

    bones: tuple[LongBone | ShortBone, ...]
    fingers: tuple[Chain, ...]  # index to little finger, thumb
    palm: tuple[tuple[Ball, ...], ...]  # groups, whose hulls are the rest of the outline: palm, forearm, and so on
    metal: tuple[Rod, ...] = ()

    def bone(self, name: str) -> LongBone | ShortBone:
        """The bone of that name."""
        return next(bone for bone in self.bones if bone.name == name)
