"""What each verb does. Heavy imports stand inside the functions, so that no verb pays for another's."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.console import clock, hand_over, progress, say, warn
from preprocessing import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.bench import Grid
    from anomaly.detector import Detector
    from anomaly.finder import Finder
    from anomaly.fit import Plan
    from anomaly.metrics import Pooling
    from anomaly.runs import Run
    from anomaly.score import View
    from anomaly.team import Team
    from preprocessing.build import BuildReport
    from preprocessing.cache.reader import Cache
    from preprocessing.recipe import Nets, Recipe
    from preprocessing.sources import Source

CACHES = Path("cache")
PHANTOMS = CACHES / "phantoms"
SYNTHETIC = (
    "SYNTHETIC FILMS: drawn by this program, not taken from patients; figures from them say nothing about patients"
)
USES = {"ssd": "--localizer ssd", "unet": "--mask unet"}
"""What preprocessing takes the nets for."""
FEW = 16
"""Up to this many new films are prepared in this process: starting others would take longer."""


# --- films and cache ------------------------------------------------------------------------------------------------


def phantom(out: Path, seed: int, patients: int | None, size: int) -> None:
    """Draw the built-in films."""
    from preprocessing.phantom import DEFAULT, plan_films, write_phantoms

    count = patients or DEFAULT
    with progress("drawing", len(plan_films(seed=seed, patients=count)), "films") as advance:
        made = write_phantoms(out, seed=seed, patients=count, size=size, on_film=lambda *_: advance())
    say(f"{out}: {made.films} films, {made.normal} normal and {made.abnormal} abnormal, of {made.patients} patients")
    say(SYNTHETIC)
    say(f"next: anomaly preprocess {out}")


def preprocess(
    source: Path | None,
    recipe: str,
    size: int | None,
    variants: str | None,
    settings: list[str],
    out: Path | None,
    compression: str,
    workers: int,
    force: bool,
    localizer: str | None = None,
    mask: str | None = None,
    net: str | None = None,
    cluster: str | None = None,
) -> "BuildReport":
    """Prepare a source into a cache."""
    from preprocessing.annotations import annotate, films
    from preprocessing.recipe import VARIANTS, Nets, Recipe
    from preprocessing.sources import open_source

    if out and out.is_dir():
        raise InputError(f"{out}: is a folder; name a file")
    finder = _finder(net) if net else None
    given: dict[str, Any] = {"size": size or 128} | (dict(finder.recipe) if finder else {})
    given |= {"size": size} if size else {}
    ways, nets = _ways(localizer, mask)
    chosen = Recipe(**(given | {"name": recipe} | _pairs(settings) | ways))
    variants = variants or (",".join(finder.variants) if finder else "full-he")
    wanted = VARIANTS if variants == "all" else tuple(dict.fromkeys(variants.replace(" ", "").split(",")))
    if compression not in ("none", "lzf", "gzip"):
        raise InputError(f"no compression {compression!r}; there are: gzip, lzf, none")
    if source is None:
        say("no SOURCE given, so the built-in films are taken")
        phantom(PHANTOMS, 0, None, 512)
        source = PHANTOMS
    opened = open_source(source)
    if finder:
        there = len(films(opened))  # a folder's listing has masks in it
        opened = annotate(opened, finder.learns)
        say(f"{source}: {len(opened.records)} of {there} films have {finder.learns} beside them")
    told = {
        "--recipe": recipe,
        "--size": str(chosen.size),
        "--variants": variants,
        "--for": net,
        "--localizer": f"{nets['localizer'].name}:{nets['localizer'].run}" if "localizer" in nets else ways.get("hand"),
        "--mask": f"{nets['segmenter'].name}:{nets['segmenter'].run}" if "segmenter" in nets else ways.get("mask"),
        "--out": out and str(out.absolute()),
        "--compression": compression if compression != "none" else None,
    }
    words = ["anomaly", "preprocess", str(source.absolute())]
    words += [word for flag, value in told.items() if value for word in (flag, value)]
    words += [word for setting in settings for word in ("--set", setting)]
    report = _build(
        opened,
        chosen,
        out,
        wanted,
        Nets(**nets),
        command=shlex.join(words),
        workers=workers,
        compression=None if compression == "none" else compression,
        force=force,
        cluster=cluster,
    )
    _describe(report, opened)
    say(f"next: anomaly train {net or 'cae'} --cache {report.path}")
    return report


def _finder(name: str) -> "type[Finder]":
    """Return the class of a net that prepares films."""
    from anomaly.finder import Finder
    from anomaly.models import TOOLS, find_model

    if name not in TOOLS:
        raise InputError(f"no net {name!r} that prepares films; there are: {', '.join(TOOLS)}")
    kind = find_model(name)
    assert issubclass(kind, Finder)
    return kind


def _ways(localizer: str | None, mask: str | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Return how hands and masks are found: settings of the recipe, and trained nets as `build` takes them.

    `ssd` and `unet` alone are those that `anomaly models --make` made. Where there are none, one sentence says so and
    the classical way is taken; a run that is named must be there.
    """
    settings: dict[str, str] = {}
    nets: dict[str, Any] = {}
    for flag, value, setting, plain_ways, net in (
        ("localizer", localizer, "hand", ("classical", "none"), "ssd"),
        ("mask", mask, "mask", ("grabcut", "otsu", "none"), "unet"),
    ):
        if value is None:
            continue
        name, named, run = value.partition(":")
        if value in plain_ways:
            settings[setting] = value
        elif name != net or (named and not run):
            allowed = ", ".join((*plain_ways, net, f"{net}:RUN"))
            raise InputError(f"no --{flag} {value!r}; there are: {allowed}")
        else:
            from anomaly.finding import load_localizer, load_segmenter, made_nets

            path = Path(run) if named else made_nets() / net
            if not named and not (path / "calibration.json").is_file():
                warn(
                    f"there is no trained {net} in {path}; `anomaly models --make` makes one (20 minutes). "
                    "The classical way is taken"
                )
            elif net == "ssd":
                nets["localizer"] = load_localizer(path)
            else:
                nets["segmenter"] = load_segmenter(path)
    return settings, nets


