"""Model cards: what a detector, or the detectors of a bench, are for and not for, their data and their limits."""

from anomaly.evaluation.comparison import Table
from anomaly.reporting.context import ReportContext
from preprocessing.wording import counted

_NO_DEVICE = (
    "NOT A MEDICAL DEVICE: it is not approved for use on patients. No diagnosis, triage, treatment or discharge may "
    "rest on its scores or heatmaps."
)
_OTHER_FILMS = (
    "Films of other body parts, projections, machines or preparation than those of training: whatever is unfamiliar "
    "scores as abnormal, be it a disease, a marker or a scanner."
)
_SYNTHETIC = "The films are synthetic: the figures say nothing about medicine."
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
        "Not intended for": [_NO_DEVICE, _OTHER_FILMS],
        "Data": _data(context),
        "Limits": _limits(context),
    }


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
    sentences = [_SYNTHETIC] if context.figures.synthetic else []
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
        "Not intended for": [_NO_DEVICE, _OTHER_FILMS],
        "Limits": [
            *([_SYNTHETIC] if table.synthetic else []),
            "Films of one source. The ranking of detectors may differ elsewhere.",
            "The best row of a column was selected on the test set: its figure is optimistic.",
            _SUBGROUPS,
        ],
    }
