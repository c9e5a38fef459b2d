"""Verbs and flags, as one readable table. Imports nothing heavy: `anomaly --help` answers at once."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from anomaly.console import plain
from preprocessing import InputError

app = typer.Typer(
    help="Unsupervised anomaly detection for X-ray films: films, cache, model, scores, heatmaps.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help costs .1 s of every call
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
LARGEST_SEED = 2**63 - 1
MOST_WORKERS = 8 * (os.cpu_count() or 1)
UsageError: Any = (
    typer.BadParameter.__base__
)  # what every misuse of the command line is; typer exports only its children

Workers = Annotated[int, typer.Option(min=0, max=MOST_WORKERS, help="Processes; 0 takes what suits the machine.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
CacheFile = Annotated[Path | None, typer.Option("--cache", help="Cache file.  [default: the newest in cache/]")]
By = Annotated[
    str | None, typer.Option("--by", help="Score that flags, ranks and comes first.  [default: the model's first]")
]
RunCache = Annotated[Path | None, typer.Option("--cache", help="Where the run's cache is now, if not where it was.")]
Variant = Annotated[
    str | None, typer.Option(help="Variant of the films.  [default: the cache's last, but -clahe and -contrast]")
]
SplitSeed = Annotated[
    int, typer.Option(min=0, max=LARGEST_SEED, help="Decides the splits where the source gives none.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, such as runs/cae-1.")]
Films = Annotated[
    list[Path] | None, typer.Argument(metavar="[PATHS]...", help="New films, files or folders; none: the run's cache.")
]
Split = Annotated[
    str | None, typer.Option(help="Films of the run's cache to take: test, val, train or all.  [default: test]")
]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Unsupervised anomaly detection for X-ray films: films, cache, model, scores, heatmaps."""
    # `main` has taken --debug out wherever it stood; here it is declared for --help


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="New folder for the films.")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed, same films.")] = 0,
    patients: Annotated[
        int | None, typer.Option(min=4, help="Patients.  [default: enough for 120 normal training films]")
    ] = None,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Longer side in pixels.")] = 512,
) -> None:
    """Draw the built-in SYNTHETIC hand films, in MURA's tree, with exact boxes and masks beside them."""
    from anomaly.cli import commands

    commands.phantom(out, seed, patients, size)


@app.command()
def preprocess(
    source: Annotated[
        Path | None,
        typer.Argument(help="Folder, zip or CSV manifest of films; none: the built-in SYNTHETIC films."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="hand; or plain for films that fill the frame, such as chests.")] = "hand",
    size: Annotated[
        int | None,
        typer.Option(min=16, max=2048, help="Side of the prepared films in pixels; the paper: 512.  [default: 128]"),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Comma list of raw, crop, full, alone or with -he, -clahe or -contrast; or all.  [default: full-he]"
        ),
    ] = None,
    localizer: Annotated[
        str | None, typer.Option(help="How hands are found: classical, none, ssd or ssd:RUN.  [default: the recipe's]")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="The foreground: grabcut, otsu, none, unet or unet:RUN.  [default: the recipe's]")
    ] = None,
    net: Annotated[
        str | None, typer.Option("--for", metavar="NET", help="Make films to train ssd, unet or dense with.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Cache file.  [default: cache/<source>-<recipe>-<size>-<digest>.h5]")
    ] = None,
    compression: Annotated[str, typer.Option(help="none: fastest, and resumes surely; lzf or gzip: smaller.")] = "none",
    workers: Workers = 0,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786, to prepare on.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a cache of other content under the same name.")
    ] = False,
) -> None:
    """Prepare films: crop, localize, mask, equalize, into one HDF5 cache. The same command goes on after a stop."""
    from anomaly.cli import commands

    commands.preprocess(
        source, recipe, size, variants, set_ or [], out, compression, workers, force, localizer, mask, net, cluster
    )


