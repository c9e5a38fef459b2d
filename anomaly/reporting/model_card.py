"""Model cards: what a detector, or the detectors of a bench, are for and not for, their data and their limits."""

import html
import re
from collections.abc import Iterable, Sequence

from anomaly.evaluation.comparison import Table
from anomaly.reporting.checklists import SUBGROUP_HEAD, Item, Subgroup, gmlp, reporting_items, subgroups
from anomaly.reporting.context import ReportContext
from preprocessing.wording import counted

NO_DEVICE = (
    "NOT A MEDICAL DEVICE: it is not approved for use on patients. No diagnosis, triage, treatment or discharge may "
    "rest on its scores or heatmaps."
)
OTHER_FILMS = (
    "Films of other body parts, projections, machines or preparation than those of training: whatever is unfamiliar "
    "scores as abnormal, be it a disease, a marker or a scanner."
)
SYNTHETIC = "The films are synthetic: the figures say nothing about medicine."
_SUBGROUPS = "Differences by age, sex, machine or hospital were not measured."
_PURPOSES = {"train": "for training", "val": "for validation", "abnormal": "abnormal ones among those for training"}


def model_card(context: ReportContext) -> dict[str, list[str]]:
    """What the model is for and not for, its training and test data, and its limits: title -> sentences."""
    films = "labelled films, normal and abnormal" if context.supervised else "films of normal patients only"
    about = [context.about] if context.about else []
    return {
        "What it is": [
            *about,
            f"{context.model}, trained on {films}. The higher the score, the more abnormal the film.",
        ],
        "Intended use": [
            "Research: ranking films like those of training by how unusual they are, and comparing detectors on the "
            "same films.",
        ],
        "Not intended for": [NO_DEVICE, OTHER_FILMS],
        "Data": _data(context),
        "Limits": _limits(context),
    }


def checklists(context: ReportContext) -> dict[str, list[Item]]:
    """What reporting guidelines ask, as far as the run knows it: title -> items."""
    return {
        "Good machine learning practice (FDA, Health Canada, MHRA)": gmlp(context),
        "Reporting checklist (STARD-AI, CLAIM 2024)": reporting_items(context),
    }


def filled(items: list[Item]) -> str:
    """Say how much of a list the run knows.

    >>> filled([Item("a", "known."), Item("b", "")])
    '1 of 2 answered by the run; the others say what to fill in'
    """
    return f"{sum(item.whole for item in items)} of {len(items)} answered by the run; the others say what to fill in"


def render_model_card(context: ReportContext) -> str:
    """The model card as Markdown, for model_card.md: card, subgroups, check lists. Text from files is escaped."""
    lines = [f"# Model card: {_escaped(context.title)}"]
    for title, sentences in model_card(context).items():
        lines += ["", f"## {title}", "", *(f"- {_escaped(sentence)}" for sentence in sentences)]
    groups = subgroups(context.figures)
    if groups:
        lines += [
            "",
            f"## Subgroups ({_escaped(context.score)})",
            "",
            *_table(SUBGROUP_HEAD, map(Subgroup.cells, groups)),
        ]
    for title, items in checklists(context).items():
        answers = ([item.topic, str(item)] for item in items)
        lines += ["", f"## {title}", "", f"{filled(items)}.", "", *_table(("item", "answer"), answers)]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are not padded, as answers are sentences."""
    rule = " | ".join(":---" for _ in head)
    return [f"| {' | '.join(head)} |", f"| {rule} |", *(f"| {' | '.join(map(_escaped, row))} |" for row in rows)]


def _escaped(text: str) -> str:
    r"""Text from anywhere as it stands in a line of Markdown: no tag, link, emphasis or cell begins in it.

    >>> print(_escaped("<b> a_b | [x](y)"))
    &lt;b&gt; a\_b \| \[x\](y)
    """
    return re.sub(r"([\\*_\[\]|#!])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _data(context: ReportContext) -> list[str]:
    """The films of training, and those that the figures rest on."""
    figures, main = context.figures, context.figures.main
    sentences = [f"{context.data}{' (SYNTHETIC: drawn, not taken of patients)' if figures.synthetic else ''}."]
    if context.films:
        counts = ", ".join(f"{count} {_PURPOSES.get(name, name)}" for name, count in context.films.items())
        sentences.append(f"Films: {counts}, {len(context.evaluation.scored.cohort.label)} evaluated here.")
    if main.n:
        sentences.append(
            f"Evaluated on {counted(main.n, 'film')} of known label of {counted(main.n_patients, 'patient')}, "
            f"{main.n_abnormal} abnormal."
        )
    if figures.notes:
        sentences += [f"{note[0].upper()}{note[1:]}." for note in figures.notes]
    elif "new" not in figures.split:
        sentences.append("No patient is in two splits.")
    if context.failures:
        sentences.append(f"{counted(len(context.failures), 'film')} could not be used; see the list above.")
    return sentences


def _limits(context: ReportContext) -> list[str]:
    """What the figures do not show."""
    figures, main = context.figures, context.figures.main
    sentences = [SYNTHETIC] if context.figures.synthetic else []
    if main.roc_auc is None:
        sentences.append("Its performance is unknown: there are no figures.")
    else:
        not_beaten = [
            rival
            for rival, difference in (main.against or {}).items()
            if difference.interval is None or difference.interval[0] <= 0
        ]
        if not_beaten:
            sentences.append(f"Not shown to be better than {' or '.join(not_beaten)}, which need no training.")
        seeds = "One training run with one seed"
        if context.trainings > 1:
            seeds = f"One ensemble of {counted(context.trainings, 'run')}"
        sentences.append(f"{seeds}; `anomaly bench` measures the variation between seeds.")
        sentences.append(
            "Evaluated on films of one source. Expect lower figures elsewhere, and validate there before use."
        )
    if figures.columns:
        sentences.append(
            f"Measured by {', '.join(figures.columns)}; other differences, by age, sex or machine, were not."
        )
    else:
        sentences.append(_SUBGROUPS)
    if context.map_scale is not None:
        sentences.append("A heatmap shows what contributed to the score; it does not outline a lesion.")
    if not context.supervised:
        sentences.append("A score is not a probability: it ranks films, and its unit has no meaning beyond this run.")
    return sentences


def bench_card(table: Table) -> dict[str, list[str]]:
    """The model card of all detectors of a bench: title -> sentences."""
    return {
        "Intended use": [
            "Research: which detector, on which preparation of the films, and whether the difference is real.",
        ],
        "Not intended for": [NO_DEVICE, OTHER_FILMS],
        "Limits": [
            *([SYNTHETIC] if table.synthetic else []),
            "Films of one source. The ranking of detectors may differ elsewhere.",
            "The best row of a column was selected on the test set: its figure is optimistic.",
            _SUBGROUPS,
        ],
    }