def _pairs(settings: list[str]) -> dict[str, Any]:
    for text in settings:
        if "=" not in text:
            raise InputError(f"--set {text!r} is not key=value")
        if text.startswith(("name=", "size=")):
            raise InputError(f"--set {text!r}: the recipe's name is --recipe, its size --size")
    return {key: value for key, _, value in (text.partition("=") for text in settings)}


def _build(
    source: "Source", recipe: "Recipe", out: Path | None, variants: tuple[str, ...], nets: "Nets", **options: Any
) -> "BuildReport":
    from preprocessing.build import BuildOptions, build, cache_path

    path = out or cache_path(source, recipe, variants, CACHES, nets)
    with progress("preparing", len(source.records), "films") as advance:
        done = 0

        def on_progress(state: Any) -> None:
            nonlocal done
            if state.phase == "films":  # the phases before, reading headers and checking what is there, are quick
                advance(state.done - done, f"{state.failed} failed" if state.failed else "")
                done = state.done

        return build(source, recipe, path, nets, BuildOptions(variants=variants, **options), on_progress)


def _describe(report: "BuildReport", source: "Source") -> None:
    for note in report.notes:
        warn(note)
    for path, reason in report.failures[:10]:
        warn(f"left out: {path}: {reason}")
    if len(report.failures) > 10:
        warn(f"... and {len(report.failures) - 10} more; `anomaly inspect {report.path}` lists them")
    state = "is there already" if report.reused else "written"
    say(
        f"{report.path}: {report.rows} films {state}, {len(report.failures)} left out, of {source.name} ({source.kind})"
    )
    if source.synthetic:
        say(SYNTHETIC)
    labels = [record.label for record in source.records]
    if source.kind == "folder":
        warn(f"{source.name} says nothing of its films, so all {len(labels)} are taken as normal")
    elif 0 not in labels:
        warn(f"{source.name} has no normal films, so detectors can't be trained on it")


def inspect(cache: Path | None, verify: bool, sheet: Path | None, films: int, source: Path | None, json: bool) -> None:
    """Summarise a cache, check it, draw it."""
    from anomaly.runs import to_json
    from preprocessing import inspect as inspection
    from preprocessing.cache.reader import Cache, newest_cache

    opened = Cache(cache or newest_cache(CACHES))
    summary = inspection.summarise(opened)
    for line in to_json(summary).splitlines() if json else inspection.format(summary):
        say(line)
    if sheet:
        inspection.sheet(opened, _source_of(opened, source, needed=False), sheet, count=films)
        say(f"{sheet}: contact sheet")
    if verify:
        problems = opened.verify()
        if problems:
            raise InputError(
                f"{opened.path}: {len(problems)} fault{'s' * (len(problems) > 1)}, the first: {problems[0]}; "
                f"run `{opened.remake}`"
            )
        say(f"{opened.path}: every checksum holds")