@app.command()
def inspect(
    cache: Annotated[Path | None, typer.Argument(help="Cache file.  [default: the newest in cache/]")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute every checksum.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw a contact sheet (PNG): film, carrier, hand box, mask, result.")
    ] = None,
    films: Annotated[int, typer.Option(min=1, max=200, help="Films on the sheet, problem films first.")] = 24,
    source: Annotated[Path | None, typer.Option(help="Where the films are now, if not where they were.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Say what is in a cache: counts, sizes, depths, splits, fallbacks, failures; problem films first."""
    from anomaly.cli import commands

    commands.inspect(cache, verify, sheet, films, source, json)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="Which model; `anomaly models` lists them.")],
    cache: CacheFile = None,
    variant: Variant = None,
    preset: Annotated[
        str, typer.Option(help="standard, fast, paper or, of a classifier, mura, hip, fracture, cnn.")
    ] = "standard",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of model or training; repeatable.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="What a classifier begins with: imagenet, a .safetensors file, a run folder, none.  [default: none]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Decides weights, order, augmentation.")] = 0,
    split_seed: SplitSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/<model>-<n>]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, max=MOST_WORKERS, help="Processes that prepare batches beside the training one.")
    ] = 0,
    track: Annotated[str, typer.Option(help="Tell every epoch to tensorboard or mlflow as well.")] = "none",
) -> None:
    """Train a detector on the normal films of a cache, a classifier on the labelled ones, or a net that prepares films
    on those with boxes or masks.
    """
    from anomaly.cli import commands

    commands.train(
        model,
        cache,
        variant,
        preset,
        set_ or [],
        seed,
        split_seed,
        out,
        resume,
        device,
        precision,
        workers,
        weights,
        track,
    )


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="Which model; `anomaly models` lists them.")],
    cache: CacheFile = None,
    variant: Variant = None,
    preset: Annotated[str, typer.Option(help="standard, paper or fast.")] = "standard",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting to fix, not search; repeatable.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Finished trials of the study in all, stopped ones too.")] = 30,
    jobs: Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Processes that share study and cores.")] = 1,
    objective: Annotated[
        str, typer.Option(help="loss: on the validation films; auc: ROC-AUC on labelled validation films.")
    ] = "loss",
    by: Annotated[
        str | None, typer.Option("--by", help="Score of --objective auc.  [default: the model's first]")
    ] = None,
    least_epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs for every trial.  [default: a 27th of all]")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study.  [default: <model>-<n>]")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="postgresql://..., sqlite:///... or a journal file, for several machines; with --study."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder.  [default: tune/<study>]")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Decides the draws, and each training.")] = 0,
    split_seed: SplitSeed = 0,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Search the settings of a model by Hyperband, on the validation split. The same command goes on after a stop."""
    from anomaly.cli import commands

    commands.tune(
        model,
        cache,
        variant,
        preset,
        set_ or [],
        trials,
        jobs,
        objective,
        by,
        least_epochs,
        study,
        storage,
        out,
        seed,
        split_seed,
        device,
        precision,
    )


@app.command()
def bench(
    source: Annotated[
        Path | None, typer.Argument(help="Films to prepare; none: --cache, or else the built-in SYNTHETIC films.")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table when all is done; `report` shows it as far as it is.")
    ] = False,
    cache: Annotated[Path | None, typer.Option("--cache", help="Cache file, instead of a SOURCE.")] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Comma list of models, as cae or classifier/mura; or all.  [default: the paper's five, "
            "contrast_density, classifier]"
        ),
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Comma list.  [default: the paper's six, as the cache has]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma list.  [default: 0; four for the paper]")] = None,
    preset: Annotated[str, typer.Option(help="fast, standard or paper: the paper's protocol.")] = "fast",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting for every model that has it.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=2048, help="Pixels.  [default: 64; 512 for the paper]")
    ] = None,
    recipe: Annotated[str, typer.Option(help="hand or plain, to prepare a SOURCE with.")] = "hand",
    paper: Annotated[bool, typer.Option("--paper", help="The published figure beside each one.")] = False,
    format_: Annotated[
        str, typer.Option("--format", help="Of the table printed: terminal, markdown, latex, csv or json.")
    ] = "terminal",
    out: Annotated[Path | None, typer.Option(help="Bench folder.  [default: runs/bench-<n>]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, and how long it takes.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=0, max=MOST_WORKERS, help="Processes; 0 takes what suits.")] = 0,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Dask scheduler; its workers share the disk."),
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Train models x variants x seeds and set them side by side. The same command goes on after a stop."""
    from anomaly.cli import commands

    commands.bench(
        source,
        table,
        cache,
        models,
        variants,
        seeds,
        preset,
        set_ or [],
        size,
        recipe,
        paper,
        format_,
        out,
        dry_run,
        jobs,
        cluster,
        device,
        precision,
    )


@app.command()
def ensemble(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Finished runs on the same films and size.")],
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/ensemble-<n>]")] = None,
    cache: RunCache = None,
    device: Device = "auto",
) -> None:
    """Make one run of several: the mean of their scores, each in standard deviations of validation normals."""
    from anomaly.cli import commands

    commands.ensemble(runs, out, cache, device)


