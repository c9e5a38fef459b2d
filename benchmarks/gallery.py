"""One picture of several runs' heatmaps on the same films: a column a film, a row a run, each run on its own scale."""

import argparse
from pathlib import Path

import torch

from anomaly.pipeline.lesion_pictures import lesion_sheet, of_each_finding
from anomaly.pipeline.open_run import open_run, run_films
from anomaly.reporting.heatmap import titled, write_png
from anomaly.runs import Run

CPU = torch.device("cpu")
FILMS = 6


def main() -> None:
    """Draw abnormal films of the test split, one of each finding, the truth outlined in the first row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--side", type=int, default=512, help="pixels a side of each film in the picture, at most")
    parser.add_argument("--difficulty", help="films of this one alone, such as obvious")
    arguments = parser.parse_args()
    runs = [Run(path) for path in arguments.runs]
    films = of_each_finding(run_films(runs[0], "test")[0], arguments.difficulty)
    films = films.subset(slice(FILMS))
    names = ", ".join(run.config.model for run in runs)
    words = "SYNTHETIC films, lesion outlined: " if films.cache.synthetic else "films: "
    picture = lesion_sheet([open_run(run, "cpu") for run in runs], films, arguments.side)
    write_png(arguments.out, titled(picture, f"{words}{names}"))
    print(f"{arguments.out}: {len(films)} films ({', '.join(films.column('finding'))}) by {names}")


if __name__ == "__main__":
    main()