def _source_of(cache: "Cache", moved: Path | None, *, needed: bool) -> "Source | None":
    """Return where the original films of a cache are, or None where they are gone and not needed."""
    from preprocessing.sources import open_source

    path = moved or Path(cache.source_path)
    if not path.exists():
        if needed or moved:
            raise InputError(f"the films of {cache.path} are not at {path}; say where with --source")
        return None
    return open_source(path)


# --- training -------------------------------------------------------------------------------------------------------


def train(
    model: str,
    cache: Path | None,
    variant: str | None,
    preset: str,
    settings: list[str],
    seed: int,
    split_seed: int,
    out: Path | None,
    resume: bool,
    device: str,
    precision: str,
    workers: int,
    weights: str | None = None,
    track: str = "none",
) -> Path:
    """Train one model; returns its run folder."""
    from anomaly import tracking

    tracking.check(track)
    from anomaly.models import find_model

    find_model(model)  # a wrong name is answered before the cache is looked for
    from anomaly.fit import Plan
    from anomaly.team import join
    from preprocessing.cache.reader import newest_cache

    path = cache or newest_cache(CACHES)
    chosen = (*settings, *(() if weights is None else (f"weights={weights}",)))
    with join(device) as team:
        return _train(
            Plan(model, path, variant, preset, chosen, seed, split_seed, device, precision),
            out,
            resume,
            workers,
            track,
            team,
        )


def _train(plan: "Plan", out: Path | None, resume: bool, workers: int, track: str, team: "Team") -> Path:
    """Train as planned; of several processes the first one speaks."""
    from anomaly.fit import continue_or_create, fit, prepare
    from anomaly.runs import Run
    from anomaly.train import TrainConfig, choose_device

    prepared = prepare(plan)
    made = continue_or_create(prepared, out, resume=resume) if team.first else None
    run = made or Run(team.same_path(None, choose_device(plan.device)))
    if made:
        team.same_path(made.path, choose_device(plan.device))
    else:
        fit(prepared, run, workers=workers, on_epoch=lambda report: None, team=team)
        return run.path
    model, path = plan.model, plan.cache
    config = prepared.config
    say(f"{run.path}: {model}, {plan.preset}, seed {plan.seed}, {config['device']} in {config['precision']}")
    if team.size > 1:
        say(f"{team.size} processes share each batch")
    say(
        f"{path}: {config['films']['train']} films to train on, {config['films']['val']} to validate with, "
        f"variant {config['variant']} at {config['size']} px"
    )
    if prepared.outgrown:
        say(f"{prepared.outgrown}: each batch is read when it is needed; --workers 2 or more read ahead")
    if prepared.cache.synthetic:
        say(SYNTHETIC)
    done = run.epochs_done()
    if done:
        say(f"going on after epoch {done}")
    if "abnormal" in config["films"]:
        say(f"{config['films']['abnormal']} of the films to train on are abnormal")
    began = config["weights"]
    if began or "weights" in config["settings"]["model"]:
        none = "none, training begins with random ones; --weights imagenet or FILE takes others"
        say(f"weights: {began['file'] if began else none}")
    epochs = TrainConfig(**config["settings"]["training"]).most_epochs
    with progress("training", epochs, "epochs", start=done) as advance:

        def on_epoch(report: Any) -> None:
            figures = report.figures
            note = f"loss {_loss(figures):.5g}  validation {figures['validation']:.5g}  best epoch {report.best_epoch}"
            advance(1, f"{note}  {figures['films_per_second']:.0f} films/s", report.seconds_left)
            for text in report.warnings:
                warn(f"epoch {report.epoch}: {text}")

        fit(prepared, run, workers=workers, on_epoch=on_epoch, team=team, track=track)
    seen = run.history()
    best = min(seen, key=lambda line: float(line["validation"]))
    kept = best if config["settings"]["training"]["keep"] == "best" else seen[-1]
    say(
        f"{run.path}: trained for {len(seen)} of at most {epochs} epochs; weights of epoch {kept['epoch']}, "
        f"validation loss {float(kept['validation']):.5g}"
    )
    for text in run.warnings():
        warn(text)
    pictures = ("learning_curve.png", "reconstructions.png", "maps.png", "samples.png", "finds.png")
    say(f"{run.path}: {', '.join(name for name in pictures if (run.path / name).is_file())} show how")
    say(f"next: anomaly score {run.path}")
    if model in USES:
        say(f"next: anomaly preprocess FILMS {USES[model]}:{run.path}")
    return run.path


