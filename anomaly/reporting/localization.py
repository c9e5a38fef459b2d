"""The figures of a network that prepares films as lines of text for a terminal."""

from anomaly.formatting import markdown, number, with_interval
from anomaly.localization.evaluate import ForegroundFigures, LocalizationEvaluation


def localization_table(evaluation: LocalizationEvaluation) -> list[str]:
    """Return which films were measured and a Markdown table of their figures."""
    kind = "SYNTHETIC " if evaluation.synthetic else ""
    films = f"{evaluation.films} {kind}{evaluation.split} films of {evaluation.patients} patients"
    figures = evaluation.figures
    if isinstance(figures, ForegroundFigures):
        rows = [
            (name, with_interval(mean.mean, mean.interval))
            for name, mean in (("dice", figures.dice), ("iou", figures.iou))
        ]
        table = markdown(("mean over films", "value [95 %]"), rows)
    else:
        table = markdown(
            ("class", "boxes", "recall", "precision", "mean IoU", "side accuracy"),
            [
                (name, str(f.boxes), number(f.recall), number(f.precision), number(f.iou), number(f.side_accuracy))
                for name, f in figures.items()
            ],
        )
    return [f"{films}, threshold {evaluation.threshold:g} (chosen on validation films)", *table]
