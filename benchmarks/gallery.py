"""One picture of several runs' heatmaps on the same films: a row a film, a column a run, each run on its own scale."""

import argparse
from pathlib import Path

import numpy as np
import torch

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import read_calibration
from anomaly.evaluation.predict import View, maps
from anomaly.pipeline.open_run import open_model, run_view
from anomaly.reporting.heatmap import blend, png, titled
from anomaly.runs import Run, write_atomic

FILMS = 6
LEAST = 160  # pixels a side of each film in the picture


def main() -> None:
    """Draw abnormal films of the test split, one of each finding, the truth outlined in the first column."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    runs = [Run(path) for path in arguments.runs]
    cache, split = run_view(runs[0])
    variant, size = runs[0].config.variant, runs[0].config.size
    abnormal = np.flatnonzero((split == "test") & (cache.index["label"] == 1) & cache.has_truth)
    finding = cache.index["finding"][abnormal]
    _, first = np.unique(finding, return_index=True)
    rows = np.sort(abnormal[first])[:FILMS]
    view = View(cache, variant, rows, size)
    columns = [[] for _ in range(len(runs) + 1)]
    for film, row in zip(FilmSet(cache, variant, rows, size).read().unit(), rows, strict=True):
        truth = cache.anomaly(variant, np.array([row]))
        grey = np.rint(film * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
        if truth is not None and truth.shape[1] == size:
            inside = truth[0]
            inner = inside.copy()
            for axis in (0, 1):
                inner &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
            grey[inside & ~inner] = (0, 255, 255)
        columns[0].append(grey)
    for column, run in zip(columns[1:], runs, strict=True):
        model, scale = open_model(run, torch.device("cpu")), read_calibration(run).map_scale
        if scale is None:
            raise SystemExit(f"{run.path} draws no map")
        column += [blend(film, drawn, mask, scale) for _, drawn, film, mask in maps(model, view, torch.device("cpu"))]
    sheet = np.concatenate([np.concatenate(column, axis=0) for column in columns], axis=1)
    times = -(-LEAST // size)
    names = ", ".join(run.config.model for run in runs)
    words = "SYNTHETIC films, lesion outlined: " if cache.synthetic else "films: "
    write_atomic(arguments.out, png(titled(sheet.repeat(times, axis=0).repeat(times, axis=1), f"{words}{names}")))
    print(f"{arguments.out}: {len(rows)} films ({', '.join(sorted(set(cache.index['finding'][rows])))}) by {names}")


if __name__ == "__main__":
    main()