def tune(
    model: str,
    cache: Path | None,
    variant: str | None,
    preset: str,
    settings: list[str],
    trials: int,
    jobs: int,
    objective: str,
    by: str | None,
    least_epochs: int | None,
    study: str | None,
    storage: str | None,
    out: Path | None,
    seed: int,
    split_seed: int,
    device: str,
    precision: str,
) -> None:
    """Search the settings of one model."""
    from anomaly.models import find_model

    kind = find_model(model)  # a wrong name is answered before the cache is looked for
    from anomaly import tune as tuning
    from anomaly.fit import Plan
    from preprocessing.cache.reader import newest_cache

    path = cache or newest_cache(CACHES)
    plan = Plan(model, path, variant, preset, tuple(settings), seed, split_seed, device, precision)
    how = {"trials": trials, "jobs": jobs, "objective": objective, "by": by, "least_epochs": least_epochs}
    outcome = tuning.tune(kind, plan, out=out, name=study, storage=storage, **how)  # type: ignore[arg-type]
    for line in tuning.summary(outcome):
        say(line)
    if outcome.synthetic:
        say(SYNTHETIC)
    if outcome.best:
        say(f"next: anomaly score {outcome.folder / 'trials' / str(outcome.best.number)}")


def _loss(figures: dict[str, float]) -> float:
    return sum(value for name, value in figures.items() if "." in name)


PAPER_SEEDS = "42,4242,424242,42424242"  # the original's
MOST_BUILT_IN = 300
"""Built-in films of a bench of nothing else, at most."""


def bench(
    source: Path | None,
    table: bool,
    cache: Path | None,
    models: str | None,
    variants: str | None,
    seeds: str | None,
    preset: str,
    settings: list[str],
    size: int | None,
    recipe: str,
    paper: bool,
    format_: str,
    out: Path | None,
    dry_run: bool,
    jobs: int,
    cluster: str | None,
    device: str,
    precision: str,
) -> None:
    """Train the grid and print its table."""
    from anomaly.bench import FLOOR, FORMATS, PAPERS, Bench, Grid, every_model, run_bench, run_on_cluster, take_folder
    from anomaly.table import PAPER_VARIANTS
    from anomaly.train import choose_device
    from preprocessing.cache.reader import Cache

    if format_ not in FORMATS:
        raise InputError(f"no format {format_!r}; there are: {', '.join(FORMATS)}")
    if source and cache:
        raise InputError("a SOURCE is prepared, a --cache is there already; give one of them")
    # What a program is to read stands alone on the standard output.
    with redirect_stdout(sys.stderr) if table and format_ != "terminal" else nullcontext():
        protocol = preset == "paper"
        if protocol and not (source or cache):
            raise InputError(
                "--preset paper is the protocol of MURA's hands: give the folder XR_HAND as SOURCE, or a --cache"
            )
        path = cache or _bench_cache(source, recipe, size or (512 if protocol else 64), variants)
        there = Cache(path).variants
        wanted = _words(variants) or tuple(name for name in PAPER_VARIANTS if name in there) or tuple(there)
        named = _words(models) or (*PAPERS, *(() if protocol else (FLOOR, "classifier")))
        chosen = [row for name in named for row in (every_model(preset) if name == "all" else (name,))]
        rows = tuple(dict.fromkeys(chosen))
        words = _words(seeds) or _words(PAPER_SEEDS if protocol else "0")
        if not all(text.isdecimal() for text in words):
            raise InputError(f"--seeds {seeds!r} is no comma list of whole numbers")
        numbers = tuple(dict.fromkeys(map(int, words)))
        grid = Grid(path, rows, wanted, numbers, preset, tuple(settings), protocol, device, precision)
        grid.check()
        shape = f"{len(rows)} models x {len(wanted)} variants x {len(numbers)} seeds"
        say(f"{len(grid.cells())} trainings: {shape}, preset {preset}")
        if Cache(path).synthetic:
            say(SYNTHETIC)
        if dry_run or protocol:
            _plan(grid)
        if dry_run:
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = min(cores, len(grid.cells())) if choose_device(device).type == "cpu" else 1
        threads = cores // most  # whatever --jobs: another number of them rounds otherwise
        jobs = jobs or most
        made = Bench(take_folder(out, grid), grid)
        made.forgive()
        where = f"on the cluster {cluster}" if cluster else f"{jobs} at a time"
        say(f"{made.path}: {len(made.open())} of {len(made.cells)} to do, {where}")
        with progress("bench", len(made.cells), "cells", start=len(made.cells) - len(made.open())) as advance:
            seen = len(made.cells) - len(made.open())

            def on_change(standing: Any) -> None:
                nonlocal seen
                now = standing.done + standing.failed
                advance(now - seen, standing.note())
                seen = now

            if cluster:
                run_on_cluster(made, cluster, threads=threads, on_change=on_change)
            else:
                run_bench(made, jobs=jobs, threads=threads, on_change=on_change)
        result = made.table(paper=paper)
        made.write(result)
        for cell in made.cells:
            if reason := made.failure(cell):
                warn(f"{cell.name} failed: {reason}")
    if table and format_ == "terminal":
        for line in FORMATS[format_](result).splitlines():
            say(line)
    elif table:
        hand_over(FORMATS[format_](result))
    files = ("index.html", "table.md", "table.tex", "table.csv", "results.json")
    print(", ".join(str(made.path / name) for name in files), file=sys.stderr)
    if result.synthetic and format_ == "terminal":
        say(SYNTHETIC)
    if not any(made.done(cell) for cell in made.cells):
        raise InputError(f"{made.path}: none of its {len(made.cells)} cells could be trained, for the reasons above")


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in (text or "").replace(" ", "").split(",") if word))


