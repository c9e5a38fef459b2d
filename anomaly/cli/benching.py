"""The verb bench."""

import math
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.cli.declare import command, next_again
from anomaly.cli.films import phantom, preprocess
from anomaly.console import SYNTHETIC, clock, hand_over, progress, say, warn
from anomaly.formatting import command_line
from anomaly.pipeline.options import CACHES, BenchOptions, PhantomOptions, PreprocessOptions, words_of
from preprocessing import InputError
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.experiments.bench import Bench
    from anomaly.experiments.bench_progress import BenchProgress
    from anomaly.experiments.grid import Grid

MOST_BUILT_IN = 300
"""Built-in films of a bench of nothing else, at most."""


@command(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Train models x variants x seeds and compare them in one table. The same command resumes an interrupted bench."""
    if options.source and options.cache:
        raise InputError("a SOURCE is prepared, a --cache is there already; give one of them")
    if options.preset == "paper" and not (options.source or options.cache):
        raise InputError(
            "--preset paper is the protocol of MURA's hands: give the folder XR_HAND as SOURCE, or a --cache"
        )
    if options.timed and not (options.dry_run and options.cache):
        raise InputError("--timed belongs to --dry-run and needs films that are prepared: name their --cache")
    if options.dry_run and not options.timed:
        _say_plan(options)
        return
    from anomaly.experiments.bench import Bench, bench_folder
    from anomaly.experiments.results import FILES, FORMATS, bench_table, write_results
    from preprocessing.cache.reader import Cache

    if options.format not in FORMATS:
        raise InputError(f"no format {options.format!r}; there are: {', '.join(FORMATS)}")
    # What a program is to read stands alone on the standard output.
    with redirect_stdout(sys.stderr) if options.table and options.format != "terminal" else nullcontext():
        grid = _grid(options)
        sides = {"model": grid.models, "variant": grid.variants, "seed": grid.seeds}
        shape = " x ".join(counted(len(values), name) for name, values in sides.items())
        say(f"{counted(len(grid.cells()), 'training')}: {shape}, preset {grid.preset}")
        if Cache(grid.cache).synthetic:
            say(SYNTHETIC)
        if options.timed or options.preset == "paper":
            _estimates(grid)
        if options.timed:
            say(next_again("--dry-run", "--timed"))
            return
        opened = Bench(bench_folder(options.out, grid), grid)
        _run(opened, options)
        table = bench_table(opened, paper=options.paper)
        write_results(opened, table)
        for cell in opened.cells:
            if reason := opened.failure(cell):
                warn(f"{cell.name} failed: {reason}")
    if options.table and options.format == "terminal":
        for line in FORMATS[options.format](table).splitlines():
            say(line)
    elif options.table:
        hand_over(FORMATS[options.format](table))
    if options.format == "terminal":
        say(f"next: {command_line('anomaly', 'runs', opened.path / 'cells')}")
    print(", ".join(str(opened.path / name) for name in ("index.html", *FILES)), file=sys.stderr)
    if table.synthetic and options.format == "terminal":
        say(SYNTHETIC)
    if not any(opened.done(cell) for cell in opened.cells):
        raise InputError(
            f"{opened.path}: none of its {counted(len(opened.cells), 'cell')} could be trained, for the reasons above"
        )


def _say_plan(options: BenchOptions) -> None:
    """Say what would be trained on which films, and what can't be known without a look at them."""
    from anomaly.experiments.bench_plan import plan_bench

    plan = plan_bench(options)
    sides = {"model": len(plan.rows), "variant": len(plan.variants or ()), "seed": len(plan.seeds)}
    shape = " x ".join(counted(count, name) if count else f"the films' {name}s" for name, count in sides.items())
    count = f"{counted(math.prod(sides.values()), 'training')}: " if all(sides.values()) else ""
    say(f"{count}{shape}, preset {options.preset}{f', {plan.size} px' if plan.size else ''}")
    say(f"models: {', '.join(plan.rows)}")
    if plan.variants:
        say(f"variants: {', '.join(plan.variants)}")
    say(f"seeds: {', '.join(map(str, plan.seeds))}")
    say(f"films: {plan.films}")
    for text in plan.unknown:
        say(f"not known yet: {text}")
    if options.cache:
        say("--timed times a step of each model on these films; nothing was prepared or trained")
    else:
        say("nothing was drawn, prepared or trained")
    say(next_again("--dry-run"))


def _grid(options: BenchOptions) -> "Grid":
    """Return what is to be trained; films are prepared first where they are not."""
    from anomaly.evaluation.paper import PAPER_VARIANTS
    from anomaly.experiments.bench_plan import rows_of, seeds_of
    from anomaly.experiments.grid import Grid, every_model
    from preprocessing.cache.reader import Cache

    protocol = options.preset == "paper"
    path = options.cache or _bench_cache(options, options.size or (512 if protocol else 64))
    variants = Cache(path).variants
    rows = [row for name in rows_of(options) for row in (every_model(options.preset) if name == "all" else (name,))]
    grid = Grid(
        path,
        tuple(dict.fromkeys(rows)),
        words_of(options.variants) or tuple(name for name in PAPER_VARIANTS if name in variants) or tuple(variants),
        seeds_of(options),
        options.preset,
        tuple(options.settings),
        protocol,
        options.device,
        options.precision,
        tuple(options.where),
    )
    grid.check()
    return grid


def _run(bench: "Bench", options: BenchOptions) -> None:
    """Train and score what is left to do."""
    from anomaly.experiments.run_bench import run_bench, run_on_cluster
    from anomaly.experiments.supervisor import available_cores
    from anomaly.training.device import choose_device

    cores = available_cores()
    most = min(cores, len(bench.cells)) if choose_device(options.device).type == "cpu" else 1
    threads = cores // most  # whatever --jobs: another number of them rounds otherwise
    jobs = options.jobs or most
    bench.clear_failures()
    left = len(bench.remaining())
    where = f"on the cluster {options.cluster}" if options.cluster else f"{jobs} at a time"
    say(f"{bench.path}: {left} of {len(bench.cells)} to do, {where}")
    done = len(bench.cells) - left
    with progress("bench", len(bench.cells), "cells", start=done) as advance:

        def on_change(state: "BenchProgress") -> None:
            nonlocal done
            now = state.done + state.failed
            advance(now - done, state.note())
            done = now

        if options.cluster:
            run_on_cluster(bench, options.cluster, threads=threads, on_change=on_change)
        else:
            run_bench(bench, jobs=jobs, threads=threads, on_change=on_change)


def _bench_cache(options: BenchOptions, size: int) -> Path:
    """Return the cache of a bench, prepared if need be: of a source, or of built-in films, 300 at most."""
    from anomaly.evaluation.paper import PAPER_VARIANTS
    from anomaly.experiments.bench_plan import PLAIN_VARIANTS
    from preprocessing.choice import choose_recipe
    from preprocessing.recipe import AUTO
    from preprocessing.sources import open_source

    source, recipe = options.source, options.recipe
    if source is None:
        from preprocessing.phantom import DEFAULT, plan_films

        patients = next(n for n in range(DEFAULT, 3, -1) if len(plan_films(seed=0, patients=n)) <= MOST_BUILT_IN)
        say("neither SOURCE nor --cache given: using built-in films")
        source = CACHES / f"phantoms-{patients}"
        phantom(PhantomOptions(source, patients=patients))
    if recipe == AUTO:
        choice = choose_recipe(open_source(source))
        recipe = choice.recipe
        say(choice.reason())
    variants = options.variants or ",".join(PAPER_VARIANTS if recipe == "limb" else PLAIN_VARIANTS)
    wanted = PreprocessOptions(source, recipe=recipe, size=size)
    return preprocess(replace(wanted, variants=variants)).report.path


def _estimates(grid: "Grid") -> None:
    """Say what a grid trains and, from a step of each model, how long that takes at most."""
    from anomaly.experiments.estimate import estimate

    estimates, refused = estimate(grid)
    for row in estimates:
        say(
            f"{row.row}: {counted(row.runs, 'run')} of at most {counted(row.epochs, 'epoch')} on "
            f"{counted(row.films, 'film')} of {row.size} px ({row.preset}), at most {clock(row.seconds)} each"
        )
    for name, reason in refused.items():
        say(f"{name}: can't be trained, and will be shown as failed: {reason}")
    total = sum(row.runs * row.seconds for row in estimates)
    say(f"all of them: at most {clock(total)}, one after the other, on this machine")
