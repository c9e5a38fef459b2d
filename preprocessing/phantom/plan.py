"""Which films there will be: patients, studies, views and findings, dealt before anything is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from preprocessing import InputError
from preprocessing.wording import counted

FINDINGS = ("fracture", "hardware", "lytic", "sclerotic", "swelling", "missing", "fused")


DIFFICULTIES = ("obvious", "medium", "subtle")
VIEWS = ("frontal", "oblique", "lateral")
# Patients. Some 110 abnormal films are tested on, 5 of each finding and difficulty.
DEFAULT = 300
SIZE = 512
ABNORMAL = 0.3  # share of patients with an abnormal study


@dataclass(frozen=True)
class FilmPlan:
    """What one film will show. `finding` and `difficulty` are empty for a film of a normal study.

    `views` are those of all the study's films, by image: a finding is drawn so that it meets its grade on every one of
    them. Without them the film stands alone.
    """

    patient: int
    study: int
    image: int
    view: str = "frontal"
    finding: str = ""
    difficulty: str = ""
    views: tuple[str, ...] = ()

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
        """The POSIX paths of the ground truth beside the film, and last the film: if that exists, all do."""
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
    check_settings(seed=seed, patients=patients, size=SIZE)
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
        FilmPlan(*key, image + 1, view, *given.get(key, ("", "")), views=views[key])
        for key in keys
        for image, view in enumerate(views[key])
    ]


def _views(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """The views of a study: frontal first wherever there are several, then the others."""
    if count == 1:
        return (str(rng.choice(VIEWS, p=(0.6, 0.25, 0.15))),)
    second, third = rng.permutation(["oblique", "lateral"], axis=0) if rng.random() < 0.4 else ("oblique", "lateral")
    return ("frontal", str(second), str(third), str(rng.choice(VIEWS)))[:count]


def check_settings(*, seed: int, patients: int, size: int) -> None:
    """Refuse settings out of bounds."""
    if seed < 0:
        raise InputError(f"seed {seed}: synthetic films need a seed of 0 or more")
    if patients < 4:
        raise InputError(f"{counted(patients, 'patient')}: synthetic films need at least 4")
    if not 64 <= size <= 2048:
        raise InputError(f"size {size}: synthetic films have a longer side of 64 to 2048 pixels")


def check_finding(finding: str, difficulty: str) -> None:
    """Refuse a finding or a difficulty that does not exist."""
    for name, value, allowed in (("finding", finding, FINDINGS), ("difficulty", difficulty, DIFFICULTIES)):
        if value not in allowed:
            raise InputError(f"no {name} {value!r}; there are: {', '.join(allowed)}")
