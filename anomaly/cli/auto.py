"""The verb auto."""

from typing import TYPE_CHECKING

from anomaly.cli.declare import command
from anomaly.console import SYNTHETIC, clock, progress, say, warn
from anomaly.formatting import with_interval
from anomaly.pipeline.options import AutoOptions

if TYPE_CHECKING:
    from anomaly.pipeline.auto import Search


@command(AutoOptions)
def auto(options: AutoOptions) -> None:
    """Find the detector that suits your films: prepare them, train several within a time budget, choose on val, test
    the chosen one once. The same command goes on after an interruption.
    """
    from anomaly.pipeline.auto import auto as search_detectors
    from anomaly.reporting.auto import render_auto
    from anomaly.runs import write_atomic

    search = search_detectors(options, display=progress, tell=say)
    page = search.folder / "index.html"
    write_atomic(page, render_auto(search.record, str(search.folder)))
    _conclude(search)
    say(f"{page}: the page to open")
    for line in search.record.commands:
        say(f"next: {line}")


def _conclude(search: "Search") -> None:
    """Say what was chosen, why, and what it gave on the test films."""
    record = search.record
    assert record.choice is not None
    for note in record.notes:
        warn(note)
    if record.synthetic:
        say(SYNTHETIC)
    say(f"chosen: {record.choice.reason}")
    if record.choice.below_floor:
        say(record.choice.below_floor)
    if record.test is None:
        say(f"no figure on test films: {record.test_reason}")
    else:
        test = record.test
        say(
            f"test, {record.test_looks}: ROC-AUC {with_interval(test.roc_auc, test.interval)} of {test.films} films, "
            f"{test.abnormal} abnormal, of {test.patients} patients"
        )
    say(f"{clock(record.spent)} of {record.minutes} min spent")
