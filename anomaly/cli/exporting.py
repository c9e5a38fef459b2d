"""The verb that makes a bundle of a run: export."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from anomaly.cli.declare import command
from anomaly.console import say
from anomaly.formatting import command_line
from anomaly.pipeline.options import ExportOptions
from preprocessing import InputError
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.export.probe import Difference


@command(ExportOptions)
def export(options: ExportOptions) -> None:
    """Export a run as a bundle: an ONNX graph that scores as the training did, without torch."""
    from anomaly.export.bundle import is_bundle
    from anomaly.runs import Run

    if is_bundle(options.run):
        _check_bundle(options)
        return
    from anomaly.pipeline.export import check_export, export_run
    from anomaly.pipeline.open_run import run_films

    run = Run(options.run)
    if options.check:  # refused before anything is written, where the films are not there
        try:
            run_films(run, "test", options.cache)
        except InputError as error:
            named = " (--cache)" if options.cache else ""
            raise InputError(f"--check scores films of the run's cache{named} again: {error}") from None
    exported = export_run(run, options.out, calibration=options.calibration, layout=options.layout)
    bundle = exported.bundle
    outputs = ", ".join(tensor.name for tensor in bundle.outputs)
    files = counted(len(bundle.files) + 1, "file")
    say(
        f"{exported.folder}: {bundle.model} of {bundle.run}, {bundle.size} px, {outputs}; opset {bundle.opset}; {files}"
    )
    for net in bundle.nets.values():
        say(f"the recipe's {net.name} is in it as {net.file}")
    for note in bundle.notes:
        say(f"note: {note}")
    sound = True
    if options.check:
        differences, films = check_export(exported, run, options.cache)
        sound = _show(differences, f"torch against the bundle on {counted(films, 'film')} of the test split")
    else:
        worst = max(exported.probe, key=lambda row: row.largest / row.at_most)
        say(f"on {counted(worst.films, 'made-up film')} it differs from torch by {worst.largest:.1e} ({worst.output})")
    say(f"next: {command_line('anomaly', 'score', exported.folder, 'FILMS')}")
    if not sound:
        raise typer.Exit(1)


def _check_bundle(options: ExportOptions) -> None:
    """Compare a bundle, without torch, with what torch said of its made-up films."""
    from anomaly.export.probe import check_bundle

    if not options.check or options.out is not None:
        raise InputError(f"{options.run} is a bundle; `anomaly export {options.run} --check` checks it on this machine")
    differences = check_bundle(options.run)
    sound = _show(differences, f"{Path(options.run)}: this machine against torch on made-up films")
    say(f"next: {command_line('anomaly', 'score', options.run, 'FILMS')}")
    if not sound:
        raise typer.Exit(1)


def _show(differences: Sequence["Difference"], title: str) -> bool:
    """Print the differences as a table, and return whether they are rounding."""
    say(title)
    say(f"{'output':22} {'largest difference':>18} {'rounding':>9} {'films beyond':>12} {'flags differing':>15}")
    for row in differences:
        at = f" ({row.at_threshold} at the threshold)" if row.at_threshold else ""
        flags = "" if row.output in ("map", "reconstruction") else f"{row.flags}{at}"
        say(f"{row.output:22} {row.largest:18.1e} {row.at_most:9.0e} {row.beyond:12} {flags:>15}")
    sound = all(row.sound for row in differences)
    say("they agree" if sound else "THEY DIFFER by more than rounding")
    return sound
