"""Models x settings x seeds on one cache: ROC-AUC of every score on val and test, paired with the training-free floor.

A cell is a model and its settings, "cae" or "cae,preset=standard,epochs=30"; its runs lie in OUT/<cell>-<seed>, and a
finished one is not trained again. The figures of `val` are there to choose by, those of `test` to report.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.bootstrap import interval, paired
from anomaly.evaluation.predict import score
from anomaly.evaluation.ranking import roc_auc
from anomaly.formatting import markdown
from anomaly.pipeline.ensemble import combine
from anomaly.pipeline.open_run import open_run, run_cache_and_split
from anomaly.pipeline.plan import resolve
from anomaly.runs import Run, to_json, write_atomic
from benchmarks.record import command_line, record
from preprocessing import InputError
from preprocessing.cache.reader import Cache

FLOOR = ("contrast_density", "atypicality")
CPU = torch.device("cpu")


def folder(out: Path, cell: str, seed: int) -> Path:
    """Return where a cell's run lies."""
    return out / f"{cell.replace('=', '-').replace(',', '_')}-{seed}"


def train(arguments: argparse.Namespace, cell: str, seed: int) -> None:
    """Train one cell in a process of its own, with its share of the cores."""
    model, *settings = cell.split(",")
    preset = next((text.removeprefix("preset=") for text in settings if text.startswith("preset=")), arguments.preset)
    settings = [text for text in settings if not text.startswith("preset=")]
    path = folder(arguments.out, cell, seed)
    if (path / "calibration.json").is_file():
        config, cache = Run(path).config, Cache(arguments.cache)
        asked = resolve(model, preset, settings)
        given = [arguments.variant, preset, cache.content_hash, *(own.model_dump(mode="json") for own in asked)]
        there = [config.variant, config.preset, config.cache.content_hash]
        if given != [*there, config.settings.model, config.settings.training]:
            raise SystemExit(f"{path} was trained on other films or by other settings; take another --out")
        return
    command = [sys.executable, "-m", "anomaly", "train", model, "--cache", str(arguments.cache)]
    command += ["--variant", arguments.variant, "--preset", preset, "--seed", str(seed), "--out", str(path)]
    for text in settings:
        command += ["--set", text]
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True)
    print(f"{path}: {'trained' if not done.returncode else done.stderr.strip().splitlines()[-1]}", flush=True)


Scored = dict[str, NDArray[np.float64]]


def scored(path: Path) -> tuple[Scored, dict[str, NDArray[Any]]]:
    """Return a run's scores on val and test, and what is known of those films."""
    run = Run(path)
    cache, split = run_cache_and_split(run)
    rows = np.flatnonzero((split == "val") | (split == "test"))
    films = FilmSet(cache, run.config.variant, rows, run.config.size)
    known = {name: films.column(name) for name in ("label", "patient", "finding", "difficulty")} | {
        "split": split[rows]
    }
    return score(open_run(run, "cpu").model, films), known


def figures(cell: str, name: str, runs: list[Scored], floor: Scored, known: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one score of one cell over its seeds."""
    line: dict[str, Any] = {"cell": cell, "score": name, "seeds": len(runs)}
    for split in ("val", "test"):
        on = (known["split"] == split) & (known["label"] >= 0)
        label, patient = known["label"][on], known["patient"][on]
        each = [roc_auc(label, run[name][on]) for run in runs]
        first = runs[0][name][on]
        line[split] = {
            "roc_auc": each,
            "mean": float(np.mean(each)),
            "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None,
            "interval_first_seed": list(interval(label, first, patient)),
            "n": int(on.sum()),
            "abnormal": int((label == 1).sum()),
            "patients": len(set(patient)),
        }
        against = floor[FLOOR[1]][on]
        line[split]["minus_floor"] = [
            paired(label, run[name][on], against, patient).figures().to_data() for run in runs
        ]
        for column in ("finding", "difficulty"):
            kinds = sorted(set(known[column][on & (known["label"] == 1)]) - {""})
            line[split][column] = {
                kind: float(np.mean([roc_auc(label[own], run[name][on][own]) for run in runs]))
                for kind in kinds
                if (own := (label == 0) | (known[column][on] == kind)).any()
            }
    return line


def row(line: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    val, test = line["val"], line["test"]
    low, high = test["interval_first_seed"]
    sd = "" if test["sd"] is None else f" ± {test['sd']:.3f}"
    differences = test["minus_floor"]
    shown = " ".join(f"{d['difference']:+.3f}" for d in differences)
    if len(differences) == 1 and differences[0]["interval"]:
        shown += f" [{differences[0]['interval'][0]:+.3f}, {differences[0]['interval'][1]:+.3f}]"
    shares = [f"{val['mean']:.3f}", f"{test['mean']:.3f}{sd}", f"[{low:.3f}, {high:.3f}]", shown]
    return [line["cell"], line["score"], *(text.replace("0.", ".") for text in shares)]


def main() -> None:
    """Train what is missing, score everything, print the table, write OUT/results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("cells", nargs="+")
    parser.add_argument("--variant", default="full-he")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--floor", type=Path, help="a contrast_density run on another variant of the same cache")
    parser.add_argument("--ensembles", action="store_true", help="also the ensemble of each cell's seeds")
    arguments = parser.parse_args()
    seeds = [int(text) for text in arguments.seeds.split(",")]
    cells = dict.fromkeys([*([] if arguments.floor else [FLOOR[0]]), *arguments.cells])
    of = {cell: [0] if cell == FLOOR[0] else seeds for cell in cells}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(
            pool.map(
                lambda key: train(arguments, *key), [(cell, seed) for seed in seeds for cell in of if seed in of[cell]]
            )
        )
    runs: dict[str, list[Scored]] = {}
    known: dict[str, Any] = {}
    for cell, own in of.items():
        paths = [p for seed in own if ((p := folder(arguments.out, cell, seed)) / "calibration.json").is_file()]
        for path in paths:
            values, known = scored(path)
            runs.setdefault(cell, []).append(values)
        if arguments.ensembles and len(paths) > 1:
            path = folder(arguments.out, f"ensemble of {cell}", len(paths))
            try:
                combined = path if path.exists() else combine([Run(p) for p in paths], path, None, CPU).path
                runs[f"ensemble of {len(paths)} {cell}"] = [scored(combined)[0]]
            except InputError as error:
                print(f"{path}: {error}")
    floor = scored(arguments.floor)[0] if arguments.floor else runs[FLOOR[0]][0]
    lines = [
        figures(cell, name, found, floor, known)
        for cell, found in runs.items()
        for name in found[0]
        if name not in ("mean_grey", "minus_std")
    ]
    lines += [figures("trivial", name, [floor], floor, known) for name in ("mean_grey", "minus_std")]
    write_atomic(arguments.out / "results.json", to_json({"lines": lines}))
    head = (
        "cell",
        "score",
        "val",
        "test, mean ± sd",
        "95 % over patients, first seed",
        "minus contrast_density, each seed",
    )
    told = {"cache": arguments.cache.name, "variant": arguments.variant, "preset": arguments.preset, "seeds": seeds}
    short = {
        f"{line['cell']}: {line['score']}": {
            "val": line["val"]["roc_auc"],
            "test": line["test"]["roc_auc"],
            "test_interval_first_seed": line["test"]["interval_first_seed"],
            "test_minus_floor": line["test"]["minus_floor"],
        }
        for line in lines
    }
    record("zoo", command_line("zoo"), told, short)
    print("\n".join(markdown(head, [row(line) for line in lines])))


if __name__ == "__main__":
    main()
