"""A posed hand along every ray: millimeters of bone, soft tissue and metal in each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.phantom.hand import Array, Hand, LongBone, ShortBone, Spot

Area = tuple[float, float, float, float]  # x0, y0, x1, y1, pixels
Window = tuple[slice, slice]  # rows, columns
Patch = tuple[Window, Array]  # of a drawing, and where it belongs


@dataclass(frozen=True)
class Pose:
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

    def fitted(self, hand: Hand, area: Area, fill: float, slack: tuple[float, float]) -> Pose:
        """The pose that fits wrist to fingertips into `fill` of an area; `slack` 0..1 says where in the rest."""
        balls = [ball for chain in hand.fingers for pair in chain for ball in pair] + list(hand.palm[0])
        balls += [(center - (0, 24.0, 0), radius) for center, radius in hand.palm[0][-2:]]  # a stub of forearm
        points = self.film(np.array([center for center, _ in balls]))  # (N, 2) in mm as yet
        radii = np.array([radius for _, radius in balls])[:, None]
        low, high = (points - radii).min(0), (points + radii).max(0)
        room = np.array([area[2] - area[0], area[3] - area[1]])
        scale = float((fill * room / (high - low)).min())
        corner = np.array(area[:2]) + np.array(slack) * (room - scale * (high - low))
        x, y = corner - scale * low
        return replace(self, scale=scale, offset=(float(x), float(y)))


def draw_bones(bones: Sequence[LongBone | ShortBone], pose: Pose, grain: Array) -> Array:
    """The millimetres of cortex-equal bone along each ray, (H, W) float32.

    Where a pixel is coarser than a joint's gap, finer rays are averaged: else small films would lose what is thin.
    """
    fine = max(1, round(1.6 / pose.scale))
    if fine > 1:
        x, y = pose.offset
        offset = (fine * (x + 0.5) - 0.5, fine * (y + 0.5) - 0.5)
        grid = (fine * grain.shape[1], fine * grain.shape[0])
        pose = replace(pose, scale=fine * pose.scale, offset=offset)
        drawn = draw_bones(bones, pose, cv2.resize(grain, grid, interpolation=cv2.INTER_NEAREST))
        return np.asarray(cv2.resize(drawn, grain.shape[::-1], interpolation=cv2.INTER_AREA))
    total = np.zeros_like(grain)
    near = _near(bones, pose, (grain.shape[0], grain.shape[1]))
    patches = {bone.name: _draw_bone(bone, pose, grain) for bone in near}
    for bone in near:
        if (placed := patches[bone.name]) is None:
            continue
        window, patch = placed
        if isinstance(bone, LongBone) and bone.joins:
            joined = np.zeros_like(grain)
            for neighbor in filter(None, map(patches.get, bone.joins)):
                joined[neighbor[0]] += neighbor[1]
            patch = bone.density * np.maximum(patch - joined[window], 0)
        total[window] += patch
    return total


def _near(bones: Sequence[LongBone | ShortBone], pose: Pose, shape: tuple[int, int]) -> list[LongBone | ShortBone]:
    """The bones that may reach into the film: most don't where it is a part of a larger one."""
    long = [(bone.start, bone.end) if isinstance(bone, LongBone) else (bone.center, bone.center) for bone in bones]
    ends = pose.film(np.array(long))  # (N, 2, 2)
    reach = pose.scale * np.array([bone.reach for bone in bones])[:, None] + 4
    low, high = ends.min(1) - reach, ends.max(1) + reach
    inside = ((high > 0) & (low < shape[::-1])).all(1)
    return [bone for bone, keep in zip(bones, inside, strict=True) if keep]


def _draw_bone(bone: LongBone | ShortBone, pose: Pose, grain: Array) -> Patch | None:
    """One bone's share of that; None where it lies outside the film."""
    return _draw_long(bone, pose, grain) if isinstance(bone, LongBone) else _draw_short(bone, pose, grain)


def _draw_long(bone: LongBone, pose: Pose, grain: Array) -> Patch | None:
    """The millimetres of cortex-equal bone along each ray through a long bone: (window, patch)."""
    ends = pose.film(np.stack([bone.start, bone.end]))
    true = float(np.linalg.norm(bone.end - bone.start))
    widest = float(bone.outer.max())
    window = window_around(ends, pose.scale * bone.reach + 2, grain.shape)
    if window is None:
        return None
    s, d, pixels = along_line(ends, window)
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
    if bone.left is not None:
        patch = patch * bone.left.take(index, mode="clip")
    return window, np.asarray(patch * (bone.shape.flat / max(short, 0.6)), dtype=np.float32)


