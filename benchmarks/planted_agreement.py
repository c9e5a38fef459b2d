"""How well planted anomalies rank detectors as labels do: `python -m benchmarks.planted_agreement FOLDER ...`.

FOLDER is that of `anomaly auto FILMS --choose-by planted` on films whose `val` has labels of both classes, which then
has both figures of every detector.
"""

import argparse
from pathlib import Path

from scipy.stats import spearmanr

from anomaly.console import say
from anomaly.evaluation.detector_search import AutoRecord
from anomaly.formatting import markdown, number, with_interval
from anomaly.pipeline.auto_record import read_record
from preprocessing import InputError


def agreement(record: AutoRecord) -> tuple[list[str], float]:
    """Return a table of both figures of every score, and their rank correlation (Spearman)."""
    rows = [
        (one.name, name, one.labels[name], planted)
        for one in record.candidates
        for name, planted in one.planted.items()
        if name in one.labels
    ]
    if len(rows) < 3:
        raise InputError(f"{record.films}: {len(rows)} figures by both; take films with labels of both classes in val")
    correlation = float(spearmanr([row[2].figure for row in rows], [row[3].figure for row in rows]).statistic)
    table = markdown(
        ["detector", "score", "labels, val", "planted, val"],
        [
            [detector, score, *(with_interval(one.figure, one.interval) for one in figures)]
            for detector, score, *figures in rows
        ],
    )
    return table, correlation


def main() -> None:
    """Print the table of each folder, and the correlation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        table, correlation = agreement(read_record(folder))
        for line in (f"{folder}", *table, f"rank correlation {number(correlation)}"):
            say(line)


if __name__ == "__main__":
    main()
