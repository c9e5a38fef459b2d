"""The threshold at work in lines of text for a terminal."""

from anomaly.evaluation.figures import Metrics, OperatingFigures, Rate
from anomaly.formatting import with_interval
from preprocessing.wording import plural

MOST_KINDS = 6
"""Findings, and values of columns, that are listed; metrics.json has the others."""


def operating_lines(figures: Metrics) -> list[str]:
    """Return the threshold at work, a line each by film, study and patient, and one by finding.

    Studies and patients that are as many as films are the same, and are left out. Of one class alone: how often it is
    flagged.
    """
    operating = figures.operating
    if operating is None or not operating.film.flag_rate.n:
        return []
    lines = []
    for unit, at in operating.units.items():
        if unit == "film" or at.flag_rate.n < operating.film.flag_rate.n:
            lines.append(f"at the threshold by {unit}: {at_work(at, unit)}")
    for name, kinds in operating.kinds.items():
        listed = [f"{kind} {with_interval(rate.value, rate.interval)}" for kind, rate in kinds.items()]
        more = f", and {len(listed) - MOST_KINDS} more in metrics.json" if len(listed) > MOST_KINDS else ""
        lines.append(f"sensitivity by {name}: {', '.join(listed[:MOST_KINDS])}{more}")
    return lines


def at_work(at: OperatingFigures, unit: str) -> str:
    """Return how a threshold does on the films, studies or patients of one set; `unit` names them."""
    flagged = f"{at.flag_rate.count} of {at.flag_rate.n} {plural(unit)} flagged"
    if not at.specificity.n:
        return f"{flagged}, all abnormal: sensitivity {_rate(at.sensitivity)}"
    if not at.sensitivity.n:
        low, high = at.flag_rate.interval or (0.0, 1.0)
        return f"{flagged}, all normal: false-alarm rate {with_interval(at.flag_rate.value, (low, high))}"
    return (
        f"sensitivity {_rate(at.sensitivity)}, specificity {_rate(at.specificity)}, PPV {_rate(at.ppv)}, "
        f"NPV {_rate(at.npv)}; {flagged}"
    )


def _rate(rate: Rate) -> str:
    return with_interval(rate.value, rate.interval)