@app.command()
def score(
    run: RunFolder,
    paths: Films = None,
    split: Split = None,
    by: By = None,
    aggregate: Annotated[str, typer.Option(help="How films make a study or patient: mean or max.")] = "mean",
    cache: RunCache = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results.  [default: RUN; RUN/<split> for other splits, RUN/new for new films]"
        ),
    ] = None,
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Score films, studies and patients; with labels: ROC-AUC and AP with intervals, a table, a page.

    Of a run of ssd, unet or dense: how well it finds hands, markers or the foreground.
    """
    from anomaly.cli import commands

    commands.score(run, paths or [], split, aggregate, cache, out, device, workers, by)


@app.command()
def report(
    path: Annotated[
        Path | None, typer.Argument(metavar="[RUN|BENCH]", help="Run or bench folder.  [default: the newest in runs/]")
    ] = None,
    cache: RunCache = None,
    device: Device = "auto",
) -> None:
    """Make the page of a run or a bench: one HTML file that needs no network."""
    from anomaly.cli import commands

    commands.report(path, cache, device)


@app.command()
def heatmap(
    run: RunFolder,
    paths: Films = None,
    split: Split = None,
    by: By = None,
    space: Annotated[str, typer.Option(help="cache: the prepared film; film: the original one.")] = "cache",
    formats: Annotated[
        str, typer.Option(help="Comma list of png (overlay), tiff, npy (float32 values).")
    ] = "png,tiff,npy",
    limit: Annotated[int | None, typer.Option(min=1, help="The highest-scored films only.")] = None,
    cache: RunCache = None,
    source: Annotated[Path | None, typer.Option(help="Where the original films are now, for --space film.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder.  [default: RUN/maps; RUN/<split>/maps, RUN/new/maps]")
    ] = None,
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Export pixel heatmaps on the run's one fixed scale, so that films can be compared."""
    from anomaly.cli import commands

    commands.heatmap(run, paths or [], split, space, formats, limit, cache, source, out, device, workers, by)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model: all its settings and presets.")] = None,
    make: Annotated[
        bool,
        typer.Option("--make", help="Train ssd and unet on built-in films, for `preprocess` to take."),
    ] = False,
    workers: Workers = 0,
) -> None:
    """List the models; or everything that one of them can be told; or make the nets that prepare films."""
    from anomaly.cli import commands

    commands.models(name, make, workers)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where films, cache and run go.")] = Path("runs/demo"),
    patients: Annotated[
        int | None, typer.Option(min=8, help="Patients to draw; few are quick.  [default: those of `anomaly phantom`]")
    ] = None,
    workers: Workers = 0,
) -> None:
    """Walk the whole path on the built-in SYNTHETIC films: draw, prepare, train, score, map."""
    from anomaly.cli import commands

    commands.demo(folder, patients, workers)


def main() -> None:
    """Run the command line; an error is one line on stderr, status 2 for what the user can mend and 1 for our own."""
    if "--debug" in sys.argv:  # wherever it stands
        sys.argv.remove("--debug")
        os.environ["ANOMALY_DEBUG"] = "1"
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # typer turns Ctrl-C into this status
            raise KeyboardInterrupt
        sys.exit(status)
    except UsageError as error:
        error.show()
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        resumes = {"preprocess", "train", "tune", "bench", "phantom", "demo", "models"} & set(sys.argv[1:3])
        fail(
            f"interrupted; {'the same command goes on where it stopped' if resumes else 'nothing is lost'}", INTERRUPTED
        )
    except InputError as error:
        fail(str(error), 2, error)
    except OSError as error:
        fail(f"{error.filename or 'disk'}: {error.strerror or error}", 2, error)
    except Exception as error:
        if "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
            fail("not enough memory; take a lower --set batch_size= or --size, or fewer --workers", 2, error)
        message = " ".join(str(error).split())[:500]
        fail(f"unexpected {type(error).__name__}: {message}; `anomaly --debug ...` shows where", 1, error)


def fail(message: str, status: int, error: Exception | None = None) -> NoReturn:
    """Say what went wrong in one line and stop; with --debug the traceback comes first."""
    if error is not None and "ANOMALY_DEBUG" in os.environ:
        traceback.print_exception(error)
    print(f"error: {plain(message)}", file=sys.stderr)
    sys.exit(status)
