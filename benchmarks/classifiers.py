"""Supervised baselines side by side: what finished runs of `classifier` reach, beside a linear model and the sources.

The linear model is the floor for labels: a logistic regression on principal components of the same training films, at
64 px, its number of components chosen by ROC-AUC on val. The sources' figures are of other films than these, and of
networks that began with ImageNet weights (mura, fracture).
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.evaluation.bootstrap import interval, paired
from anomaly.evaluation.calibration import read_calibration
from anomaly.evaluation.classification import classify
from anomaly.evaluation.predict import score
from anomaly.evaluation.ranking import roc_auc
from anomaly.formatting import markdown, number, with_interval
from anomaly.pipeline.open_run import open_run, run_films
from anomaly.pipeline.plan import Plan, Prepared, prepare
from anomaly.runs import Run
from benchmarks.record import command_line, record

CPU = torch.device("cpu")
LINEAR_SIZE, COMPONENTS = 64, (10, 20, 40, 80, 160)
SOURCES = {
    "hip": "accuracy .66 (hips, 224 px)",
    "mura": "best validation accuracy .61 (MURA's hands, 224 px, 5 epochs)",
    "fracture": "accuracy .9921 (EfficientNet), .9842 (VGG16) (fractures, 506 films)",
    "cnn": "no figure given (fractures)",
    "standard": "–",
    "fast": "–",
}
Known = tuple[NDArray[Any], NDArray[np.float64], NDArray[Any]]  # label, probability, patient of labelled films


def judged(path: Path) -> tuple[Run, dict[str, Known], int]:
    """Return a run, what it says of the labelled films of val and test, and its number of parameters."""
    run = Run(path)
    model = open_run(run, "cpu").model
    known = {}
    for name in ("val", "test"):
        films, _ = run_films(run, name)
        films = films.subset(films.label >= 0)
        known[name] = films.label, score(model, films)["probability"], films.column("patient")
    return run, known, sum(p.numel() for p in model.detector.parameters())


def figures(found: dict[str, Known], threshold: float) -> dict[str, Any]:
    """Return the figures of val and test, at .5 and at the threshold chosen on val."""
    line: dict[str, Any] = {}
    for name, (label, value, patient) in found.items():
        line[name] = {
            "roc_auc": roc_auc(label, value),
            "roc_auc_interval": interval(label, value, patient),
            "half": classify(label, value, patient, 0.5).to_data(),
            "chosen": classify(label, value, patient, threshold).to_data(),
        }
    return line


def linear(prepared: Prepared) -> dict[str, Known]:
    """Return what a logistic regression on principal components says of val and test."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def films(name: str) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[Any]]:
        small = replace(prepared.films(name), size=LINEAR_SIZE, sample="film")
        read = small.read()
        return small.label, (read.unit() * read.mask).reshape(len(small), -1), small.column("patient")

    label, flat, _ = films("train")
    others = {name: films(name) for name in ("val", "test")}
    best: tuple[float, dict[str, Known]] = (-1.0, {})
    for count in COMPONENTS:
        if count > min(flat.shape):
            continue
        last = LogisticRegression(max_iter=2000, class_weight="balanced")
        fitted = make_pipeline(PCA(count, random_state=0), StandardScaler(), last).fit(flat, label)
        said = {name: (own[0], fitted.predict_proba(own[1])[:, 1], own[2]) for name, own in others.items()}
        value = roc_auc(*said["val"][:2])
        best = max(best, (value, said), key=lambda pair: pair[0])
    return best[1]


def slim(line: dict[str, Any]) -> dict[str, Any]:
    """Return the figures to record: no counts that follow from others."""
    out: dict[str, Any] = {}
    for name, own in line.items():
        out[name] = {"roc_auc": own["roc_auc"], "roc_auc_interval": own["roc_auc_interval"]}
        for which in ("half", "chosen"):
            out[name][which] = {k: v for k, v in own[which].items() if k not in ("report", "confusion")}
    return out


def row(name: str, recipe: str, size: int, parameters: str, line: dict[str, Any], gap: str = "") -> list[str]:
    """Return a line of the table."""
    test = line["test"]
    half = test["half"]
    shown = [with_interval(half[key], half[f"{key}_interval"]) for key in ("accuracy", "f1", "kappa")]
    area = with_interval(test["roc_auc"], test["roc_auc_interval"])
    chosen = number(test["chosen"]["accuracy"]), number(test["chosen"]["kappa"])
    return [name, recipe, str(size), parameters, number(line["val"]["roc_auc"]), area, gap, *shown, " / ".join(chosen)]


def main() -> None:
    """Score the runs, fit the linear model on their films, print the table, record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    rows, told = [], {}
    first = Run(arguments.runs[0]).config
    for path in arguments.runs[1:]:
        other = Run(path).config
        if (first.variant, first.split_hash) != (other.variant, other.split_hash):
            raise SystemExit(f"{path} was tested on other films than {arguments.runs[0]}; give runs of one split")
    plan = Plan("classifier", Path(first.cache.path), first.variant, "fast", split_seed=first.split_seed)
    plain = linear(prepare(plan))
    for path in arguments.runs:
        run, found, parameters = judged(path)
        calibration = read_calibration(run)
        line = figures(found, calibration.thresholds["mean"]["film"]["probability"])
        config = run.config
        backbone, size = config.settings.model["backbone"], config.size
        epochs = f"{len(run.history())} epochs"
        label, value, patient = found["test"]
        versus = paired(label, value, plain["test"][1], patient)
        gap = with_interval(versus.difference, (versus.low, versus.high))
        rows.append(row(backbone, f"{config.preset}, {epochs}", size, f"{parameters / 1e6:.2f} M", line, gap))
        told[path.name] = slim(line) | {
            "minus_linear": versus.figures().to_data(),
            "backbone": backbone,
            "preset": config.preset,
            "size": size,
            "seed": config.seed,
            "epochs": len(run.history()),
            "parameters": parameters,
            "films": config.films,
            "source": SOURCES[config.preset],
        }
    line = figures(plain, 0.5)
    rows.append(row("logistic regression", "principal components", LINEAR_SIZE, "–", line))
    told["linear"] = slim(line)
    settings = {
        "cache": Path(first.cache.path).name,
        "content_hash": first.cache.content_hash[:12],
        "variant": first.variant,
        "synthetic": first.cache.synthetic,
    }
    record("classifiers", command_line("classifiers"), settings, told)
    head = ["network", "recipe", "px", "parameters", "val", "test ROC-AUC", "minus linear", "accuracy", "F1", "kappa"]
    head.append("accuracy / kappa at chosen")
    print("\n".join(markdown(head, rows)))
    print("\n".join(f"{name}: {figure}" for name, figure in SOURCES.items() if figure != "–"))


if __name__ == "__main__":
    main()
