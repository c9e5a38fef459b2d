"""Verbs on films and caches: phantom, preprocess, inspect."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.cli.declare import command
from anomaly.console import SYNTHETIC, progress, say, warn
from anomaly.formatting import command_line
from anomaly.pipeline.options import CACHES, InspectOptions, PhantomOptions, PreprocessOptions
from preprocessing import InputError
from preprocessing.wording import counted

NAMED_REASONS, NAMED_FILMS = 2, 3  # in the line that says what was left out
if TYPE_CHECKING:
    from anomaly.pipeline.preprocess import Preprocessed
    from preprocessing.cache.reader import Cache
    from preprocessing.sources import Source


@command(PhantomOptions)
def phantom(options: PhantomOptions) -> None:
    """Draw the built-in SYNTHETIC hand films, in MURA's tree, with exact boxes and masks beside them."""
    from anomaly.pipeline.preprocess import draw_phantoms

    drawn = draw_phantoms(options, display=progress)
    say(
        f"{options.out}: {counted(drawn.films, 'film')}, {drawn.normal} normal and {drawn.abnormal} abnormal, of "
        f"{counted(drawn.patients, 'patient')}"
    )
    say(SYNTHETIC)
    say(f"next: {command_line('anomaly', 'preprocess', options.out)}")


@command(PreprocessOptions)
def preprocess(options: PreprocessOptions) -> "Preprocessed":
    """Prepare films into one HDF5 cache: crop, localize, mask, equalize. The same command resumes."""
    from anomaly.pipeline import preprocess as preparation

    if options.source is None:
        say("no SOURCE given: using the built-in films")
    done = preparation.preprocess(options, display=progress)
    if done.reason:
        say(done.reason)
    for note in done.notes:
        warn(note)
    if done.net:
        origin = options.source or preparation.PHANTOMS
        count, all_films = len(done.source.records), counted(done.candidates, "film")
        say(f"{origin}: {count} of {all_films} have {done.net.targets} beside them")
    _describe(done)
    say(f"next: {command_line('anomaly', 'train', options.net or 'cae', '--cache', done.report.path)}")
    if options.net is None:  # which chooses a detector for these films
        say(f"next: {command_line('anomaly', 'auto', done.report.path)}")
    if done.failures:
        say(_left_out(done))
    return done


def _left_out(done: "Preprocessed") -> str:
    """Return how many films there are, how many could not be prepared, and why, as the last line that is read."""
    reasons: dict[str, list[str]] = {}
    for path, reason in done.failures:
        reasons.setdefault(reason, []).append(path)
    named = [f"{_few(paths)}: {reason}" for reason, paths in list(reasons.items())[:NAMED_REASONS]]
    named += ["..."] if len(reasons) > NAMED_REASONS else []
    return f"{counted(done.report.rows, 'film')} written, {len(done.failures)} left out ({'; '.join(named)})"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_FILMS} more" if len(names) > NAMED_FILMS else ""
    return ", ".join(names[:NAMED_FILMS]) + more


def _describe(done: "Preprocessed") -> None:
    report, source = done.report, done.source
    for note in (*report.notes, *done.cache_notes):
        warn(note)
    for path, reason in report.failures[:10]:
        warn(f"left out: {path}: {reason}")
    if len(report.failures) > 10:
        lists = command_line("anomaly", "inspect", report.path)
        warn(f"... and {len(report.failures) - 10} more; `{lists}` lists them")
    state = "already there" if report.reused else "written"
    say(
        f"{report.path}: {counted(report.rows, 'film')} {state}, {len(report.failures)} left out, of {source.name} "
        f"({source.kind})"
    )
    if source.synthetic:
        say(SYNTHETIC)
    labels = [record.label for record in source.records]
    if source.kind == "folder":
        warn(f"{source.name} has no labels: {counted(len(labels), 'film')} assumed to be normal")
    elif 0 not in labels:
        warn(f"{source.name} has no normal films, so detectors can't be trained on it")


@command(InspectOptions)
def inspect(options: InspectOptions) -> None:
    """Summarize a cache: counts, sizes, depths, splits, fallbacks, failures; problem films first."""
    from anomaly.runs import to_json
    from preprocessing import inspect as inspection
    from preprocessing.cache.reader import Cache, newest_cache

    cache = Cache(options.cache or newest_cache(CACHES))
    summary = inspection.summarise(cache)
    for line in to_json(summary).splitlines() if options.json else inspection.format(summary):
        say(line)
    if options.sheet:
        originals = original_films(cache, options.source, needed=False)
        inspection.sheet(cache, originals, options.sheet, count=options.films)
        say(f"{options.sheet}: contact sheet")
    if options.verify:
        problems = cache.verify()
        if problems:
            raise InputError(
                f"{cache.path}: {counted(len(problems), 'fault')}, the first: {problems[0]}; run `{cache.remake}`"
            )
        say(f"{cache.path}: every checksum holds")
    if not options.json:
        say(f"next: {command_line('anomaly', 'train', 'cae', '--cache', cache.path)}")


def original_films(cache: "Cache", moved: Path | None, *, needed: bool) -> "Source | None":
    """Return the original films of a cache, or None where they are gone and not needed.

    moved  where they are now, if not where they were.
    """
    from preprocessing.sources import open_source

    path = moved or Path(cache.source_path)
    if not path.exists():
        if needed or moved:
            raise InputError(f"the films of {cache.path} are not at {path}; give their place with --source")
        return None
    return open_source(path, strict=False, follow_links=True)
