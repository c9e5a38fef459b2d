"""One picture of several runs' heatmaps on the same films: a row a film, a column a run, each run on its own scale."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.evaluation.predict import predict
from anomaly.pipeline.open_run import open_run, run_films
from anomaly.reporting.heatmap import blend, png, titled
from anomaly.runs import Run, write_atomic

CPU = torch.device("cpu")
FILMS = 6
LEAST = 160  # pixels a side of each film in the picture


def main() -> None:
    """Draw abnormal films of the test split, one of each finding, the truth outlined in the first column."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--side", type=int, default=512, help="pixels a side of each film in the picture, at most")
    arguments = parser.parse_args()
    runs = [Run(path) for path in arguments.runs]
    films, _ = run_films(runs[0], "test")
    abnormal = films.subset(np.flatnonzero((films.label == 1) & films.cache.has_truth[films.rows]))
    _, first = np.unique(abnormal.column("finding"), return_index=True)
    films = abnormal.subset(np.sort(first)[:FILMS])
    columns: list[list[NDArray[np.uint8]]] = [[] for _ in range(len(runs) + 1)]
    for place, levels in enumerate(films.read().unit()):
        lesion = films.marked(place)
        grey = np.rint(levels * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
        if lesion is not None:
            inner = lesion.copy()
            for axis in (0, 1):
                inner &= np.roll(lesion, 1, axis) & np.roll(lesion, -1, axis)
            grey[lesion & ~inner] = (0, 255, 255)
        columns[0].append(grey)
    for column, run in zip(columns[1:], runs, strict=True):
        opened = open_run(run, CPU)
        scale = opened.calibration.map_scale
        if scale is None:
            raise SystemExit(f"{run.path} draws no map")
        for part in predict(opened.model, films, CPU, maps=True):
            pairs = zip(part.films.unit(), part.films.mask, strict=True)
            column += [blend(film, part.smoothed_map(i), mask, scale) for i, (film, mask) in enumerate(pairs)]
    sheet = np.concatenate([np.concatenate(column, axis=0) for column in columns], axis=1)
    if films.size > arguments.side:
        share = arguments.side / films.size
        sheet = np.asarray(cv2.resize(sheet, None, fx=share, fy=share, interpolation=cv2.INTER_AREA))
    times = -(-LEAST // films.size)
    names = ", ".join(run.config.model for run in runs)
    words = "SYNTHETIC films, lesion outlined: " if films.cache.synthetic else "films: "
    write_atomic(arguments.out, png(titled(sheet.repeat(times, axis=0).repeat(times, axis=1), f"{words}{names}")))
    print(f"{arguments.out}: {len(films)} films ({', '.join(sorted(set(films.column('finding'))))}) by {names}")


if __name__ == "__main__":
    main()
