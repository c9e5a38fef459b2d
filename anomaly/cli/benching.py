"""The verb bench."""

import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.cli.declare import command
from anomaly.cli.films import phantom, preprocess
from anomaly.console import SYNTHETIC, clock, hand_over, progress, say, warn
from anomaly.pipeline.options import CACHES, BenchOptions, PhantomOptions, PreprocessOptions, words_of
from preprocessing import InputError
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.experiments.bench import Bench, Grid

PAPER_SEEDS = "42,4242,424242,42424242"  # the original's
MOST_BUILT_IN = 300
"""Built-in films of a bench of nothing else, at most."""


@command(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Train models x variants x seeds and compare them in one table. The same command resumes an interrupted bench."""
    from anomaly.experiments.bench import FORMATS, Bench, take_folder
    from preprocessing.schema import Cache

    if options.format not in FORMATS:
        raise InputError(f"no format {options.format!r}; there are: {', '.join(FORMATS)}")
    if options.source and options.cache:
        raise InputError("a SOURCE is prepared, a --cache is there already; give one of them")
    # What a program is to read stands alone on the standard output.
    with redirect_stdout(sys.stderr) if options.table and options.format != "terminal" else nullcontext():
        grid = _grid(options)
        shape = f"{counted(len(grid.models), 'model')} x {counted(len(grid.variants), 'variant')} x "
        say(
            f"{counted(len(grid.cells()), 'training')}: {shape}{counted(len(grid.seeds), 'seed')}, preset {grid.preset}"
        )
        if Cache(grid.cache).synthetic:
            say(SYNTHETIC)
        if options.dry_run or options.preset == "paper":
            _estimates(grid)
        if options.dry_run:
            return
        opened = Bench(take_folder(options.out, grid), grid)
        _run(opened, options)
        table = opened.table(paper=options.paper)
        opened.write(table)
        for cell in opened.cells:
            if reason := opened.failure(cell):
                warn(f"{cell.name} failed: {reason}")
    if options.table and options.format == "terminal":
        for line in FORMATS[options.format](table).splitlines():
            say(line)
    elif options.table:
        hand_over(FORMATS[options.format](table))
    files = ("index.html", "table.md", "table.tex", "table.csv", "results.json")
    print(", ".join(str(opened.path / name) for name in files), file=sys.stderr)
    if table.synthetic and options.format == "terminal":
        say(SYNTHETIC)
    if not any(opened.done(cell) for cell in opened.cells):
        raise InputError(
            f"{opened.path}: none of its {len(opened.cells)} cells could be trained, for the reasons above"
        )


def _grid(options: BenchOptions) -> "Grid":
    """Return what is to be trained; films are prepared first where they are not."""
    from anomaly.evaluation.paper import PAPER_VARIANTS
    from anomaly.experiments.bench import FLOOR, PAPERS, Grid, every_model
    from preprocessing.schema import Cache

    protocol = options.preset == "paper"
    if protocol and not (options.source or options.cache):
        raise InputError(
            "--preset paper is the protocol of MURA's hands: give the folder XR_HAND as SOURCE, or a --cache"
        )
    path = options.cache or _bench_cache(options, options.size or (512 if protocol else 64))
    variants = Cache(path).variants
    named = words_of(options.models) or (*PAPERS, *(() if protocol else (FLOOR, "classifier")))
    seeds = words_of(options.seeds) or words_of(PAPER_SEEDS if protocol else "0")
    if not all(text.isdecimal() for text in seeds):
        raise InputError(f"--seeds {options.seeds!r} is no comma list of whole numbers")
    grid = Grid(
        path,
        tuple(
            dict.fromkeys(row for name in named for row in (every_model(options.preset) if name == "all" else (name,)))
        ),
        words_of(options.variants) or tuple(name for name in PAPER_VARIANTS if name in variants) or tuple(variants),
        tuple(dict.fromkeys(map(int, seeds))),
        options.preset,
        tuple(options.settings),
        protocol,
        options.device,
        options.precision,
    )
    grid.check()
    return grid


def _run(bench: "Bench", options: BenchOptions) -> None:
    """Train and score what is left to do."""
    from anomaly.experiments.bench import default_jobs, run_bench, run_on_cluster

    most, threads = default_jobs(bench)
    jobs = options.jobs or most
    bench.forgive()
    left = len(bench.open())
    where = f"on the cluster {options.cluster}" if options.cluster else f"{jobs} at a time"
    say(f"{bench.path}: {left} of {len(bench.cells)} to do, {where}")
    done = len(bench.cells) - left
    with progress("bench", len(bench.cells), "cells", start=done) as advance:

        def on_change(standing: Any) -> None:
            nonlocal done
            now = standing.done + standing.failed
            advance(now - done, standing.note())
            done = now

        if options.cluster:
            run_on_cluster(bench, options.cluster, threads=threads, on_change=on_change)
        else:
            run_bench(bench, jobs=jobs, threads=threads, on_change=on_change)


def _bench_cache(options: BenchOptions, size: int) -> Path:
    """Return the cache of a bench, prepared if need be: of a source, or of built-in films, 300 at most."""
    from anomaly.evaluation.paper import PAPER_VARIANTS

    variants = options.variants or ",".join(PAPER_VARIANTS if options.recipe == "hand" else ("raw", "raw-he"))
    source = options.source
    if source is None:
        from preprocessing.phantom import DEFAULT, plan_films

        patients = next(n for n in range(DEFAULT, 3, -1) if len(plan_films(seed=0, patients=n)) <= MOST_BUILT_IN)
        say("neither SOURCE nor --cache given, so built-in films are taken")
        source = CACHES / f"phantoms-{patients}"
        phantom(PhantomOptions(source, patients=patients))
    wanted = PreprocessOptions(source, recipe=options.recipe, size=size)
    return preprocess(replace(wanted, variants=variants)).report.path


def _estimates(grid: "Grid") -> None:
    """Say what a grid trains and, from a step of each model, how long that takes at most."""
    from anomaly.experiments.bench import estimate

    estimates, refused = estimate(grid)
    for one in estimates:
        say(
            f"{one.row}: {counted(one.runs, 'run')} of at most {counted(one.epochs, 'epoch')} on "
            f"{counted(one.films, 'film')} of {one.size} px ({one.preset}), {clock(one.seconds)} each at most"
        )
    for row, reason in refused.items():
        say(f"{row}: can't be trained, and will stand as failed: {reason}")
    total = sum(one.runs * one.seconds for one in estimates)
    say(f"all of them: {clock(total)} at most, one after the other, on this machine")
