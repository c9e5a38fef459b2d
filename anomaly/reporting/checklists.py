"""What a run can answer of the questions that reporting guidelines ask, and what a person has to fill in.

Guidelines: the ten principles of good machine learning practice (GMLP; FDA, Health Canada and MHRA, October 2021), by
number; STARD-AI (Sounderajah et al. 2025, Nature Medicine) and CLAIM (Tejani et al. 2024, Radiology: Artificial
Intelligence), by topic, in words of our own. An answer is what the run folder says, or `UNKNOWN`: nothing is guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from anomaly.evaluation.figures import KindFigures, Metrics
from anomaly.formatting import number, with_interval
from anomaly.reporting.context import ReportContext
from preprocessing.wording import counted

UNKNOWN = "not known: fill in"
"""Where a run does not know, and a person has to."""
PERSONAL = ("age", "sex", "gender", "ethnicity", "race")
"""Columns that say who patients are, by a word in their names."""


@dataclass(frozen=True)
class Item:
    """A question of a guideline, and the run's answer."""

    topic: str
    answer: str  # what the run knows; empty where it knows nothing
    missing: str = ""  # what a person has to fill in besides; empty where the answer is whole

    def __str__(self) -> str:
        """Return answer and what is missing, as a card says it."""
        gap = f"{self.missing}: {UNKNOWN}" if self.missing else "" if self.answer else UNKNOWN
        return " ".join(part for part in (self.answer, f"{gap[0].upper()}{gap[1:]}." if gap else "") if part)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to fill in."""
        return bool(self.answer) and not self.missing


@dataclass(frozen=True)
class Subgroup:
    """The main score's figures on a part of the films."""

    column: str  # "finding", "difficulty", or a column of the films
    value: str
    figures: KindFigures

    def cells(self) -> list[str]:
        """Return the row of a table: column, value, ROC-AUC with its interval, films, abnormal ones, patients."""
        row = self.figures
        auc = with_interval(row.roc_auc, row.roc_auc_interval)
        return [self.column, self.value or "none", auc, str(row.n), str(row.n_abnormal), str(row.n_patients)]


SUBGROUP_HEAD = ("column", "value", "ROC-AUC", "films", "abnormal", "patients")


def subgroups(figures: Metrics) -> list[Subgroup]:
    """Return every part of the films that has figures: by finding, by difficulty, by each column asked for."""
    tables = {**figures.kinds, **figures.columns}
    return [
        Subgroup(column, value, scores[figures.score])
        for column, values in tables.items()
        for value, scores in values.items()
        if figures.score in scores
    ]


def gmlp(context: ReportContext) -> list[Item]:
    """Return the ten principles of good machine learning practice, each with what the run knows."""
    return [
        Item("1. Expertise of several disciplines over the whole life of the product", ""),
        Item("2. Good software engineering and security", _software(context), "security at the place of use"),
        Item("3. Participants and data represent the intended patients", _population(context), "the intended patients"),
        Item("4. Training data are independent of test data", _independence(context)),
        Item("5. Reference standards by the best methods available", _reference(context), _reference_gap(context)),
        Item("6. The design suits the data and the intended use", _design(context), "the intended use"),
        Item("7. The performance of people together with the model", "Not measured: figures are of the model alone."),
        Item("8. Tests under clinically relevant conditions", _conditions(context), "the place of use"),
        Item("9. Clear, essential information for users", _information(context)),
        Item("10. Monitoring in use, and the risks of retraining", "", "who watches it, and how"),
    ]


def reporting_items(context: ReportContext) -> list[Item]:
    """Return the topics of STARD-AI and CLAIM, each with what the run knows."""
    return [*_study(context), *_method(context), *_results(context)]


def _study(context: ReportContext) -> Iterator[Item]:
    """Yield what the study is, its data and its reference standard."""
    yield Item("Objective and hypotheses", "")
    yield Item("Prospective or retrospective; where and when films were taken", "")
    yield Item("Source of the films", f"{context.data}.", "how they were chosen")
    yield Item("Who was eligible", "", "criteria, and whether the series is consecutive")
    yield Item("Removal of what identifies patients", "")
    prepared = context.origin.get("films prepared by")
    yield Item("Preparation of the films", f"By the command {prepared}" if prepared else "")
    yield Item("Films that could not be used, and missing labels", _unusable(context))
    yield Item("Reference standard, and who set it", _reference(context), _reference_gap(context))
    yield Item("Size of the sample, and why", _sample(context), "why that many")
    yield Item("Parts of the data, and at which level they are disjoint", _independence(context))


def _method(context: ReportContext) -> Iterator[Item]:
    """Yield what the model is and how it was trained, chosen and measured."""
    yield Item("The model", _design(context))
    yield Item("Software, hardware and precision", _software(context))
    yield Item("Initialization and randomness", f"Seed {context.facts['seed']}." if "seed" in context.facts else "")
    settings = "All settings are on the page (report.html) and in run.json."
    yield Item("Training and settings", settings if context.config else "")
    chosen = "labelled validation films" if context.supervised else "the validation films; no label is needed for it"
    yield Item("Choice of the final model", f"The checkpoint was chosen on {chosen}.", "how settings were chosen")
    one = "None: one training."
    several = f"{counted(context.trainings, 'training')}, combined."
    yield Item("Ensembling", several if context.trainings > 1 else one)
    yield Item("Threshold, and whether it was set beforehand", _threshold(context))
    yield Item("Measures of performance and uncertainty", _uncertainty(context.figures))
    yield Item("Robustness", "", "other seeds (`anomaly bench`), other machines, repeated films")
    maps = "Heatmaps on one scale for all films; they show what contributed to the score, and outline nothing."
    yield Item("Explanation of a result", maps if context.map_scale is not None else "None: the model draws no map.")


