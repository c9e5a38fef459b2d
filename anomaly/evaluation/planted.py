"""How well a detector notices anomalies that are planted into normal films: a figure where there are no labels.

Each normal film is planted once with each family of `PLANTED`, all of which no detector is trained on: lost, new or
moved edges (focal), and four changes of a large region (diffuse). They are planted at the size of the cache, the same
ones for every detector, and brought to the size that it takes like any other film.

The figure of a family is the mean of two: the ROC-AUC of the planted films against the same films without, which the
spread between films lowers as it does on real ones, and the share of films that score higher with the anomaly than
without, which says whether it is noticed at all. The figure of a detector is the mean over the families. Of the
criteria tried, this one agreed best with labels on real films, which is not well: docs/results.md has both.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.anomalies.diffuse import DIFFUSE
from anomaly.data.anomalies.synthesis import synthesize
from anomaly.data.batch import as_batch
from anomaly.data.dataset import Films, FilmSet, resize_films
from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.detector_choice import RESAMPLES, Contender
from anomaly.evaluation.figures import TRIVIAL
from anomaly.evaluation.ranking import Floats, interval_or_none, roc_auc
from anomaly.evaluation.scorer import Scorer
from preprocessing import InputError

PLANTED: Mapping[str, str] = {"structure": "focal"} | dict.fromkeys(DIFFUSE, "diffuse")
"""Family of planted anomalies -> what it is."""
MOST_FILMS = 48
"""Normal films that are planted, at most."""
SEED = 29
"""Of what is planted."""


@dataclass(frozen=True)
class PlantedScores:
    """Every score of n normal films: as they are, and with an anomaly of each family. Trivial scores are among them."""

    normal: dict[str, Floats]  # score -> (n,)
    planted: dict[str, dict[str, Floats]]  # family -> score -> (n,)


def films_to_plant(normals: FilmSet) -> FilmSet:
    """Return MOST_FILMS of the films, taken evenly, or all where there are no more."""
    places = np.unique(np.linspace(0, len(normals) - 1, min(MOST_FILMS, len(normals))).round().astype(np.int64))
    return normals.subset(places)


def planted_scores(
    model: Scorer, normals: FilmSet, *, on_films: Callable[[int], None] = lambda count: None
) -> PlantedScores:
    """Score normal films with and without planted anomalies.

    normals  films of the size that the model takes.    on_films  is told of films as they are done. Raises InputError
    where a score is not finite.
    """
    normal = _scores(model, (part for _, part in normals.chunks()), on_films)
    return PlantedScores(normal, {family: _scores(model, plant(normals, family), on_films) for family in PLANTED})


def plant(films: FilmSet, family: str) -> Iterator[Films]:
    """Yield the films, some at a time and in their order, each with one anomaly of a family of `PLANTED`.

    The same films get the same anomalies, whatever size they are wanted at.
    """
    whole = replace(films, size=films.cache.size)
    top = np.iinfo(films.cache.dtype).max
    for places, part in whole.chunks():
        seed = np.random.SeedSequence([SEED, tuple(PLANTED).index(family), places.start]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        batch = as_batch(part, torch.device("cpu"))
        damaged = synthesize(batch.film, batch.mask, whole.size, [family], chances=(1.0,), generator=generator)
        film = np.rint(damaged.film[:, 0].numpy() * top).astype(films.cache.dtype)
        yield resize_films(replace(part, film=film), films.size)


def planted_contender(detector: str, score: str, scores: PlantedScores, patients: NDArray[Any]) -> Contender:
    """Return a contender judged by planted anomalies: `planted_figures`' mean, with its interval over patients.

    patients  (n,) whose film each is. The interval is normal, and None with fewer than two patients.
    """
    normal, count = scores.normal[score], len(patients)
    labels = np.repeat([0, 1], count)
    draws = PatientBootstrap(labels, np.tile(patients, 2), resamples=RESAMPLES, seed=0)
    weight = draws.counts[:, draws.patient[:count]].astype(np.float64)  # (B, n)
    drawn = []
    for planted in (columns[score] for columns in scores.planted.values()):
        noticed = weight @ _noticed(normal, planted) / weight.sum(axis=1)
        drawn.append((draws.figures(np.concatenate([normal, planted]), "roc_auc") + noticed) / 2)
    mean = np.mean(drawn, axis=0)
    figure = float(np.mean(list(planted_figures(score, scores).values())))
    reach = 1.96 * float(mean.std(ddof=1)) if draws.enough else math.nan
    return Contender(
        detector, score, figure, interval_or_none(max(0.0, figure - reach), min(1.0, figure + reach)), mean
    )


def planted_figures(score: str, scores: PlantedScores) -> dict[str, float]:
    """Return the figure of each family: .5 where nothing is noticed, 1 where every planted film is above all others."""
    normal = scores.normal[score]
    labels = np.repeat([0, 1], len(normal))
    figures = {}
    for family, columns in scores.planted.items():
        ranked = roc_auc(labels, np.concatenate([normal, columns[score]]))
        figures[family] = (ranked + float(_noticed(normal, columns[score]).mean())) / 2
    return figures


def _noticed(normal: Floats, planted: Floats) -> Floats:
    """Return whether each film scores higher with its anomaly than without, a tie counting half: (n,), (n,) -> (n,)."""
    noticed: Floats = (planted > normal) + 0.5 * (planted == normal)
    return noticed


def _scores(model: Scorer, parts: Iterator[Films], on_films: Callable[[int], None]) -> dict[str, Floats]:
    columns: dict[str, list[Floats]] = {}
    for part in parts:
        scores = model.predict_films(part).scores
        for name, values in (scores | _trivial(part)).items():
            if not np.isfinite(values).all():
                raise InputError(f"score {name} is not finite; the training diverged: lower --set learning_rate=")
            columns.setdefault(name, []).append(values)
        on_films(len(part))
    return {name: np.concatenate(values) for name, values in columns.items()}


def _trivial(part: Films) -> dict[str, Floats]:
    """Return the trivial scores of prepared films: mean and minus standard deviation of the levels under the mask."""
    inside = [
        film[mask] if mask.any() else np.zeros(1)
        for film, mask in zip(part.unit().astype(np.float64), part.mask, strict=True)
    ]
    values = (np.array([levels.mean() for levels in inside]), np.array([-levels.std() for levels in inside]))
    return dict(zip(TRIVIAL, values, strict=True))
