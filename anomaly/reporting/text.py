"""The figures of a run as lines of text for a terminal."""

from collections.abc import Mapping
from typing import Any

from anomaly.evaluation.calibration import LEVELS
from anomaly.evaluation.classification import CLASSES, FIGURES
from anomaly.evaluation.figures import TRIVIAL
from anomaly.formatting import markdown, number, with_interval
from preprocessing.wording import counted


def table(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table of one level of `evaluate`: a row a score, with intervals, n and prevalence."""
    rows = [
        [
            name,
            with_interval(row["roc_auc"], row["roc_auc_interval"]),
            with_interval(row["ap"], row["ap_interval"]) if "ap" in row else "–",
            str(row["n"]),
            str(row["n_abnormal"]),
            str(row["n_patients"]),
            number(row["prevalence"]),
        ]
        for name, row in figures.items()
    ]
    return markdown(["score", "ROC-AUC", "AP", "n", "abnormal", "patients", "prevalence"], rows)


# ------------------------------------------------------------------------------------------------------------- tables


def classes_table(figures: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table of one level of `evaluate_classes`: a row a threshold, with intervals."""
    chosen = f"at {number(figures['chosen']['threshold'])}, chosen on validation"
    rows = [
        [head, *(with_interval(one[name], one[f"{name}_interval"]) for name in FIGURES)]
        for head, one in (("at .5", figures["half"]), (chosen, figures["chosen"]))
    ]
    return markdown(["threshold", "accuracy", "precision", "recall", "F1", "specificity", "kappa"], rows)


def report_table(one: Mapping[str, Any]) -> list[str]:
    """Lines of two Markdown tables of one `classify`: its report, a blank line, its confusion matrix with shares."""
    report = markdown(
        ["class", "precision", "recall", "F1", "n"],
        [
            [
                name,
                *(number(row[figure]) if figure in row else "" for figure in ("precision", "recall", "f1")),
                str(row["support"]),
            ]
            for name, row in one["report"].items()
        ],
    )
    shares = [row or [None, None] for row in one["confusion"]["normalized"]]
    confusion = markdown(
        ["label", *(f"called {name}" for name in CLASSES)],
        [
            [name, *(f"{count} ({number(share)})" for count, share in zip(counts, row, strict=True))]
            for name, counts, row in zip(CLASSES, one["confusion"]["counts"], shares, strict=True)
        ],
    )
    return [*report, "", *confusion]


def summary(figures: dict[str, Any], main: str) -> list[str]:
    """Return the figures of `evaluate` as lines to print: a table a level, then per kind of finding and difficulty."""
    lines = []
    synthetic = "SYNTHETIC films, " if figures["synthetic"] else ""
    for level in LEVELS:
        if all(row["roc_auc"] is None for row in figures[level].values()):
            return ["no figures: they need normal and abnormal films with known labels"]
        interval = f"{figures['settings']['level']:.0%} intervals over patients"
        lines += ["", f"by {level} ({synthetic}split {figures['split']}, {interval})", *table(figures[level])]
    for column in ("finding", "difficulty"):
        if figures[column]:
            lines += [
                "",
                f"{main} by {column} ({synthetic}its abnormal films against all normal ones)",
                *kinds(figures[column], main),
            ]
    if figures["pixel"]:
        pixel = figures["pixel"]
        lines += [
            "",
            f"pixels ({synthetic}{pixel['n_films']} abnormal ones): ROC-AUC {number(pixel['roc_auc'])}, "
            f"mean over films {number(pixel['film_roc_auc'])}, "
            f"AP {number(pixel['ap'])} at prevalence {number(pixel['prevalence'])}",
        ]
    return [*lines, *_classes(figures, synthetic), ""]


def _classes(figures: dict[str, Any], synthetic: str) -> list[str]:
    """Return what comes of calling films abnormal, level by level; for films also class by class."""
    lines = []
    for level, one in figures.get("classes", {}).items():
        reliable = one["reliability"]
        lines += [
            "",
            f"as a classifier by {level} ({synthetic}split {figures['split']}; the second threshold is chosen on "
            f"{counted(figures['chosen_on'], 'validation film')})",
            *classes_table(one),
            f"Brier score {with_interval(reliable['brier'], reliable['brier_interval'])}; "
            f"always saying the prevalence gets {number(reliable['brier_of_prevalence'])}",
        ]
        if level == "film":
            chosen = f"at {number(one['chosen']['threshold'])}, chosen on validation"
            for which, where in (("half", "at .5"), ("chosen", chosen)):
                lines += [
                    "",
                    f"class by class {where} ({synthetic}split {figures['split']})",
                    *report_table(one[which]),
                ]
    return lines


def kinds(figures: dict[str, Any], main: str) -> list[str]:
    """Return a table of one score by kind, the trivial detectors beside it."""
    names = (main, *TRIVIAL)
    rows = [
        (
            kind,
            *(with_interval(f[name]["roc_auc"], f[name]["roc_auc_interval"]) for name in names),
            str(f[main]["n_abnormal"]),
        )
        for kind, f in figures.items()
    ]
    return markdown(("kind", *names, "abnormal films"), rows)
