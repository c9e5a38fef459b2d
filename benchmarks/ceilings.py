"""Ceilings, not detectors: ROC-AUC of observers that know every lesion's place and shape, by difficulty and kind.

The films are SYNTHETIC ones of `anomaly phantom`, or a cache prepared from them; `anomaly/evaluation/observers.py` says
who the observers are. Intervals are of 95 %, by bootstrap over patients.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from anomaly.evaluation.observers import Observed, matched_filter, mean_ideal, observe_films, observer_interval
from anomaly.formatting import markdown, with_interval
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.phantom import DIFFICULTIES, FINDINGS, plan_films, set_settings


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
            figures = [with_interval(f(group), observer_interval(group, f)) for f in (mean_ideal, matched_filter)]
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
    plans = plan_films(seed=settings["seed"], patients=settings["patients"])
    films = list(observe_films(plans, settings["seed"]))
    print(
        f"SYNTHETIC films, {', '.join(f'{name} {value}' for name, value in settings.items())}; ceilings, no detectors."
    )
    print("\n".join(["", *table(films)]))


if __name__ == "__main__":
    main()
