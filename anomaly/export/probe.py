"""How far a graph is from the detector it was written from: on made-up films in the bundle, and on any others.

A score's difference is relative to the score, or to the standard deviation of that score among normal films where that
is greater: standardized scores pass through zero. A map's is relative to the greatest value of the maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.export.bundle import MODEL, PROBE, read_bundle
from anomaly.export.onnx_session import open_session

AT_MOST = {"scores": 1e-5, "map": 1e-4, "reconstruction": 1e-4}
"""Output -> the difference that is rounding, unless a film's own rounding moves it by more than a tenth of that."""
ODD = 0.05
"""Share of the films that may differ by more: two libraries round alike but for a film now and then, in which a cell
lies midway between two kinds of structure and counts as the other one."""
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Difference:
    """How far one output is off."""

    output: str  # the score's name, "map" or "reconstruction"
    largest: float  # over the films
    at_most: float  # what is rounding
    beyond: int  # films that differ by more
    films: int
    flags: int = 0  # films that one flags and the other doesn't, where there is a threshold
    at_threshold: int = 0  # those of them whose score is the threshold but for rounding

    @property
    def sound(self) -> bool:
        """Whether no flag differs that rounding does not decide, and hardly a film by more than rounding."""
        return self.flags == self.at_threshold and self.beyond <= ODD * self.films


def run_graph(session: Any, film: NDArray[np.float32], mask: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return the outputs of a graph by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"film": film, "mask": mask}), strict=True))


def compare(
    score_names: list[str],
    expected: Arrays,
    found: Arrays,
    spread: NDArray[np.float64],
    thresholds: Mapping[str, float] | None = None,
    rounding: Mapping[str, float] | None = None,
) -> list[Difference]:
    """Return the differences of each score and picture.

    expected, found  "scores" (N, K), "map" and "reconstruction" (N, 1, S, S) where there are any: of torch, of the
    graph.    spread  (K,) standard deviation of each score among normal films, 0 where that isn't known.
    thresholds  by score: from where a film is flagged.    rounding  as `Bundle` has it; None: `AT_MOST`.
    """
    differences = []
    limits = rounding or {}
    for column, name in enumerate(score_names):
        right, value = expected["scores"][:, column], found["scores"][:, column]
        scale = np.maximum(np.maximum(np.abs(right), spread[column]), np.finfo(float).tiny)
        limit, at = limits.get(name, AT_MOST["scores"]), (thresholds or {}).get(name, np.nan)
        flags = ((value >= at) != (right >= at)) & ~np.isnan(at)
        near = np.abs(right - at) <= limit * scale
        found_of_score = _difference(name, np.abs(value - right) / scale, limit)
        differences.append(replace(found_of_score, flags=int(flags.sum()), at_threshold=int((flags & near).sum())))
    for name in ("map", "reconstruction"):
        if name in expected:
            apart = np.abs(found[name] - expected[name]).max(axis=(1, 2, 3))
            greatest = max(float(np.abs(expected[name]).max()), float(np.finfo(np.float32).tiny))
            differences.append(_difference(name, apart / greatest, limits.get(name, AT_MOST[name])))
    return differences


def _difference(name: str, relative: NDArray[np.float64], at_most: float) -> Difference:
    relative = np.nan_to_num(relative, nan=np.inf)
    return Difference(name, float(relative.max()), at_most, int((relative > at_most).sum()), len(relative))


def check_bundle(folder: Path) -> list[Difference]:
    """Return how far a bundle's detector is, on this machine, from what torch said of its made-up films.

    Raises InputError where the bundle is damaged.
    """
    from safetensors.numpy import load_file

    bundle = read_bundle(folder)
    probe = load_file(folder / PROBE)
    found = run_graph(open_session(folder / MODEL, threads=1), probe["film"], probe["mask"])
    return compare(bundle.score_names, probe, found, probe["spread"], rounding=bundle.rounding)
