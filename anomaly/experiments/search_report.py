"""What a search leaves for its reader: trials.csv, best.json, a picture, and lines to print."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from anomaly import runs
from anomaly.experiments.study import BestFile, Outcome, State, Trial, Value
from anomaly.formatting import markdown
from anomaly.models.search_space import Choice, Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 10
"""Trials in the table."""
COLUMNS = 3
"""Settings side by side in the picture."""
ENDED: tuple[State, ...] = ("complete", "pruned", "failed")


def write(outcome: Outcome, settings: Mapping[str, JsonValue]) -> None:
    """Write trials.csv, best.json and tune.png into the study's folder."""
    trials = outcome.trials
    names = ("number", "state", "value", "epochs", "seconds", "note")
    columns: dict[str, Sequence[Value | None]] = {name: [getattr(t, name) for t in trials] for name in names}
    columns |= {name: [t.parameters.get(name) for t in trials] for name in outcome.space}
    columns["synthetic"] = [int(outcome.synthetic)] * len(trials)
    runs.write_atomic(outcome.folder / "trials.csv", runs.to_csv(columns))
    best, command = outcome.best, outcome.command()
    if best is not None and command is not None:
        file = BestFile(
            study=outcome.name,
            model=outcome.plan.model,
            objective=outcome.objective,
            value=value_of(best),
            trial=best.number,
            epochs=best.epochs,
            parameters=dict(best.parameters),
            run=str(outcome.folder / "trials" / str(best.number)),
            command=command,
            importance=dict(outcome.importance),
            trials={state: outcome.count(state) for state in ENDED},
            synthetic=outcome.synthetic,
            settings=dict(settings),
        )
        runs.write_atomic(outcome.folder / "best.json", runs.to_json(file.model_dump(mode="json")))
    runs.write_atomic(outcome.folder / "tune.png", picture(outcome))


def value_of(trial: Trial) -> float:
    """Return the value of a complete trial."""
    assert trial.value is not None
    return trial.value


def summary(outcome: Outcome) -> list[str]:
    """Return the study as lines to print: the best trials, what mattered, where it is, what to do next."""
    names = list(outcome.space)
    rows = [
        (
            str(t.number),
            "" if t.value is None else f"{t.value:.6g}",
            f"{t.epochs}{'' if t.state == 'complete' else f' ({t.note or t.state})'}",
            *(_short(t.parameters.get(name)) for name in names),
        )
        for t in outcome.ranked()[:SHOWN]
    ]
    lines = [_headline(outcome), *markdown(["trial", outcome.objective, "epochs", *names], rows)]
    if outcome.importance:
        shares = sorted(outcome.importance.items(), key=lambda pair: -pair[1])
        lines.append(f"importance over complete trials: {', '.join(f'{name} {share:.0%}' for name, share in shares)}")
    lines.append(f"{outcome.folder}: trials.csv, best.json, tune.png")
    best = outcome.best
    if best is None:
        return [*lines, "no trial is complete: all were pruned or diverged; raise --trials, or --set epochs="]
    run = outcome.folder / "trials" / str(best.number)
    lines.append(f"train with the best settings: {outcome.command()}")
    if (run / "run.json").is_file():  # the folder of a trial of another machine is there
        lines.append(f"{run}: the best run, which can be used like any other")
    return lines


def _headline(outcome: Outcome) -> str:
    """Return what the study is and how far it is, in one line."""
    counts = ", ".join(f"{outcome.count(state)} {state}" for state in ENDED)
    objective = "validation loss" if outcome.objective == "loss" else f"validation ROC-AUC {outcome.objective[4:]}"
    return f"{'SYNTHETIC films: ' if outcome.synthetic else ''}{outcome.plan.model}, {objective}, trials: {counts}"


def _short(value: Value | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- the picture ----------------------------------------------------------------------------------------------------


def picture(outcome: Outcome) -> bytes:
    """Return a PNG: the value of each trial, with the best so far, and against every setting; pruned ones are faint."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(outcome.space)
    complete, pruned = _with_value(outcome, "complete"), _with_value(outcome, "pruned")
    values = [value_of(t) for t in complete + pruned]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(11, 3.2 + 2.6 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[1.2] + [1.0] * rows)
    over_trials = figure.add_subplot(grid[0, :])
    if values and 0 < 5 * min(values) < max(values):
        over_trials.set_yscale("log")
    _draw_trials(over_trials, outcome, "trial", None)
    for place, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS], sharey=over_trials)
        _draw_trials(axes, outcome, name, outcome.space[name])
    if complete:
        best = (np.minimum if outcome.objective == "loss" else np.maximum).accumulate([value_of(t) for t in complete])
        numbers = [*(t.number for t in complete), max(t.number for t in complete + pruned)]
        over_trials.step(numbers, [*best, best[-1]], where="post", color="tab:red", label="best so far")
    over_trials.set_ylabel(outcome.objective)
    over_trials.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    over_trials.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(_headline(outcome))
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _draw_trials(axes: "Axes", outcome: Outcome, name: str, values: Range | Choice | None) -> None:
    """Draw the value of each trial against a setting or, without `values`, against its number."""
    for state, alpha in (("pruned", 0.3), ("complete", 1.0)):
        trials = _with_value(outcome, state)
        x, y = [_position(t, name, values) for t in trials], [value_of(t) for t in trials]
        axes.scatter(x, y, s=16, alpha=alpha, label=state, color="tab:blue", linewidths=0)
    if best := outcome.best:
        axes.scatter(_position(best, name, values), value_of(best), s=60, facecolors="none", edgecolors="tab:red")
    if isinstance(values, Choice):
        axes.set_xticks(range(len(values.options)), [str(option) for option in values.options])
        axes.set_xlim(-0.5, len(values.options) - 0.5)
    elif values and values.log:
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)


def _with_value(outcome: Outcome, state: str) -> list[Trial]:
    """Return the trials in a state that have a value, in the order of their numbers."""
    return sorted((t for t in outcome.trials if t.state == state and t.value is not None), key=lambda t: t.number)


def _position(trial: Trial, name: str, values: Range | Choice | None) -> float:
    """Return where a trial lies on the axis of a setting, or of the trials' numbers."""
    if values is None:
        return trial.number
    value = trial.parameters[name]
    return values.options.index(value) if isinstance(values, Choice) else float(value)
