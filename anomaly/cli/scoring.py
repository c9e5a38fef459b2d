"""Verbs that use a run: score, report, heatmap."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.cli.declare import command
from anomaly.cli.films import original_films
from anomaly.cli.training import USES
from anomaly.console import SYNTHETIC, progress, say, warn
from anomaly.formatting import command_line
from anomaly.pipeline.options import HeatmapOptions, ReportOptions, ScoreOptions, words_of
from preprocessing import InputError
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.pipeline.choices import Choices, Chosen
    from anomaly.pipeline.open_run import OpenRun
    from anomaly.pipeline.results import Written
    from anomaly.pipeline.scoring import ScoringResult
    from anomaly.pipeline.selection import Selection
    from anomaly.runs import Run


LINES = 20
"""What `score` prints of new films at most, warnings aside."""
MOST_LISTED, LEAST_LISTED = 10, 3
"""Films in its table."""
MOST_FAILURES = 3
"""Unreadable films that are named; results.json names all."""


@command(ScoreOptions)
def score(options: ScoreOptions) -> None:
    """Score films, studies and patients; with labels: ROC-AUC and AP with confidence intervals, a table, a page.

    For a run of ssd, unet or dense: how well it detects hands and markers, or segments the foreground.
    """
    from anomaly.models import TOOLS
    from anomaly.pipeline.choices import Choices, choices_of, remember
    from anomaly.pipeline.pictures import PictureCollector
    from anomaly.pipeline.results import write_results
    from anomaly.pipeline.scoring import score_selection
    from anomaly.pipeline.worklist import write_worklist
    from anomaly.runs import Run

    given = choices_of(
        score=options.by,
        aggregate=options.aggregate,
        false_alarms=options.false_alarms,
        sensitivity=options.sensitivity,
        threshold=options.threshold,
        fdr=options.fdr,
    ).model_copy(update={"calibration": options.calibration})
    run = Run(options.run)
    if run.config.model in TOOLS:
        if options.paths or options.out or given != Choices() or options.fdr:
            raise InputError(
                f"{run.path} prepares films: it is measured on its cache's; leave out PATHS, --out, --by, --aggregate "
                "and what flags films"
            )
        _measure(run, options)
        return
    chosen = _chosen(run, options, given, options.fdr)
    with _selection(run, options) as selection:
        new = selection.name == "new"
        pictures = PictureCollector(chosen.score, options.pictures if new else 0, chosen.run.calibration.map_scale)
        result = score_selection(
            chosen.run,
            selection,
            by=chosen.score,
            pooling=chosen.aggregate,
            by_column=options.by_column,
            command=_command(options, chosen),
            display=progress,
            collect=(pictures,),
            fdr=chosen.fdr,
        )
        folder = options.out or selection.folder(run)
        files = write_results(result, folder)
        if new:
            files += write_worklist(result, pictures, folder, display=progress)
        _print(result, files, options)
        remember(chosen)
        if not new:
            say(f"next: {command_line('anomaly', 'heatmap', run.path)}")
        _refuse_failures(selection, folder / "results.json")


def _print(result: "ScoringResult", files: "Written", options: ScoreOptions) -> None:
    """Print what came out: of new films the highest-ranked ones or the main figures, of the run's own all figures."""
    from anomaly.reporting.text import summary

    if result.selection.name == "new":
        _print_new(result, files, options)
        return
    for line in _notes(result):
        say(line)
    if result.evaluation is not None:
        say(result.flagging("film"))
    pages = [(path, content) for path, content in files if path.suffix in (".html", ".png")]
    for path, content in files:
        if (path, content) not in pages:
            say(f"{path}: {content}")
    for line in summary(result.evaluation.figures) if result.evaluation else ():
        say(line)
    if result.evaluation is None and result.no_figures is None:
        say("no figures: the model was trained on some of these films")
    for path, content in pages:
        say(f"{path}: {content}")


def _print_new(result: "ScoringResult", files: "Written", options: ScoreOptions) -> None:
    """Print at most LINES lines on new films, however many there are; the files have the rest."""
    from anomaly.reporting.external import external_lines
    from anomaly.reporting.text import flag_table

    said = (*result.selection.notes, result.run.remembered)  # before scoring
    lines = [note for note in (result.notes if len(result) > 1 else _notes(result)) if note not in said]
    after = [_origin(result), *_files(files), f"next: {_next(result, options)}"]
    if result.evaluation is not None:
        lines += external_lines(result.evaluation.figures)
    else:
        after.insert(0, f"flagged: {result.flag_counts}")
        listed = min(len(result), MOST_LISTED, max(LEAST_LISTED, LINES - len(lines) - len(after) - 3))
        highest = sorted(result.films, key=lambda film: -film.score)[:listed]
        films, scores = [film.id for film in highest], [film.score for film in highest]
        p_values = [film.p_value for film in highest]
        lines += flag_table(films, scores, result.main, result.threshold("film"), p_values)
        if listed < len(result):
            lines.append(f"... and {counted(len(result) - listed, 'film')} that score lower")
    if len(lines) > (room := LINES - len(after)):
        lines = [*lines[: room - 1], f"... and {len(lines) - room + 1} more lines of figures, in metrics.json"]
    for line in (*lines, *after):
        say(line)