def _bench_cache(source: Path | None, recipe: str, size: int, variants: str | None) -> Path:
    """Return the cache of a bench, prepared if need be: of a source, or of built-in films, 300 at most."""
    from anomaly.table import PAPER_VARIANTS

    wanted = variants or ",".join(PAPER_VARIANTS if recipe == "hand" else ("raw", "raw-he"))
    if source is None:
        from preprocessing.phantom import DEFAULT, plan_films

        patients = next(n for n in range(DEFAULT, 3, -1) if len(plan_films(seed=0, patients=n)) <= MOST_BUILT_IN)
        say("neither SOURCE nor --cache given, so built-in films are taken")
        source = CACHES / f"phantoms-{patients}"
        phantom(source, 0, patients, 512)
    return preprocess(source, recipe, size, wanted, [], None, "none", 0, False).path


def _plan(grid: "Grid") -> None:
    """Say what a grid trains and, from a step of each model, how long that takes at most."""
    from anomaly.bench import estimate

    estimates, refused = estimate(grid)
    for one in estimates:
        say(
            f"{one.row}: {one.runs} runs of at most {one.epochs} epochs on {one.films} films of {one.size} px "
            f"({one.preset}), {clock(one.seconds)} each at most"
        )
    for row, reason in refused.items():
        say(f"{row}: can't be trained, and will stand as failed: {reason}")
    total = sum(one.runs * one.seconds for one in estimates)
    say(f"all of them: {clock(total)} at most, one after the other, on this machine")


def ensemble(members: list[Path], out: Path | None, cache: Path | None, device: str) -> None:
    """Make one run of several."""
    from anomaly.fit import combine
    from anomaly.runs import Run
    from anomaly.train import choose_device

    run = combine([Run(path) for path in members], out, cache, choose_device(device))
    say(f"{run.path}: an ensemble of {len(members)} runs")
    say(f"next: anomaly score {run.path}")


# --- scores and maps ------------------------------------------------------------------------------------------------


