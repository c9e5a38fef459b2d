"""Where and how strong a study's finding is, so that every film of the study shows it as its grade asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.phantom.findings import Edge, Lesion, Strength, add_finding
from preprocessing.phantom.hand import Array, Hand
from preprocessing.phantom.plan import FilmPlan
from preprocessing.phantom.projection import Pose, Window, along_line
from preprocessing.phantom.scene import Change, Scene
from preprocessing.phantom.visibility import GRADES, MEASURED_SIZE, NormalTwin, Visibility

_SHARED = 24  # places tried for all films of a study
_PLACES = 200  # places tried for each film
_SIZES = (1.0, 1.3, 1.7, 2.2, 3.0)  # of one place after the other
_STEPS = 6  # strengths at most at one place
_SLACK = 1.15  # how far from proportional to strength the figures may be
_STRONGEST, _FAINTEST = 4.0, 0.02
_INSIDE = 1.0  # mm of the stump itself that belong to the ground truth of missing bone


@dataclass(frozen=True)
class Shown:
    """Where and how strong a finding is on one film, and how visible that makes it."""

    place: int  # which of the places drawn
    strength: Strength
    visibility: Visibility


@dataclass(frozen=True)
class Study:
    """All that a finding's place and strength depend on."""

    seed: int
    patient: int
    study: int
    finding: str
    difficulty: str
    images: tuple[int, ...]
    views: tuple[str, ...]

    @classmethod
    def of(cls, plan: FilmPlan, seed: int) -> Study:
        """The study that a film is of: that film alone where its plan has no views of others."""
        images = tuple(range(1, len(plan.views) + 1)) if plan.views else (plan.image,)
        views = plan.views or (plan.view,)
        return cls(seed, plan.patient, plan.study, plan.finding, plan.difficulty, images, views)

    def lesion(self, hand: Hand, place: int, strength: Strength) -> Lesion:
        """The hand with the finding. The stream is the study's, so that all its films show the same one."""
        rng = np.random.default_rng([self.seed, self.patient, self.study, place, 6])
        return add_finding(hand, self.finding, self.difficulty, strength, rng)

    def drawn(self, scene: Scene, shown: Shown) -> tuple[Change | None, NDArray[np.bool_]]:
        """One of the study's films with the finding, where that changes the film, and the ground truth (H, W)."""
        return _drawn(scene, self.lesion(scene.hands[0].hand, shown.place, shown.strength))


@lru_cache(maxsize=64)
def settle(study: Study) -> tuple[Shown, ...]:
    """Choose the first place at which one strength meets the grade on every film of the study.

    Places are drawn one after the other, each at another size. A bone that stands free on one view lies behind others
    on the next: where none of the first `_SHARED` places does, films share one of them and each has its own strength;
    where that isn't possible either, each film has the first place of `_PLACES` that is fit for it. The films are
    measured at `MEASURED_SIZE`, whatever size they are drawn at. RuntimeError if a film has no such place: never seen,
    and better than a film that is not what its plan says.
    """
    scenes = [
        Scene.draw((study.seed, study.patient, study.study, image), view, MEASURED_SIZE, noisy=False)
        for image, view in zip(study.images, study.views, strict=True)
    ]
    films = [(scene, NormalTwin.of(scene.film, scene.noise)) for scene in scenes]
    for place in range(_SHARED):
        if (shared := _settle_at(study, films, place)) is not None:
            return shared
    fit: dict[int, Shown] = {}  # by the film's number
    for place in range(_PLACES):
        here = {number: shown[0] for number, film in enumerate(films) if (shown := _settle_at(study, [film], place))}
        if len(here) == len(films):
            return tuple(here.values())
        fit = here | fit
        if place >= _SHARED and len(fit) == len(films):
            return tuple(fit[number] for number in range(len(films)))
    raise RuntimeError(f"{study}: a film has no place where a finding meets its grade; use another seed")


def _settle_at(study: Study, films: Sequence[tuple[Scene, NormalTwin]], place: int) -> tuple[Shown, ...] | None:
    """The strength at one place that meets the grade on all films, if there is one, and what it measures on each.

    Contrast and detectability are nearly proportional to it, so a step or two find it, or show that there is none.
    """
    grade, change = GRADES[study.difficulty], 1.0
    for _ in range(_STEPS):
        strength = Strength(change, _SIZES[place % len(_SIZES)])
        shown, least, most = [], 0.0, inf
        for scene, twin in films:
            measured = _measured(scene, twin, study.lesion(scene.hands[0].hand, place, strength))
            if measured.length < max(grade.length, 1):
                return None
            low, high = grade.factors(measured)
            least, most = max(least, low), min(most, high)
            if least > _SLACK * most:
                return None
            shown.append(Shown(place, strength, measured))
        if all(grade.met_by(each.visibility) for each in shown):
            return tuple(shown)
        change *= sqrt(least * most) if most < inf else _SLACK * least
        if not _FAINTEST <= change <= _STRONGEST:
            return None
    return None


def _measured(scene: Scene, twin: NormalTwin, lesion: Lesion) -> Visibility:
    """How visible a lesion is on one film."""
    change, mask = _drawn(scene, lesion)
    if change is None:
        return Visibility(0.0, 0.0, 0.0)
    return twin.measure(change.window, change.film, mask[change.window])


def _drawn(scene: Scene, lesion: Lesion) -> tuple[Change | None, NDArray[np.bool_]]:
    """What a lesion changes of the film, and its ground truth (H, W): what it changed, at a stump what lies there."""
    change, anomaly = scene.changed(lesion.hand), np.zeros(scene.depth.shape, bool)
    if change is not None:
        healthy, sick = (np.clip(film, 0, 1) for film in (scene.film[change.window], change.film))
        mask = _changed_pixels(scene.lit[change.window] * np.abs(sick - healthy), least=2 / 255)
        if lesion.edge is not None:
            mask &= _beside(lesion.edge, scene.hands[0].pose, change.window)
        anomaly[change.window] = mask
    return change, anomaly


def _changed_pixels(change: Array, *, least: float) -> NDArray[np.bool_]:
    """The pixels (H, W) that a finding changed: by `least`, or by a share of its largest change."""
    most = float(change.max())
    mask = change > min(max(least, 0.06 * most), 0.3 * most)
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)


def _beside(edge: Edge, pose: Pose, window: Window) -> NDArray[np.bool_]:
    """The band (h, w) in a window where a bone now stops: as wide as the bone."""
    ends = pose.film(np.stack([edge.at + mm * edge.ahead for mm in (-_INSIDE, edge.reach)]))
    s, d, length = along_line(ends, window)
    return np.asarray((s >= 0) & (s <= length) & (np.abs(d) <= pose.scale * (edge.half + 1)))
