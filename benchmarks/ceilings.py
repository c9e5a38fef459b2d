"""Ceilings, not detectors: how well observers that know a lesion's place and shape tell built-in films apart.

The films are SYNTHETIC ones of `anomaly phantom`, or a cache prepared from them; each abnormal film is drawn again at
256 px, beside its normal twin. Two observers, both linear and both told place and shape:

ideal            to whom structure is noise, independent from pixel to pixel: the mean over films of Phi(d' / sqrt(2)),
                 d' as the film's JSON has it under `detectability`.
matched filter   that must use the structure as it is: the change, divided by the twin's local variance, is correlated
                 with the film less its local mean (Gaussian, 6 pixels), for the film and for its twin; ROC-AUC over
                 films and twins together. The template is taken from noise-free drawings.

The first is a ceiling for any detector. The second shows how much of it the structure of an unknown hand costs one
simple observer; across kinds its responses are not comparable, so that pooled rows lie below those of kinds. Intervals
are of 95 %, by bootstrap over patients.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import erf
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.ranking import roc_auc
from anomaly.formatting import markdown, with_interval
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.phantom import DIFFICULTIES, FINDINGS, FilmPlan, observe, plan_films, set_settings

RESAMPLES = 1000


@dataclass(frozen=True)
class Observed:
    """One abnormal film and what the observers make of it."""

    plan: FilmPlan
    detectability: float  # d'
    response: float  # of the matched filter to the film, in units of its noise
    response_to_twin: float


def films_folder(place: Path) -> Path:
    """The folder of films: `place`, or where a cache was prepared from."""
    if place.is_dir():
        return place
    if not place.exists():
        raise InputError(f"{place}: no such cache or folder; draw films with `anomaly phantom FOLDER`")
    source = Path(Cache(place).source_path)
    if not source.is_dir():
        raise InputError(f"{place}: prepared from {source}, which is gone; name the folder of films")
    return source


def observed(seed: int, patients: int) -> Iterator[Observed]:
    """Let the observers look at every abnormal film of a set."""
    for plan in plan_films(seed=seed, patients=patients):
        if plan.finding:
            seen = observe(plan, seed=seed)
            shown = [film - cv2.GaussianBlur(film, (0, 0), 6.0) for film in (seen.film, seen.twin)]
            responses = [float((seen.template * film).sum()) for film in shown]
            yield Observed(plan, seen.visibility.detectability, *responses)


def mean_ideal(films: Sequence[Observed]) -> float:
    """The ideal observer's ROC-AUC, mean over films."""
    return float(np.mean([0.5 + 0.5 * erf(film.detectability / 2) for film in films]))


def matched_filter(films: Sequence[Observed]) -> float:
    """The matched filter's ROC-AUC, films against twins."""
    responses = [film.response for film in films] + [film.response_to_twin for film in films]
    return roc_auc([1] * len(films) + [0] * len(films), responses)


def interval(
    films: Sequence[Observed], figure: Callable[[Sequence[Observed]], float], *, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a figure over draws of patients."""
    by_patient: dict[int, list[Observed]] = {}
    for film in films:
        by_patient.setdefault(film.plan.patient, []).append(film)
    groups = list(by_patient.values())
    rng = np.random.default_rng(seed)
    drawn: NDArray[np.int64] = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    figures = [figure([film for number in row for film in groups[number]]) for row in drawn]
    low, high = np.quantile(figures, (0.025, 0.975))
    return float(low), float(high)


def table(films: Sequence[Observed]) -> list[str]:
    """The Markdown table: a row for each difficulty, each kind of finding, and all."""
    groups = {
        **{name: [film for film in films if film.plan.difficulty == name] for name in DIFFICULTIES},
        **{name: [film for film in films if film.plan.finding == name] for name in FINDINGS},
        "all": list(films),
    }
    rows = []
    for name, group in groups.items():
        if group:
            figures = [with_interval(f(group), interval(group, f)) for f in (mean_ideal, matched_filter)]
            median = f"{np.median([film.detectability for film in group]):.0f}"
            rows.append([name, str(len(group)), str(len({film.plan.patient for film in group})), median, *figures])
    return markdown(["films", "n", "patients", "median d'", "ideal", "matched filter"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path, metavar="CACHE_OR_FOLDER", help="of films by `anomaly phantom`")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        settings = set_settings(films_folder(options.place))
    except InputError as error:
        parser.error(str(error))
    films = list(observed(settings["seed"], settings["patients"]))
    print(
        f"SYNTHETIC films, {', '.join(f'{name} {value}' for name, value in settings.items())}; ceilings, no detectors."
    )
    print("\n".join(["", *table(films)]))


if __name__ == "__main__":
    main()
