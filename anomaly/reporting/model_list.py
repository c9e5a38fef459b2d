"""The list of models as text and as JSON: what each finds, what it costs, what it was measured to give."""

import json
from dataclasses import asdict

from anomaly import models
from anomaly.formatting import number
from anomaly.models.profiles import PROFILES, Measured
from preprocessing import InputError

NOTES = (
    "finds: diffuse disease, focal lesions, both, or what labels say; cost: on two CPU cores",
    "chests, obvious: film ROC-AUC on test films of children's chests, and on obvious lesions of the built-in",
    "SYNTHETIC hands; docs/results.md has the intervals, settings and commands",
)
HEAD = ("model", "finds", "chests", "obvious", "cost", "")


def model_table() -> list[str]:
    """Return the models as lines of a table, and what its columns mean."""
    rows = [HEAD, *(_row(name, entry) for name, entry in sorted(models.zoo().items()))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "", *NOTES]


def _row(name: str, entry: models.Entry) -> tuple[str, ...]:
    profile = PROFILES.get(name) if entry.package is None else None
    about = models.headline(entry.where) + (f" (of the package {entry.package})" if entry.package else "")
    if profile is None:
        return name, "not known", "", "", "", about.strip()
    return name, profile.finds, _figure(profile.chest), _figure(profile.obvious), profile.cost, about


def _figure(measured: Measured | None) -> str:
    return number(None if measured is None else measured.roc_auc)


def models_json(name: str | None) -> str:
    """Return all models, or one, as JSON; raises InputError for an unknown name."""
    entries = models.zoo()
    if name is not None and name not in entries:
        raise InputError(f"no model {name!r}; there are: {', '.join(sorted(entries))}")
    document = []
    for own, entry in sorted(entries.items()):
        if name in (None, own):
            profile = PROFILES.get(own) if entry.package is None else None
            known = {} if profile is None else asdict(profile)
            document.append({"name": own, "about": models.headline(entry.where), "package": entry.package, **known})
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
