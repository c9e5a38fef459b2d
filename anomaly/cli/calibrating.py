"""The verb that makes a run ready for the films of another place: calibrate."""

from typing import TYPE_CHECKING

from anomaly.cli.declare import command
from anomaly.console import progress, say, warn
from anomaly.formatting import command_line
from anomaly.pipeline.options import CalibrateOptions
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.pipeline.calibrate import Calibrated


@command(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> None:
    """Calibrate a run on normal films of the place where it is used: thresholds and map scale, without retraining."""
    from anomaly.models import TOOLS
    from anomaly.pipeline.calibrate import calibrate_run
    from anomaly.runs import Run
    from preprocessing import InputError
    from preprocessing.sources import open_films

    run = Run(options.run)
    if run.config.model in TOOLS:
        raise InputError(f"{run.path} prepares films and scores none: there is nothing to calibrate")
    source = open_films(list(options.normals)).where(options.where)
    done = calibrate_run(run, source, options, progress)
    for path, reason in done.failures[:3]:
        warn(f"left out: {path}: {reason}")
    if len(done.failures) > 3:
        warn(f"left out: {len(done.failures) - 3} more films that can't be read")
    for line in _lines(done):
        say(line)


def _lines(done: "Calibrated") -> list[str]:
    """Return what was made, and what to do with it."""
    from anomaly.evaluation.conformal import in_percent

    source, name = done.source, done.run.calibration_name
    main, calibration = done.run.main_score(None), done.run.calibration
    new, old = (found.thresholds["mean"]["film"][main] for found in (calibration, done.before))
    reference = calibration.reference("mean", "film", main)
    if source.refitted != "no":
        before = f"; what scores compare with is another, so the run's own threshold, {old:.6g}, means nothing here"
    elif reference is None:
        before = f"; by the run's own calibration from {old:.6g}"
    else:
        flagged = in_percent(reference.share_from(old))
        before = f"; by the run's own calibration from {old:.6g}, which {flagged} of these reach"
    films = f"{counted(source.films, 'film')} of {counted(source.patients, 'patient')} of {source.source}"
    return [
        *done.notes[:4],
        *calibration.notes[:2],
        f"{done.folder}: calibrated on {films}",
        f"a film is flagged from {main} {new:.6g}{before}",
        calibration.sentence("mean", "film", main),
        f"next: {command_line('anomaly', 'score', done.run.run.path, 'FILMS', '--calibration', name)}",
    ]
