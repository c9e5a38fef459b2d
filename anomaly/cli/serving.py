"""Verbs that keep a run at work: serve, watch."""

import signal
from types import FrameType
from typing import TYPE_CHECKING

from anomaly.cli.declare import command, next_again
from anomaly.console import SYNTHETIC, plain, say, warn
from anomaly.formatting import number
from anomaly.pipeline.options import words_of
from anomaly.service.options import ServeOptions, WatchOptions
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.service.records import FilmResult
    from anomaly.service.serve import Serving


@command(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Score films that come over HTTP, or by DICOM from a PACS, until it is stopped (Ctrl-C, SIGTERM).

    Films that have been accepted survive a kill: they wait in --spool, and the same command goes on with them.
    """
    from anomaly.service.serve import serve as run

    def ready(serving: "Serving") -> None:
        for note in serving.notes:
            warn(note)
        say(f"calibration: {serving.facts.calibration or 'the one of the training'}")
        if serving.left.waiting:
            say(f"{counted(serving.left.waiting, 'film')} of an earlier time are scored first")
        if serving.left.unsent and options.send_to:
            say(f"findings on {counted(serving.left.unsent, 'film')} of an earlier time are sent first")
        if serving.dicom:
            say(f"{serving.dicom}: the DICOM node{f', which sends to {options.send_to}' if options.send_to else ''}")
        say(f"{serving.address}: POST /films, /worklist, /health; {serving.address}/docs says what else")

    left = run(options, ready)
    say(f"stopped; {counted(left.waiting, 'film')} wait in {options.spool}")
    if left.unsent:
        say(f"findings on {counted(left.unsent, 'film')} are unsent; they are kept until they are sent or deleted")
    if left.refused:
        say(f"findings on {counted(left.refused, 'film')} were refused; they are kept, and tried at the next start")
    say(next_again())


@command(WatchOptions)
def watch(options: WatchOptions) -> None:
    """Score films as they come into a folder, until it is stopped (Ctrl-C, SIGTERM); each once, whatever happens."""
    from anomaly.pipeline.map_files import split_formats
    from anomaly.runs import Run
    from anomaly.service.detector import OpenRunFolder
    from anomaly.service.watch import Watch

    formats, kinds = split_formats([] if options.formats == "none" else words_of(options.formats), "none")
    if kinds:
        from anomaly.export.dicom_objects import check_highdicom

        check_highdicom()
    Run(options.run)  # refused at once where it is none
    watched = Watch(
        options.folder,
        options.out,
        OpenRunFolder(options.run, options.calibration, options.device),
        formats=formats,
        dicom=kinds,
        seconds=options.timeout,
        on_result=_say_result,
    )

    def stop(number: int, frame: FrameType | None) -> None:
        watched.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        facts = watched.open()
        if facts.synthetic:
            say(SYNTHETIC)
        for note in watched.notes():
            warn(note)
        say(f"calibration: {facts.calibration or 'the one of the training'}")
        if facts.remembered:
            warn(facts.remembered)
        counts = watched.run(options.every, once=options.once)
    finally:
        watched.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    flagged = f"{counts.flagged} of {counted(counts.scored, 'film')} flagged"
    say(f"{options.out / 'results.csv'}: {flagged}{f', {counts.failed} left out' if counts.failed else ''}")
    if counts.unstable:
        warn(f"{counted(counts.unstable, 'file')} still changed, and are left for the next time")
    say(next_again())


def _say_result(film: str, result: "FilmResult") -> None:
    from anomaly.service.detector import NO_DICOM

    if result.state == "failed":
        warn(f"left out: {plain(film)}: {result.error}")
    for note in result.notes:
        if note.startswith(NO_DICOM):
            warn(f"{plain(film)}: {note}")
    for part in result.parts:
        name = f"{film}#{part.part}" if part.part else film
        p_value = "" if part.p_value is None else f", p {number(part.p_value)}"
        outside = ", unlike the films of the training" if part.out_of_domain else ""
        say(f"{name}: {result.score_name} {number(part.score)}{p_value}{', flagged' * part.flagged}{outside}")