def _notes(result: "ScoringResult") -> list[str]:
    """Return what is to be said of a single film, and of the run's own films."""
    return [*result.shift, *([result.no_figures] if result.no_figures else []), *result.calibration_notes]


def _files(files: "Written") -> list[str]:
    """Return the pages with what they show, and the other files of each folder in one line."""
    pages = [f"{path}: {content}" for path, content in files if path.suffix == ".html"]
    others: dict[Path, list[str]] = {}
    for path, _ in files:
        if path.suffix != ".html":
            others.setdefault(path.parent, []).append(path.name)
    return [*(f"{folder}: {', '.join(names)}" for folder, names in others.items()), *pages]


def _next(result: "ScoringResult", options: ScoreOptions) -> str:
    """Return the command to go on with: the heatmaps of the films that score highest, on the original films."""
    words: list[object] = ["anomaly", "heatmap", options.run, *options.paths]
    words += [word for condition in options.where for word in ("--where", condition)]
    words += ["--by", options.by] if options.by else []
    if result.calibration.map_scale is None:
        return command_line("anomaly", "report", options.run)
    words += ["--space", "film"] if result.selection.source else []  # those of a cache may be gone
    return command_line(*words, "--limit", min(len(result), MOST_LISTED))


def _origin(result: "ScoringResult") -> str:
    """Return what the threshold that flags films rests on."""
    run = result.run.run
    recorded = run.config.cache
    trained = "SYNTHETIC films" if recorded.synthetic else f"films of {recorded.source}"
    if result.run.calibrated_on is not None:
        trained += f" and calibrated on those of {result.run.calibrated_on}"
    return f"{run.path} was trained on {trained}; {result.flagging('film')}"


def _command(options: ScoreOptions, chosen: "Chosen") -> str:
    """Return the command that scores these films again, with what was chosen before."""
    choices = chosen.choices.model_copy(update={"aggregate": chosen.aggregate} | ({"rule": None} if chosen.fdr else {}))
    words = ["anomaly", "score", str(options.run), *map(str, options.paths), *choices.words()]
    words += ["--fdr", repr(chosen.fdr)] if chosen.fdr else []
    words += ["--split", options.split] if options.split else []
    words += [word for condition in options.where for word in ("--where", condition)]
    words += [word for column in options.by_column for word in ("--by-column", column)]
    return shlex.join(words + (["--cache", str(options.cache)] if options.cache else []))


def _open(run: "Run", device: str, cache: Path | None, calibration: str | None = None) -> "OpenRun":
    from anomaly.pipeline.open_run import open_run

    opened = open_run(run, device, cache, calibration)
    if opened.note:
        warn(opened.note)
    return opened


def _chosen(
    run: "Run", options: ScoreOptions | HeatmapOptions | ReportOptions, given: "Choices", fdr: float | None = None
) -> "Chosen":
    """Open a run with what is given, and what it remembers, which is said."""
    from anomaly.pipeline.choices import calibration_to_use, choose

    opened = _open(run, options.device, options.cache, calibration_to_use(run, given.calibration))
    chosen = choose(opened, given, fdr=fdr, cache_path=options.cache, display=progress)
    if chosen.run.remembered:
        warn(chosen.run.remembered)
    return chosen


@contextmanager
def _selection(run: "Run", options: ScoreOptions | HeatmapOptions) -> "Iterator[Selection]":
    """Yield what to look at: films of the run's cache, or new ones."""
    from anomaly.pipeline.other_cache import cached_films, other_cache
    from anomaly.pipeline.selection import new_films, recorded_films
    from preprocessing.sources import open_films

    if not options.paths:
        yield recorded_films(run, options.split, options.cache, options.where)
        return
    if options.split or options.cache:
        raise InputError("--split and --cache apply to the run's own films; leave out either them or PATHS")
    if cache := other_cache(options.paths):
        selection = cached_films(run, cache, options.where)
        for note in selection.notes:
            warn(note)
        yield selection
        return
    source = open_films(list(options.paths)).where(options.where)
    with new_films(run, source, workers=options.workers, display=progress) as selection:
        for note in selection.notes:
            warn(note)
        yield selection


def _refuse_failures(selection: "Selection", listing: Path | None = None) -> None:
    """Name the new films that can't be read, when all others are done; where a file lists them, only the first ones."""
    failures = selection.failures
    named = len(failures) if listing is None else MOST_FAILURES
    for path, reason in failures[:named]:
        warn(f"left out: {path}: {reason}")
    if len(failures) > named:
        warn(f"left out: {len(failures) - named} more; {listing} lists them")
    if failures:
        count = len(failures) + len(selection.films)
        raise InputError(f"{len(failures)} of {counted(count, 'film')} can't be read, named above; the others are done")


