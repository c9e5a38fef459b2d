"""Verbs on what was trained: runs, compare, rm."""

from typing import TYPE_CHECKING

from anomaly.cli.declare import command
from anomaly.console import SYNTHETIC, ask, at_terminal, hand_over, say, warn
from anomaly.formatting import command_line, markdown, number, size_on_disk, with_interval
from anomaly.pipeline.options import CompareOptions, RmOptions, RunsOptions
from preprocessing import InputError
from preprocessing.wording import counted

MOST_REASONS = 10
"""Damaged runs of which the list says why."""
if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomaly.experiments.run_comparison import RunComparison
    from anomaly.experiments.run_list import Listed


@command(RunsOptions)
def runs(options: RunsOptions) -> None:
    """List runs, ensembles and benches: what they are, how far they are, and how good."""
    from anomaly.experiments.run_list import list_runs
    from anomaly.runs import to_json

    listed = list_runs(options.folder, options.sort)
    if options.json:
        hand_over(to_json([one.to_data() for one in listed]))
        return
    if not listed:
        say(f"{options.folder}/ has no run and no bench")
        say("next: anomaly train cae")
        return
    head = ("name", "model", "films", "variant", "px", "state", "ROC-AUC by film", "on disk", "made")
    for line in markdown(head, [_row(one, options) for one in listed]):
        say(line)
    say("ROC-AUC of the score reported first, on the test split, with its 95 % interval over patients")
    damaged = [one for one in listed if one.reason]
    for one in damaged[:MOST_REASONS]:
        warn(f"{one.path}: {one.reason}")
    if len(damaged) > MOST_REASONS:
        warn(f"... and {len(damaged) - MOST_REASONS} more that are damaged; `anomaly runs --json` has their reasons")
    say(f"next: {_next(listed)}")


def _row(one: "Listed", options: RunsOptions) -> list[str]:
    name = one.path.relative_to(options.folder) if one.path.is_relative_to(options.folder) else one.path
    figure = "–" if one.roc_auc is None else f"{with_interval(one.roc_auc, one.interval)} {one.score}"
    films = f"{one.films or '–'}{' (SYNTHETIC)' * one.synthetic}"
    made = "–" if one.created is None else f"{one.created.astimezone():%Y-%m-%d %H:%M}"
    state = f"{one.state}{f', {one.progress}' if one.progress else ''}"
    size = "–" if one.size is None else str(one.size)
    return [str(name), one.model or "–", films, one.variant or "–", size, state, figure, size_on_disk(one.bytes), made]


def _next(listed: "Sequence[Listed]") -> str:
    """Return what suits the list: compare two runs of the same films, or score one, or look at one."""
    by_films: dict[str, Listed] = {}
    for one in listed:
        if one.roc_auc is not None and one.state == "finished":
            if one.content in by_films:
                return command_line("anomaly", "compare", by_films[one.content].path, one.path)
            by_films[one.content] = one
    unscored = [one for one in listed if one.state == "finished" and one.kind != "bench" and one.roc_auc is None]
    if unscored:
        return command_line("anomaly", "score", unscored[0].path)
    shown = [one for one in listed if one.state != "damaged"]
    return command_line("anomaly", "report", shown[0].path) if shown else "anomaly train cae"


@command(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Compare two runs on the same test films: the difference of their ROC-AUCs, its interval, its p-value."""
    from anomaly.experiments.run_comparison import compare_runs
    from anomaly.runs import run_and_score, to_json

    compared = compare_runs(run_and_score(options.first), run_and_score(options.second), shared=options.shared)
    if options.json:
        hand_over(to_json(compared.to_data()))
        return
    if compared.synthetic:
        say(SYNTHETIC)
    for line in _compared(compared):
        say(line)
    better = compared.second if compared.comparison.difference < 0 else compared.first
    say(f"next: {command_line('anomaly', 'report', better.run.path)}")


def _compared(compared: "RunComparison") -> list[str]:
    """Return the comparison in words."""
    found, sides = compared.comparison, (compared.first, compared.second)
    head = ("run", "score", "ROC-AUC by film")
    lines = markdown(
        head, [(str(side.run.path), side.score, with_interval(side.roc_auc, side.interval)) for side in sides]
    )
    lines.append(
        f"on the same {counted(compared.films, 'test film')} ({compared.abnormal} abnormal) of "
        f"{counted(compared.patients, 'patient')}; 95 % intervals over patients, drawn for both alike"
    )
    if compared.left_out:
        lines.append(f"left out: {counted(compared.left_out, 'test film')} that only one of them has")
    difference = f"difference {with_interval(found.difference, (found.low, found.high))}"
    if found.p != found.p:
        return [*lines, f"{difference}; no p-value: too few patients, or the same difference in every draw"]
    verdict = "distinguishable" if found.p < 0.05 else "not distinguishable"
    lines.append(f"{difference}, p {'< .001' if found.p < 0.001 else f'= {number(found.p)}'}: {verdict} at 5 %")
    lines.append("that is of these two trainings: how far other seeds differ is not in it (`anomaly bench --seeds`)")
    return lines


@command(RmOptions)
def rm(options: RmOptions) -> None:
    """Remove runs, ensembles or benches, after asking; those that others need, or a process works in, are refused."""
    from anomaly.experiments.run_removal import check_removal, remove

    removals = check_removal(options.runs)
    for removal in removals:
        say(f"{removal.path}: {removal.kind}, {size_on_disk(removal.bytes)}")
    total = size_on_disk(sum(removal.bytes for removal in removals))
    if not options.yes:
        if not at_terminal():
            raise InputError("nobody can be asked here, as there is no terminal: add --yes to remove them")
        if ask(f"remove {counted(len(removals), 'folder')}, {total}? [y/N] ").casefold() not in ("y", "yes"):
            say("nothing is removed")
            return
    remove(removals)
    say(f"{counted(len(removals), 'folder')} removed, {total} freed")
    say("next: anomaly runs")
