"""Choosing films by what is known of them: `region=hand`, `split=test`, `sex=F,M`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.wording import counted, did_you_mean, squeezed

LABELS = {0: "normal", 1: "abnormal", -1: "unknown"}
LABEL_VALUES = {name: value for value, name in LABELS.items() if value >= 0}
"""The labels that figures are computed from."""
INDEXED = ("path", "patient", "study", "label", "split", "finding", "difficulty")
"""What is known of every film, beside the columns of its manifest or header."""
SHOWN = 12  # names or values that a message lists


def chosen(
    conditions: Sequence[str], columns: Mapping[str, Sequence[str] | NDArray[Any]], films: int
) -> NDArray[np.bool_]:
    """Tell which films meet every condition, (films,).

    conditions  "column=value" or "column=value,value": any of the values; an empty value is that of films of which the
                column says nothing. Values are compared without regard to case; columns too, and without regard to
                spaces, `_`, `-` and `.`, unless there is one of this very name.
    columns     name -> text of each film.

    Raises InputError for a condition of another form, and, with those there are, for an unknown column and for a value
    that no film has.

    >>> chosen(["region=hand,wrist"], {"region": ["hand", "hip", "wrist"]}, 3).tolist()
    [True, False, True]
    """
    rows = np.ones(films, bool)
    for condition in conditions:
        name, equals, text = condition.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--where {condition!r}: write column=value; there are: {', '.join(columns)}")
        values = [str(value) for value in columns[_column(name.strip(), columns)]]
        wanted = {value.strip().casefold() for value in text.split(",")}
        counts = Counter(values)
        if unknown := sorted(wanted - {value.casefold() for value in counts}):
            known = [f"{value or 'none'} ({count})" for value, count in counts.most_common(SHOWN)]
            hint = did_you_mean(unknown[0], (value for value in counts if value))
            more = f", and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
            raise InputError(
                f"--where {condition!r}: no film has {name.strip()} {unknown[0]!r}; there are: "
                f"{', '.join(known)}{more}{hint}"
            )
        rows &= np.array([value.casefold() in wanted for value in values], bool)
    if not rows.any():
        raise InputError(f"none of {counted(films, 'film')} meets all of --where {' --where '.join(conditions)}")
    return rows


def _column(name: str, columns: Mapping[str, Any]) -> str:
    if name in columns:
        return name
    alike = [known for known in columns if squeezed(known) == squeezed(name)]
    if len(alike) == 1:
        return alike[0]
    raise InputError(f"--where: no column {name!r}; there are: {', '.join(columns)}{did_you_mean(name, columns)}")


def label_names(labels: Sequence[int] | NDArray[Any]) -> list[str]:
    """Name labels as conditions do: normal, abnormal, unknown."""
    return [LABELS[int(label)] for label in labels]
