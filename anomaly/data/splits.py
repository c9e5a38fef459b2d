"""Splits by patient: the paper's rule, 70/20/10, or those of the source."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError

SPLITS = ("train", "val", "test")
SplitRule = Literal["given", "paper", "paper, labelled", "70/20/10"]

LEAST_TRAINING_FILMS = 8
"""Fewer films than this are no training set: a mistake in the source is the likelier explanation."""


# --- splits ---------------------------------------------------------------------------------------------------------


def assign_splits(
    patient: NDArray[Any], label: NDArray[Any], given: NDArray[Any], *, seed: int, rule: SplitRule = "paper"
) -> NDArray[Any]:
    """Return "train", "val" or "test" for every film, no patient in two of them: (N,), (N,), (N,) -> (N,).

    Where the source gives no split at all, the rule decides. P+ are the patients with an abnormal film, P- the others.

    `paper`            (section 4, its figure 10) P+ is halved over val and test, as many patients of P- join each (at
                       most a quarter of P- each, at least a tenth), the rest of P- trains.
    `paper, labelled`  the same test split, so that supervised models are tested on the same films as the others; of
                       val's P+, half train.
    `70/20/10`         70 % of P+ and of P- train, 20 % validate, 10 % are tested on; each at least one patient.

    A source's own splits are kept (`given`), a film without one counting as "train"; where "val" is missing, a tenth of
    the training patients is carved off, P+ and P- alike. Patients of unknown label go to "test".
    """
    split = np.array(given, dtype=object)
    if (split == "").all():
        return (_shared_out if rule == "70/20/10" else _paper_splits)(patient, label, seed, rule)
    split[split == ""] = "train"
    home: dict[str, str] = {}
    for name, place in zip(patient, split, strict=True):
        if home.setdefault(name, place) != place:
            places = " and ".join(sorted((home[name], place)))
            raise InputError(f"patient {name} is in splits {places}; a patient belongs to one split only")
    if not (split == "val").any():
        training = split == "train"
        draw = np.random.default_rng(seed)
        for group in _patients_by_label(patient[training], label[training])[:2]:
            if len(group) > 1:
                carved = set(draw.permutation(group)[: max(1, round(len(group) / 10))])
                split[[name in carved for name in patient]] = "val"
    return split


def assign_chosen(
    index: Mapping[str, NDArray[Any]], chosen: NDArray[np.bool_], *, seed: int, rule: SplitRule
) -> NDArray[Any]:
    """Split the chosen films of a cache's index as `assign_splits` does; "" for the others: (N,), (N,) -> (N,)."""
    split = np.full(len(chosen), "", dtype=object)
    patient, label, given = (index[name][chosen] for name in ("patient", "label", "split"))
    split[chosen] = assign_splits(patient, label, given, seed=seed, rule=rule)
    return split


def _patients_by_label(patient: NDArray[Any], label: NDArray[Any]) -> tuple[list[str], list[str], list[str]]:
    """Return the sorted patients: with an abnormal film, normal only, the rest (no label known)."""
    positive = set(patient[label == 1])
    negative = set(patient[label == 0]) - positive
    rest = set(patient) - positive - negative
    return sorted(positive), sorted(negative), sorted(rest)


def _paper_splits(patient: NDArray[Any], label: NDArray[Any], seed: int, rule: SplitRule) -> NDArray[Any]:
    positive, negative, rest = _patients_by_label(patient, label)
    draw = np.random.default_rng(seed)
    p, n = list(draw.permutation(positive)), list(draw.permutation(negative))
    half = math.ceil(len(p) / 2)
    each = min(max(half, math.ceil(len(n) / 10)), len(n) // 4) if len(n) >= 4 else 0
    home = dict.fromkeys(p[:half] + n[:each], "val") | dict.fromkeys(p[half:] + n[each : 2 * each] + rest, "test")
    if rule == "paper, labelled":
        _enough(p, "with an")
        home |= dict.fromkeys(p[: half // 2], "train")
    return np.array([home.get(name, "train") for name in patient], dtype=object)


def _shared_out(patient: NDArray[Any], label: NDArray[Any], seed: int, rule: SplitRule) -> NDArray[Any]:
    positive, negative, rest = _patients_by_label(patient, label)
    draw = np.random.default_rng(seed)
    home = dict.fromkeys(rest, "test")
    for group, which in ((positive, "with an"), (negative, "without an")):
        _enough(group, which)
        names = list(draw.permutation(group))
        val, test = (max(1, round(share * len(names))) for share in (0.2, 0.1))
        home |= dict.fromkeys(names[:val], "val") | dict.fromkeys(names[val : val + test], "test")
    return np.array([home.get(name, "train") for name in patient], dtype=object)


def _enough(patients: list[str], which: str) -> None:
    if len(patients) < len(SPLITS):
        raise InputError(
            f"{len(patients)} patients {which} abnormal film are too few for {', '.join(SPLITS)}: to learn from labels "
            f"takes {len(SPLITS)} at the very least; prepare more films, or train a detector that needs normal films "
            "alone, such as cae"
        )


def split_hash(path: NDArray[Any], split: NDArray[Any]) -> str:
    """Return 12 hexadecimal digits that change when any film changes its split."""
    lines = "\n".join(sorted(f"{p}\t{s}" for p, s in zip(path, split, strict=True)))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]