def _results(context: ReportContext) -> Iterator[Item]:
    """Yield what came out, for whom, and what is not known of it."""
    figures = context.figures
    yield Item("Flow of patients and films", _flow(context))
    yield Item("Who the patients are", _personal(figures), "age, sex and setting" if not _personal(figures) else "")
    yield Item("Performance with intervals", _performance(figures))
    yield Item("Results at the threshold", _at_threshold(figures))
    yield Item("Subgroups and fairness", _fairness(figures), "" if figures.columns else "differences between groups")
    wrong = f"The {counted(len(context.wrong), 'most wrong film')} are shown in wrong.html."
    yield Item("Analysis of failures", wrong if context.wrong else "", "their causes")
    yield Item("Test on films from elsewhere", _external(context))
    yield Item("Harm that its use could do", "")
    yield Item("Limits", "See Limits.")
    yield Item("Registration, protocol, funding, access to data and code", "")


def _software(context: ReportContext) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in context.versions.items())
    precision = context.origin.get("precision", "")
    parts = [f"Versions: {versions}." if versions else "", f"Computed in {precision}." if precision else ""]
    return " ".join([*(part for part in parts if part), "Nothing pickled is loaded; files are written whole."])


def _population(context: ReportContext) -> str:
    main = context.figures.main
    drawn = "SYNTHETIC films, of nobody. " if context.figures.synthetic else ""
    return f"{drawn}{counted(main.n, 'labelled film')} of {counted(main.n_patients, 'patient')} evaluated."


def _independence(context: ReportContext) -> str:
    figures = context.figures
    if "new" in figures.split:
        return "New films. Films of the training among them, the same byte for byte, are named in a note."
    parts = ", ".join(f"{count} {name}" for name, count in context.films.items())
    known = "By patient: no patient is in two splits."
    if figures.unknown_patients:
        known = f"By patient where patients are known; of {counted(figures.unknown_patients, 'film')} they are not."
    return f"{known} Films used: {parts}." if parts else known


def _reference(context: ReportContext) -> str:
    if context.figures.synthetic:
        return "Exact: the findings were drawn."
    return "The labels of the source, taken as they are." if context.figures.main.n else ""


def _reference_gap(context: ReportContext) -> str:
    return "" if context.figures.synthetic else "who read the films, how, and how far readers agreed"


def _design(context: ReportContext) -> str:
    films = "labelled films" if context.supervised else "films of normal patients only"
    about = f" {context.about}" if context.about else ""
    return f"{context.model}, trained on {films}.{about}"


def _conditions(context: ReportContext) -> str:
    if context.figures.synthetic:
        return "None: the films are drawn."
    return "Films as their source has them; nobody worked with the results."


def _information(context: ReportContext) -> str:
    return "This card, the page (report.html), thresholds in calibration.json, every score in scores.csv."


def _unusable(context: ReportContext) -> str:
    unknown = context.figures.films - context.figures.main.n
    left_out = f"{counted(len(context.failures), 'film')} could not be used"
    labels = f"; {counted(unknown, 'film')} of unknown label count in no figure" if unknown > 0 else ""
    return f"{left_out}{labels}."


def _sample(context: ReportContext) -> str:
    main = context.figures.main
    return f"{counted(main.n, 'film')} of {counted(main.n_patients, 'patient')}, {main.n_abnormal} abnormal."


def _threshold(context: ReportContext) -> str:
    if context.threshold is None:
        return ""
    rule = "on labelled validation films" if context.rule == "youden" else "on validation normals"
    return f"{context.score} from {context.threshold:.4g}, set {rule}, before the films here were scored."


def _uncertainty(figures: Metrics) -> str:
    settings = figures.settings
    return (
        f"ROC-AUC and average precision by film, study and patient; {100 * settings.level:.0f} % intervals over "
        f"patients ({settings.resamples:,} draws, seed {settings.seed}); trivial detectors beside them."
    )


def _flow(context: ReportContext) -> str:
    figures = context.figures
    main, scored = figures.main, figures.films or figures.main.n
    return (
        f"{counted(scored, 'film')} scored; {main.n} with a label, {main.n - main.n_abnormal} normal and "
        f"{main.n_abnormal} abnormal, of {counted(main.n_patients, 'patient')}."
    )


def _personal(figures: Metrics) -> str:
    named = [name for name in figures.columns if {*name.lower().replace("_", " ").split()} & {*PERSONAL}]
    return f"By {', '.join(named)} in the table of subgroups." if named else ""


def _performance(figures: Metrics) -> str:
    main = figures.main
    if main.roc_auc is None:
        return "None: there are no films of both labels."
    return f"ROC-AUC {with_interval(main.roc_auc, main.roc_auc_interval)} by film ({figures.score})."


def _at_threshold(figures: Metrics) -> str:
    flagged = figures.main.threshold
    if flagged is None:
        return ""
    return (
        f"{flagged.n_flagged} of {counted(figures.main.n, 'film')} flagged: sensitivity {number(flagged.sensitivity)}, "
        f"specificity {number(flagged.specificity)}, precision {number(flagged.precision)} at this prevalence."
    )


def _fairness(figures: Metrics) -> str:
    measured = [*figures.kinds, *figures.columns]
    return f"By {', '.join(measured)} in the table of subgroups." if measured else ""


def _external(context: ReportContext) -> str:
    if "new" in context.figures.split:
        return "These are new films; whether they are from elsewhere, their reader knows."
    return "None: films of the source that it was trained on."