def _draw_short(bone: ShortBone, pose: Pose, grain: Array) -> Patch | None:
    """The millimetres of cortex-equal bone along each ray through a carpal: (window, patch)."""
    center = pose.film(bone.center)
    reach = bone.reach
    window = window_around(center[None], pose.scale * reach + 2, grain.shape)
    if window is None:
        return None
    up = pose.film(bone.center + np.array([0.0, 1.0, 0.0])) - center
    y, x, _ = along_line(np.stack([center, center + up]), window)
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


def _draw_spot(spot: Spot, patch: Array, whole: Array, s: Array, d: Array) -> Array:
    """The patch with bone taken away or added: `whole` its own depth, (s, d) the place from the spot's middle, mm."""
    angle = np.arctan2(s, d)
    edge = spot.radius * (1 + 0.16 * np.cos(2 * angle + spot.lobes[0]) + 0.1 * np.cos(3 * angle + spot.lobes[1]))
    weight = np.clip((1.15 - np.hypot(s, d) / edge) / 0.35, 0, 1)
    weight = weight * weight * (3 - 2 * weight)
    return np.asarray(patch * (1 + spot.change * weight) if spot.change < 0 else patch + spot.change * weight * whole)


def draw_palm(hand: Hand, pose: Pose, shape: tuple[int, int]) -> Array:
    """The squared millimeters of soft tissue along each ray through all but the fingers, (H, W) float32."""
    outline = np.zeros(shape, np.uint8)
    circle = np.stack([np.cos(np.linspace(0, 2 * np.pi, 32)), np.sin(np.linspace(0, 2 * np.pi, 32))], axis=-1)
    for group in hand.palm:
        rims = np.concatenate([pose.film(center) + pose.scale * radius * circle for center, radius in group])
        hull = cv2.convexHull(rims.astype(np.float32))
        cv2.fillConvexPoly(outline, np.rint(hull * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(outline, (0, 0), max(1.9 * pose.scale, 0.5))  # rounds the corners where hulls meet
    return np.asarray(_inflate(soft > 127, 12.5 * pose.scale) / np.float32(pose.scale**2))


def draw_fingers(hand: Hand, pose: Pose, palm: Array) -> Array:
    """The millimeters of soft tissue along each ray, (H, W) float32, of fingers and `palm`; > 0 inside the outline.

    Squared thicknesses add up: of a round finger that is 4 (r² - d²), of the palm what `_inflate` gives; so nothing
    jumps where they meet.
    """
    squared = palm.copy()
    for chain in hand.fingers:
        links = [(pose.film(np.stack([a, b])), pose.scale * ra, pose.scale * rb) for (a, ra), (b, rb) in chain]
        thick = max(max(ra, rb) for _, ra, rb in links)
        window = window_around(np.concatenate([ends for ends, _, _ in links]), thick + 2, palm.shape)
        if window is None:
            continue
        finger = np.float32(0)
        for ends, ra, rb in links:
            s, d, length = along_line(ends, window)
            at = np.clip(s, 0, length)
            radius = ra + (rb - ra) / length * at
            finger = np.maximum(finger, 4 * (radius * radius - (s - at) ** 2 - d * d))
        squared[window] += finger / np.float32(pose.scale**2)
    return np.asarray(np.sqrt(squared), dtype=np.float32)


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


def draw_metal(hand: Hand, pose: Pose, shape: tuple[int, int]) -> Array:
    """The millimetres of metal along each ray, (H, W) float32."""
    total = np.zeros(shape, np.float32)
    for start, end, width, thickness in hand.metal:
        ends = pose.film(np.stack([start, end]))
        window = window_around(ends, pose.scale * width + 2, shape)
        if window is None:
            continue
        s, d, length = along_line(ends, window)
        beyond = s - np.clip(s, 0, length)
        wide = pose.scale * width
        cover = min(1.0, wide) * np.clip(0.5 * wide + 0.5 - np.hypot(d, beyond), 0, 1)
        total[window] = np.maximum(total[window], thickness * cover)
    return total


def window_around(points: Array, reach: float, shape: tuple[int, int]) -> Window | None:
    """Rows and columns within `reach` pixels of the points (N, 2), or None where that misses the film."""
    x0, y0 = np.floor(points.min(0) - reach).astype(int)
    x1, y1 = np.ceil(points.max(0) + reach).astype(int) + 1
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, shape[1]), min(y1, shape[0])
    return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None


def along_line(ends: Array, window: Window) -> tuple[Array, Array, float]:
    """Pixels along and across the line between two points (2, 2), over a window, and its length."""
    line = ends[1] - ends[0]
    length = max(float(np.hypot(*line)), 1e-3)
    ux, uy = (line / length).astype(np.float32)
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(ends[0, 0])
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(ends[0, 1])
    return x * ux + y * uy, y * ux - x * uy, length