def _measure(run: "Run", options: ScoreOptions) -> None:
    """Say how good a net that prepares films is."""
    from anomaly.data.splits import SPLITS
    from anomaly.localization.evaluate import evaluate, write_evaluation
    from anomaly.localization.predict import check_split, load_localization_model
    from anomaly.pipeline.open_run import run_cache
    from anomaly.reporting.localization import localization_table
    from anomaly.training.device import choose_device

    split = options.split or "test"
    if split not in SPLITS:
        raise InputError(f"no split {split!r} to measure on; there are: {', '.join(SPLITS)}")
    cache, device = run_cache(run, options.cache), choose_device(options.device)
    check_split(run, cache)
    evaluation = evaluate(run, load_localization_model(run, device), cache, device, split)
    path = write_evaluation(run, evaluation)
    for line in (*localization_table(evaluation), str(path)):
        say(line)
    if run.config.model in USES:
        say(f"next: anomaly preprocess FILMS {USES[run.config.model]}:{shlex.quote(str(run.path))}")
    else:
        say(f"next: {command_line('anomaly', 'models', run.config.model)}")


@command(ReportOptions)
def report(options: ReportOptions) -> None:
    """Make the page of a run or a bench: one HTML file that needs no network."""
    from anomaly.pipeline.choices import Choices
    from anomaly.pipeline.results import write_page
    from anomaly.runs import Run, newest

    chosen = options.path or newest()
    if (chosen / "bench.json").is_file():
        from anomaly.experiments.bench import reopen
        from anomaly.experiments.results import bench_table, shows_paper, write_results

        bench = reopen(chosen, options.cache)
        write_results(bench, bench_table(bench, paper=shows_paper(bench)))
        say(f"{chosen / 'index.html'}: the page to open")
        say(f"next: {command_line('anomaly', 'runs', chosen / 'cells')}")
        return
    run = Run(chosen)
    from anomaly.models import TOOLS

    if run.config.model in TOOLS:
        raise InputError(
            f"{run.path} prepares films and has no page; `{command_line('anomaly', 'score', run.path)}` measures it"
        )
    ready = _chosen(run, options, Choices())
    for file, content in write_page(
        ready.run, options.cache, by=ready.score, pooling=ready.aggregate, display=progress
    ):
        say(f"{file}: {content}")
    say(f"next: {command_line('anomaly', 'heatmap', run.path)}")


def _map_formats(options: HeatmapOptions) -> tuple[list[str], tuple[str, ...]]:
    """Return the formats of the pictures and the kinds of DICOM objects; raises InputError where options disagree."""
    from anomaly.pipeline.map_files import split_formats

    formats, kinds = split_formats(words_of(options.formats))
    if options.space not in (None, "cache", "film"):
        raise InputError(f"no space {options.space!r}; there are: cache, film")
    if kinds and options.space == "cache":
        raise InputError("DICOM objects lie on the original film; leave out --space, or dicom in --formats")
    if options.source and ((options.space != "film" and not kinds) or options.paths):
        raise InputError("--source applies to --space film on the run's own films; leave it out")
    if options.as_study and not kinds:
        raise InputError("--as-study applies to --formats dicom; leave it out")
    return formats, kinds


@command(HeatmapOptions)
def heatmap(options: HeatmapOptions) -> None:
    """Export pixel heatmaps on the run's one fixed scale, so that films can be compared."""
    from anomaly.pipeline.choices import Choices
    from anomaly.pipeline.map_files import MapFiles, write_heatmaps
    from anomaly.runs import Run

    pictures, kinds = _map_formats(options)
    on_film = options.space == "film" or bool(kinds)
    run = Run(options.run)
    chosen = _chosen(run, options, Choices(score=options.by, calibration=options.calibration))
    with _selection(run, options) as selection:
        cache, folder = selection.films.cache, options.out or selection.folder(run) / "maps"
        originals = None
        if on_film:
            originals = selection.source or original_films(cache, options.source, needed=True)
        dicom = None
        if kinds and originals is not None:
            from anomaly.pipeline.dicom_files import DicomFiles

            dicom = DicomFiles(selection, originals, kinds, options.as_study)
        files = MapFiles(folder, pictures, dicom)
        written = write_heatmaps(
            chosen.run,
            selection,
            files,
            by=chosen.score,
            limit=options.limit,
            originals=originals,
            display=progress,
        )
        for note in files.notes(chosen.run, min(len(selection.films), options.limit or len(selection.films))):
            warn(note)
        undrawn = dicom.failures if dicom is not None else []
        for path, reason in undrawn:
            warn(f"no DICOM objects: {path}: {reason}")
        if cache.synthetic:
            say(SYNTHETIC)
        if written:
            say(f"{folder}: heatmaps of {counted(len(written), 'film')}; the highest-scored one: {written[0]}")
        then = ("score", run.path, *options.paths) if options.paths else ("report", run.path)
        say(f"next: {command_line('anomaly', *then)}")
        _refuse_failures(selection)
        if undrawn:
            count = f"{len(undrawn)} of {counted(len(selection.films), 'film')}"
            raise InputError(f"{count} can't have DICOM objects, named above; the others are done")
