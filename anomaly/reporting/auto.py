"""The page of a search for a detector: what was tried, what it cost, what was chosen and why, how to go on."""

from dataclasses import dataclass

from anomaly.console import clock
from anomaly.evaluation.detector_search import AutoRecord, Basis, CandidateRecord, ScoreRecord
from anomaly.evaluation.planted import PLANTED
from anomaly.formatting import number
from anomaly.reporting.html import render

BASES: dict[Basis, str] = {"labels": "ROC-AUC, labels", "planted": "planted anomalies"}


@dataclass(frozen=True)
class Row:
    """One score of one detector in the table."""

    detector: str
    score: str
    cost: str
    figures: dict[str, ScoreRecord | None]  # by the title of the column
    chosen: bool = False
    tied: bool = False
    trivial: bool = False


def render_auto(record: AutoRecord, title: str) -> str:
    """The page as HTML; the record has a choice.

    title  of the page, such as the folder's path.
    """
    assert record.choice is not None
    bases = [basis for basis in BASES if basis == record.basis or any(one.scores(basis) for one in record.candidates)]
    done = [one for one in record.candidates if one.state == "done"]
    rows = [row for one in done for row in _rows(record, one, bases)]
    rows += [
        Row(
            "trivial", name, "", {BASES[basis]: one if basis == record.basis else None for basis in bases}, trivial=True
        )
        for name, one in record.floor.items()
    ]
    return render(
        "auto.html",
        title=title,
        record=record,
        choice=record.choice,
        synthetic=record.synthetic,
        sections={"choice": "Choice", "candidates": "Candidates", "next": "Next", "made": "Provenance"},
        columns=[BASES[basis] for basis in bases],
        basis=BASES[record.basis],
        rows=rows,
        families=_families(done),
        kinds=PLANTED,
        left_out=[one for one in record.candidates if one.state == "left out"],
        settings=_settings(record),
    )


def _rows(record: AutoRecord, one: CandidateRecord, bases: list[Basis]) -> list[Row]:
    choice = record.choice
    assert choice is not None
    cost = clock(one.seconds) + (f", {one.reason}" if one.reason else "")
    names = dict.fromkeys(name for basis in bases for name in one.scores(basis))
    return [
        Row(
            one.name,
            name,
            cost,
            {BASES[basis]: one.scores(basis).get(name) for basis in bases},
            (one.name, name) == (choice.detector, choice.score),
            f"{one.name} {name}" in choice.tied,
        )
        for name in names
    ]


def _families(done: list[CandidateRecord]) -> dict[str, list[str]]:
    """The figures of each family of planted anomalies: detector and score -> a cell each; empty where none were."""
    return {
        f"{one.name} {name}": [number(score.families.get(family)) for family in PLANTED]
        for one in done
        for name, score in one.planted.items()
    }


def _settings(record: AutoRecord) -> dict[str, str]:
    counts = record.counts
    return {
        "films": record.films,
        "conditions": ", ".join(record.where) or "none",
        "preparation": record.preparation,
        "cache": record.cache,
        "variant": record.variant,
        "normal films to train on": str(counts["train"]),
        "films of val": f"{counts['val_normal']} normal, {counts['val_abnormal']} abnormal",
        "films of test": str(counts["test"]),
        "seed": str(record.seed),
        "budget": f"{record.minutes} min, {clock(record.spent)} of it spent",
    }