@contextmanager
def _view(run: "Run", paths: list[Path], split: str | None, cache: Path | None, workers: int) -> "Iterator[_Seen]":
    """Yield what to look at: rows of the run's cache, or new films through the recipe that the run recorded."""
    import numpy as np

    from anomaly.data import SPLITS
    from anomaly.score import View, run_view
    from preprocessing.build import made_digest
    from preprocessing.cache.reader import Cache
    from preprocessing.recipe import Recipe
    from preprocessing.sources import open_films

    variant, size, recorded = run.config["variant"], run.config["size"], run.config["cache"]
    if not paths:
        wanted = split or "test"
        if wanted not in (*SPLITS, "all"):
            raise InputError(f"no split {wanted!r}; there are: all, {', '.join(SPLITS)}")
        opened, splits = run_view(run, cache)
        rows = np.flatnonzero((splits == wanted) | (wanted == "all"))
        if not len(rows):
            raise InputError(f"{opened.path} has no films in {wanted}; take another --split")
        yield _Seen(View(opened, variant, rows, size), splits[rows], wanted, None, [])
        return
    if split or cache:
        raise InputError("--split and --cache go with the run's own films; leave them out, or the PATHS")
    films = open_films(paths)
    recipe, nets = Recipe.from_json(recorded["recipe"]), _recorded_nets(run, recorded.get("nets", {}))
    if made_digest(recipe, nets) != recorded["recipe_digest"]:
        raise InputError(
            f"{run.path} was trained on films prepared by another version of the recipe {recipe.name}; "
            f"prepare them again with `{recorded['command']}`, and train again"
        )
    with tempfile.TemporaryDirectory(prefix="anomaly-") as folder:
        report = _build(
            films,
            recipe,
            Path(folder) / "films.h5",
            (variant,),
            nets,
            workers=workers or (1 if len(films.records) <= FEW else 0),
            dtype=recorded["dtype"],  # a film's levels must not depend on the depth of the films beside it
        )
        opened = Cache(report.path)
        view = View(opened, variant, np.arange(len(opened)), size)
        yield _Seen(view, np.full(len(opened), "new", dtype=object), "new", films, report.failures)


def _recorded_nets(run: "Run", recorded: dict[str, dict[str, str]]) -> "Nets":
    """Return the nets that prepared a run's films, to prepare new ones in the same way."""
    from preprocessing.recipe import Nets

    if not recorded:
        return Nets()
    from anomaly.finding import load_localizer, load_segmenter

    nets: dict[str, Any] = {}
    for part, load in (("localizer", load_localizer), ("segmenter", load_segmenter)):
        if part in recorded:
            told = recorded[part]
            nets[part] = load(Path(told["run"]))
            if nets[part].digest != told["digest"]:
                raise InputError(
                    f"{told['run']} is not the {told['name']} that prepared the films of {run.path}: it has other "
                    "weights; put the run back there, or prepare the films again and train again"
                )
    return Nets(**nets)


@dataclass(frozen=True)
class _Seen:
    view: "View"
    split: "NDArray[Any]"  # (n,) of each film; "new" for new ones
    name: str  # which films: a split, "all" or "new"
    films: "Source | None"  # the source of new films
    failures: list[tuple[str, str]]

    def folder(self, run: "Run") -> Path:
        """Return where results go unasked: those of the test split in the run itself."""
        return run.path if self.name == "test" else run.path / self.name

    def complain(self) -> None:
        """Name the new films that can't be read, when all others are done."""
        for path, reason in self.failures:
            warn(f"left out: {path}: {reason}")
        if self.failures:
            count = len(self.failures) + len(self.view.rows)
            raise InputError(f"{len(self.failures)} of {count} films can't be read, named above; the others are done")


def _main_score(model: "Detector", name: str | None, run: "Run") -> str:
    """Return the score to flag, rank and report by: the named one, or the model's first."""
    if name is not None and name not in model.score_names:
        raise InputError(f"{run.path} has no score {name!r}; there are: {', '.join(sorted(model.score_names))}")
    return name or model.score_names[0]


def score(
    run_path: Path,
    paths: list[Path],
    split: str | None,
    aggregate: str,
    cache: Path | None,
    out: Path | None,
    device: str,
    workers: int,
    by: str | None = None,
) -> None:
    """Score films; with labels, measure."""
    from anomaly.evaluation import score_films
    from anomaly.models import TOOLS
    from anomaly.runs import Run
    from anomaly.score import open_model
    from anomaly.train import choose_device

    if aggregate not in ("mean", "max"):
        raise InputError(f"no aggregate {aggregate!r}; there are: max, mean")
    how: Pooling = "max" if aggregate == "max" else "mean"
    run = Run(run_path)
    place = choose_device(device)
    if run.config["model"] in TOOLS:
        if paths or by or out:
            raise InputError(f"{run_path} prepares films: it is measured on its cache's; leave PATHS, --by, --out out")
        _measure(run, split or "test", cache, place)
        return
    model = open_model(run, place)
    words = ["anomaly", "score", str(run_path), *map(str, paths), "--aggregate", how]
    main = _main_score(model, by, run)
    words += ["--by", main] if by else []
    words += (["--split", split] if split else []) + (["--cache", str(cache)] if cache else [])
    with _view(run, paths, split, cache, workers) as seen:
        with progress("scoring", len(seen.view.rows), "films") as advance:
            lines = score_films(
                run,
                model,
                seen.view,
                place,
                out or seen.folder(run),
                split=seen.split,
                main=main,
                how=how,
                command=shlex.join(words),
                on_films=advance,
            )
        for line in lines:
            say(line)
        seen.complain()


def _measure(run: "Run", split: str, cache: Path | None, device: Any) -> None:
    """Say how good a net that prepares films is."""
    from anomaly.data import SPLITS
    from anomaly.finding import check_split, load_finder, measure
    from anomaly.score import run_cache

    if split not in SPLITS:
        raise InputError(f"no split {split!r} to measure on; there are: {', '.join(SPLITS)}")
    opened = run_cache(run, cache)
    check_split(run, opened)
    for line in measure(run, load_finder(run, device), opened, device, split):
        say(line)


def report(path: Path | None, cache: Path | None, device: str) -> None:
    """Make the page of a run, or that of a bench anew."""
    from anomaly.evaluation import run_page
    from anomaly.runs import Run, newest
    from anomaly.train import choose_device

    chosen = path or newest()
    if (chosen / "bench.json").is_file():
        from anomaly.bench import reopen

        made = reopen(chosen, cache)
        made.write(made.table(paper=made.has_paper()))
        say(f"{chosen / 'index.html'}: the page to open")
        return
    for line in run_page(Run(chosen), cache, choose_device(device)):
        say(line)


def heatmap(
    run_path: Path,
    paths: list[Path],
    split: str | None,
    space: str,
    formats: str,
    limit: int | None,
    cache: Path | None,
    source: Path | None,
    out: Path | None,
    device: str,
    workers: int,
    by: str | None = None,
) -> None:
    """Export heatmaps."""
    from anomaly.evaluation import MAP_FORMATS, write_maps
    from anomaly.runs import Run
    from anomaly.score import open_model
    from anomaly.train import choose_device

    wanted = tuple(dict.fromkeys(formats.replace(" ", "").split(",")))
    if unknown := [name for name in wanted if name not in MAP_FORMATS]:
        raise InputError(f"no format {unknown[0]!r}; there are: {', '.join(MAP_FORMATS)}")
    if space not in ("cache", "film"):
        raise InputError(f"no space {space!r}; there are: cache, film")
    if source and (space != "film" or paths):
        raise InputError("--source goes with --space film on the run's own films; leave it out")
    run = Run(run_path)
    place = choose_device(device)
    model = open_model(run, place)
    main = _main_score(model, by, run)
    with _view(run, paths, split, cache, workers) as seen:
        view, folder = seen.view, out or seen.folder(run) / "maps"
        originals = (seen.films or _source_of(view.cache, source, needed=True)) if space == "film" else None
        with progress("mapping", min(limit or len(view.rows), len(view.rows)), "films") as advance:
            written = write_maps(
                run,
                model,
                view,
                place,
                folder,
                name=main,
                formats=wanted,
                originals=originals,
                limit=limit,
                on_film=advance,
            )
        if view.cache.synthetic:
            say(SYNTHETIC)
        say(f"{folder}: heatmaps of {len(written)} films; the highest-scored one: {written[0]}")
        seen.complain()


# --- what there is --------------------------------------------------------------------------------------------------


def models(name: str | None, make: bool = False, workers: int = 0) -> None:
    """List the zoo, or one model's settings; or make the nets that prepare films."""
    from anomaly.models import TOOLS, find_model, headline, zoo

    if make:
        if name not in (None, *MADE):
            raise InputError(f"{name!r} is not made this way; there are: {', '.join(MADE)}, or both without a name")
        _make_nets(MADE if name is None else (name,), workers)
        return
    there = zoo()
    if name is None:
        width = max(map(len, [*there, *TOOLS]))
        for key, entry in sorted(there.items()):
            origin = f"(of the package {entry.package})" if entry.package else ""
            say(f"{key:<{width}} {headline(entry.where)} {origin}".rstrip())
        say()
        say("nets that prepare films")
        for key, where in TOOLS.items():
            say(f"{key:<{width}} {headline(where)}")
        say()
        say("`anomaly models NAME` lists the settings and presets of one")
        return
    kind = find_model(name)
    from anomaly.detector import Detector
    from anomaly.train import TrainConfig

    package = there[name].package if name in there else None
    about = (kind.__doc__ or "").strip().splitlines()
    say(f"{name}{f' (of the package {package})' if package else ''}: {about[0] if about else ''}")
    if issubclass(kind, Detector):
        say(f"scores: {', '.join(kind.score_names)}; trains on {'labelled' if kind.supervised else 'normal'} films")
    else:
        say(f"trains on films with {_finder(name).learns}: `anomaly preprocess FILMS --for {name}`")
    wide = max(map(len, (*kind.Config.model_fields, *TrainConfig.model_fields)))
    for title, config in (("model", kind.Config), ("training", TrainConfig)):
        say()
        say(f"{title} settings (--set name=value)")
        for key, field in config.model_fields.items():
            text = " ".join((field.description or "").split())
            say(f"  {key:<{wide}} {field.default!s:<12} {_allowed(field):<24} {text}")
    say()
    say("presets (--preset name)")
    for key, values in kind.presets.items():
        say(f"  {key:<{wide}} {', '.join(f'{k}={v}' for k, v in values.items())}")


MADE = ("ssd", "unet")
"""The nets that `anomaly models --make` makes."""
MADE_OF = {"seed": 1, "patients": 400, "size": 512}
"""The built-in films they learn from: others than those of `anomaly preprocess` without a source, which have seed 0."""


def _make_nets(names: tuple[str, ...], workers: int) -> None:
    """Train nets on built-in films, in the user's own folder, where `--localizer ssd --mask unet` find them."""
    import time

    from anomaly.finding import made_nets
    from anomaly.runs import Run

    start, films = time.monotonic(), CACHES / "nets" / "films"
    for name in names:
        out = made_nets() / name
        if (out / "run.json").is_file() and Run(out).finished:
            say(f"{out}: is there already; delete it to make it anew")
            if not (out / "metrics.json").is_file():
                score(out, [], None, "mean", None, None, "auto", workers)
            continue
        phantom(films, **MADE_OF)
        cache = CACHES / "nets" / f"{name}.h5"
        preprocess(films, "hand", None, None, [], cache, "none", workers, False, net=name)
        train(name, cache, None, "fast", [], 0, 0, out, (out / "run.json").is_file(), "auto", "auto", 0)
        score(out, [], None, "mean", cache, None, "auto", workers)
    flags = " ".join(USES[name] for name in names)
    say(f"made in {clock(time.monotonic() - start)}; `anomaly preprocess FILMS {flags}` takes what was made")


def _allowed(field: Any) -> str:
    """Return what a setting may be, to read: its words, or its type and limits."""
    from typing import get_args

    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    kinds = [kind.__name__ if isinstance(kind, type) else str(kind) for kind in get_args(field.annotation)]
    kind = "|".join(kinds).replace("NoneType", "none") or field.annotation.__name__
    return f"{kind} {', '.join(limits)}".rstrip()


def demo(folder: Path, workers: int) -> None:
    """Films, cache, training, scores, heatmaps: the whole path, on built-in films."""
    import time

    start = time.monotonic()
    films, cache, run = folder / "films", folder / "films.h5", folder / "cae"
    steps: list[tuple[str, Callable[[], object]]] = [
        (f"anomaly phantom {films}", lambda: phantom(films, 0, None, 512)),
        (
            f"anomaly preprocess {films} --size 128 --out {cache}",
            lambda: preprocess(films, "hand", 128, "full-he", [], cache, "none", workers, False),
        ),
        (
            f"anomaly inspect {cache} --sheet {folder / 'sheet.png'}",
            lambda: inspect(cache, False, folder / "sheet.png", 24, None, False),
        ),
        (
            f"anomaly train cae --preset fast --cache {cache} --out {run}",
            lambda: train("cae", cache, None, "fast", [], 0, 0, run, run.exists(), "auto", "auto", 0),
        ),
        (f"anomaly score {run}", lambda: score(run, [], None, "mean", None, None, "auto", workers)),
        (
            f"anomaly heatmap {run}",
            lambda: heatmap(run, [], None, "cache", "png,tiff,npy", None, None, None, None, "auto", workers),
        ),
    ]
    for command, step in steps:
        say()
        say(f"$ {command}")
        try:
            step()
        except InputError as error:
            raise InputError(f"{error} (to start the demo afresh, delete {folder})") from error
    say()
    say(f"The whole path took {clock(time.monotonic() - start)}. {SYNTHETIC}.")
    say("Open these:")
    for path in (
        folder / "sheet.png",
        run / "learning_curve.png",
        run / "reconstructions.png",
        run / "maps",
    ):
        say(f"  {path}")
    say(f"and the page with all of it: {run / 'report.html'}")
