"""The options of each verb: one frozen dataclass a verb, made by the command line from its flags and by Python from
keyword arguments. A field is declared here once, with its type, default, limits and help.

Imports nothing heavy: `anomaly --help` is made of these.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from preprocessing import InputError

CACHES = Path("cache")
LARGEST_SEED = 2**63 - 1
MOST_WORKERS = 8 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class Flag:
    """How a field is typed on the command line: `--name VALUE`, or by its place where it is an argument."""

    help: str
    name: str | None = None  # none: that of the field
    metavar: str | None = None
    min: int | None = None
    max: int | None = None
    argument: bool = False
    complete: Literal["models", "runs", "models or runs"] | None = None  # what a shell may complete it to


Cache = Annotated[Path | None, Flag("Cache file.  [default: the newest in cache/]")]
RunCache = Annotated[Path | None, Flag("Where the run's cache is now, if it has moved.")]
Device = Annotated[str, Flag("auto, cpu, cuda, cuda:1, ...")]
Precision = Annotated[str, Flag("auto, float32 or bfloat16.")]
Workers = Annotated[int, Flag("Processes; 0: as many as suit the machine.", min=0, max=MOST_WORKERS)]
Variant = Annotated[
    str | None, Flag("Variant of the films.  [default: the cache's last one other than -clahe and -contrast]")
]
By = Annotated[
    str | None,
    Flag("Score that flags, ranks and is reported first.  [default: as chosen before, else the model's first]"),
]
RunFolder = Annotated[Path, Flag("Run folder, such as runs/cae-1.", metavar="RUN", argument=True, complete="runs")]
Name = Annotated[str | None, Flag("Name of the run: its folder is runs/NAME.", metavar="NAME")]
Films = Annotated[
    Sequence[Path],
    Flag(
        "New films: files, folders, zips, manifests, or a cache made alike.  [default: the run's cache]",
        metavar="PATHS",
        argument=True,
    ),
]
Split = Annotated[str | None, Flag("Split of the run's cache: test, val, train or all.  [default: test]")]
SplitSeed = Annotated[int, Flag("Seed of the splits, where the source has none.", min=0, max=LARGEST_SEED)]
Where = Annotated[
    Sequence[str],
    Flag("Only films of which this is known, such as region=hand or sex=F,M; repeatable.", metavar="COLUMN=VALUE"),
]
CalibrationName = Annotated[
    str | None,
    Flag("Calibration made by `anomaly calibrate`, or own.  [default: the last one named, else own]", metavar="NAME"),
]
Model = Annotated[str, Flag("Name of the model; `anomaly models` lists them.", argument=True, complete="models")]
ModelOrRun = Annotated[
    str,
    Flag(
        "Name of the model; `anomaly models` lists them. With --more-epochs or --more-films: a finished run.",
        metavar="MODEL|RUN",
        argument=True,
        complete="models or runs",
    ),
]


@dataclass(frozen=True)
class PhantomOptions:
    """Draw the built-in films."""

    out: Annotated[Path, Flag("New folder for the films.", argument=True)]
    seed: Annotated[int, Flag("Same seed, same films.", min=0, max=LARGEST_SEED)] = 0
    patients: Annotated[int | None, Flag("Patients, of whom three in ten are abnormal.  [default: 300]", min=4)] = None
    size: Annotated[int, Flag("Longer side in pixels.", min=64, max=2048)] = 512


@dataclass(frozen=True)
class PreprocessOptions:
    """Prepare a source into a cache."""

    source: Annotated[
        Path | None,
        Flag("Folder, zip or CSV manifest of films.  [default: the built-in SYNTHETIC films]", argument=True),
    ] = None
    recipe: Annotated[
        str, Flag("limb, plain (films that fill the frame, such as chests), or auto: by a look at the films.")
    ] = "auto"
    size: Annotated[
        int | None, Flag("Side of the prepared films in pixels (the paper: 512).  [default: 128]", min=16, max=2048)
    ] = None
    variants: Annotated[
        str | None,
        Flag("Comma list of raw, crop, full, alone or with -he, -clahe or -contrast; or all.  [default: full-he]"),
    ] = None
    localizer: Annotated[
        str | None, Flag("How hands are localized: classical, none, ssd or ssd:RUN.  [default: the recipe's]")
    ] = None
    mask: Annotated[
        str | None, Flag("The foreground: local, grabcut, otsu, none, unet or unet:RUN.  [default: the recipe's]")
    ] = None
    net: Annotated[str | None, Flag("Prepare films for training ssd, unet or dense.", name="for", metavar="NET")] = None
    settings: Annotated[
        Sequence[str], Flag("A setting of the recipe; repeatable.", name="set", metavar="KEY=VALUE")
    ] = ()
    where: Where = ()
    normal: Annotated[
        str | None, Flag("Comma list of folders, or words for labels, that mean normal; * for any.", metavar="NAMES")
    ] = None
    abnormal: Annotated[
        str | None, Flag("Comma list of folders, or words for labels, that mean abnormal.", metavar="NAMES")
    ] = None
    follow_links: Annotated[bool, Flag("Follow symbolic links that stay in SOURCE.")] = False
    out: Annotated[Path | None, Flag("Cache file.  [default: cache/<source>-<recipe>-<size>-<digest>.h5]")] = None
    compression: Annotated[str, Flag("none: fastest, and can always be resumed; lzf or gzip: smaller files.")] = "none"
    workers: Workers = 0
    cluster: Annotated[
        str | None,
        Flag("Prepare on a Dask cluster: its scheduler's address, such as tcp://host:8786.", metavar="ADDRESS"),
    ] = None
    force: Annotated[bool, Flag("Replace a cache of other content under the same name.")] = False


@dataclass(frozen=True)
class InspectOptions:
    """Summarize a cache, check it, draw it."""

    cache: Annotated[Path | None, Flag("Cache file.  [default: the newest in cache/]", argument=True)] = None
    verify: Annotated[bool, Flag("Recompute every checksum.")] = False
    sheet: Annotated[Path | None, Flag("Draw a contact sheet (PNG): film, carrier, hand box, mask, result.")] = None
    films: Annotated[int, Flag("Films on the sheet, problem films first.", min=1, max=200)] = 24
    source: Annotated[Path | None, Flag("Where the films are now, if they have moved.")] = None
    json: Annotated[bool, Flag("Print the summary as JSON.")] = False


@dataclass(frozen=True)
class Plan:
    """All that decides what a training gives, before it starts."""

    model: Model
    cache: Cache = None
    variant: Variant = None
    preset: Annotated[str, Flag("standard, fast or paper; classifiers: also lite0, mura, hip, fracture, cnn.")] = (
        "standard"
    )
    settings: Annotated[
        Sequence[str], Flag("A setting of model or training; repeatable.", name="set", metavar="KEY=VALUE")
    ] = ()
    seed: Annotated[int, Flag("Seed of weights, order and augmentation.", min=0, max=LARGEST_SEED)] = 0
    split_seed: SplitSeed = 0
    device: Device = "auto"
    precision: Precision = "auto"
    where: Where = ()


@dataclass(frozen=True)
class TrainOptions(Plan):
    """Train one model into a run folder."""

    model: ModelOrRun
    weights: Annotated[
        str | None,
        Flag(
            "Pretrained weights: imagenet, lite0 (EfficientNet-Lite0's), a .safetensors file, a run folder, none.  "
            "[default: the model's]"
        ),
    ] = None
    name: Name = None
    out: Annotated[Path | None, Flag("Run folder, anywhere.  [default: runs/<model>-<n>]")] = None
    resume: Annotated[bool, Flag("Resume an interrupted run.")] = False
    more_epochs: Annotated[
        int | None, Flag("Go on from RUN for so many epochs at most, as a new run that begins with its weights.", min=1)
    ] = None
    more_films: Annotated[
        Path | None,
        Flag("Go on from RUN with these films too; patients of RUN keep their split.", metavar="CACHE"),
    ] = None
    workers: Annotated[
        int, Flag("Processes that prepare batches beside the training one.", min=0, max=MOST_WORKERS)
    ] = 0
    track: Annotated[str, Flag("Also log every epoch to tensorboard or mlflow.")] = "none"

    def folder(self) -> Path | None:
        """Return the run folder that is asked for, or None for the next number."""
        return named_or_out(self.name, self.out)

    def plan(self) -> Plan:
        """Return what is to be trained, `weights` among the settings."""
        settings = (*self.settings, *(() if self.weights is None else (f"weights={self.weights}",)))
        return Plan(
            self.model,
            self.cache,
            self.variant,
            self.preset,
            settings,
            self.seed,
            self.split_seed,
            self.device,
            self.precision,
            self.where,
        )


@dataclass(frozen=True)
class TuneOptions:
    """Search the settings of one model."""

    model: Model
    cache: Cache = None
    variant: Variant = None
    preset: Annotated[str, Flag("standard, paper or fast.")] = "standard"
    settings: Annotated[
        Sequence[str], Flag("A setting to fix, not search; repeatable.", name="set", metavar="KEY=VALUE")
    ] = ()
    trials: Annotated[int, Flag("Finished trials of the study in total, including stopped ones.", min=1)] = 30
    jobs: Annotated[int, Flag("Processes that share the study and the cores.", min=1, max=MOST_WORKERS)] = 1
    objective: Annotated[str, Flag("loss: on the validation films; auc: ROC-AUC on labelled validation films.")] = (
        "loss"
    )
    by: Annotated[str | None, Flag("Score of --objective auc.  [default: the model's first]")] = None
    least_epochs: Annotated[int | None, Flag("Epochs that every trial gets.  [default: a 27th of all]", min=1)] = None
    study: Annotated[str | None, Flag("Name of the study.  [default: <model>-<n>]")] = None
    storage: Annotated[
        str | None,
        Flag("postgresql://..., sqlite:///... or a journal file, for several machines; with --study."),
    ] = None
    out: Annotated[Path | None, Flag("Folder.  [default: tune/<study>]")] = None
    seed: Annotated[int, Flag("Seed of the search and of each training.", min=0, max=LARGEST_SEED)] = 0
    split_seed: SplitSeed = 0
    device: Device = "auto"
    precision: Precision = "auto"
    where: Where = ()


@dataclass(frozen=True)
class BenchOptions:
    """Train models x variants x seeds."""

    source: Annotated[
        Path | None, Flag("Films to prepare.  [default: --cache, or else the built-in SYNTHETIC films]", argument=True)
    ] = None
    table: Annotated[bool, Flag("Print the table when all is done; `report` shows it at any time.")] = False
    cache: Annotated[Path | None, Flag("Cache file, instead of a SOURCE.")] = None
    models: Annotated[
        str | None,
        Flag(
            "Comma list of models, such as cae or classifier/mura; or all.  [default: the paper's five, "
            "contrast_density, classifier]"
        ),
    ] = None
    variants: Annotated[
        str | None, Flag("Comma list of variants.  [default: those of the paper's six that the cache has]")
    ] = None
    seeds: Annotated[str | None, Flag("Comma list of seeds.  [default: 0; four for the paper]")] = None
    preset: Annotated[str, Flag("fast, standard, or paper (the paper's protocol).")] = "fast"
    settings: Annotated[
        Sequence[str], Flag("A setting for every model that has it.", name="set", metavar="KEY=VALUE")
    ] = ()
    size: Annotated[
        int | None, Flag("Side of the films in pixels.  [default: 64; 512 for the paper]", min=16, max=2048)
    ] = None
    recipe: Annotated[str, Flag("Recipe that prepares SOURCE: limb, plain, or auto.")] = "auto"
    paper: Annotated[bool, Flag("Show the published figures beside ours.")] = False
    format: Annotated[str, Flag("Format of the printed table: terminal, markdown, latex, csv or json.")] = "terminal"
    out: Annotated[Path | None, Flag("Bench folder.  [default: runs/bench-<n>]")] = None
    dry_run: Annotated[bool, Flag("Show what would be trained; nothing is drawn, prepared or trained.")] = False
    timed: Annotated[bool, Flag("With --dry-run and --cache: time a step of each model, to say how long all take.")] = (
        False
    )
    jobs: Annotated[int, Flag("Processes; 0: as many as suit the machine.", min=0, max=MOST_WORKERS)] = 0
    cluster: Annotated[
        str | None, Flag("Address of a Dask scheduler whose workers share the disk.", metavar="ADDRESS")
    ] = None
    device: Device = "auto"
    precision: Precision = "auto"
    where: Where = ()


@dataclass(frozen=True)
class AutoOptions:
    """Prepare films, train several detectors within a time budget, choose one."""

    films: Annotated[
        Path, Flag("Folder, zip or CSV manifest of films, or a cache (.h5).", metavar="FILMS", argument=True)
    ]
    minutes: Annotated[int, Flag("Time budget, the preparation of the films included.", min=1, max=10_080)] = 30
    out: Annotated[Path | None, Flag("Folder.  [default: the runs/auto-<n> of these films, or the next number]")] = None
    choose_by: Annotated[
        str, Flag("labels of validation films, planted anomalies, or auto: labels where there are enough.")
    ] = "auto"
    recipe: Annotated[str, Flag("limb, plain, or auto: by a look at the films.")] = "auto"
    size: Annotated[
        int | None, Flag("Side of the prepared films in pixels.  [default: 224 plain, 448 limb]", min=64, max=2048)
    ] = None
    where: Where = ()
    seed: Annotated[int, Flag("Seed of every training.", min=0, max=LARGEST_SEED)] = 0
    device: Device = "auto"
    workers: Workers = 0


@dataclass(frozen=True)
class EnsembleOptions:
    """Make one run of several."""

    runs: Annotated[
        Sequence[Path],
        Flag(
            "Finished runs on the same films and variant; RUN:SCORE names the score that is combined, else the first.",
            metavar="RUN[:SCORE]",
            argument=True,
            complete="runs",
        ),
    ]
    name: Name = None
    out: Annotated[Path | None, Flag("Run folder.  [default: runs/ensemble-<n>]")] = None
    cache: RunCache = None
    device: Device = "auto"

    def folder(self) -> Path | None:
        """Return the run folder that is asked for, or None for the next number."""
        return named_or_out(self.name, self.out)


@dataclass(frozen=True)
class ScoreOptions:
    """Score films."""

    run: RunFolder
    paths: Films = ()
    split: Split = None
    where: Where = ()
    by_column: Annotated[
        Sequence[str],
        Flag("Figures for each value of this column too, such as region or sex; repeatable.", metavar="COLUMN"),
    ] = ()
    by: By = None
    aggregate: Annotated[
        str | None, Flag("How scores of films are combined for studies and patients: mean or max.  [default: mean]")
    ] = None
    false_alarms: Annotated[
        float | None, Flag("Flag p-values up to this: the share of normal films that are flagged.  [default: 0.05]")
    ] = None
    sensitivity: Annotated[
        float | None, Flag("Flag from where this share of abnormal validation films is flagged.")
    ] = None
    threshold: Annotated[float | None, Flag("Flag from this value of the score.")] = None
    fdr: Annotated[
        float | None,
        Flag("Flag the films of this list of which at most this share is expected to be normal (Benjamini-Hochberg)."),
    ] = None
    calibration: CalibrationName = None
    cache: RunCache = None
    out: Annotated[
        Path | None,
        Flag("Folder.  [default: RUN; RUN/<split> for other splits, RUN/new/<date>-<name> for new films]"),
    ] = None
    pictures: Annotated[int, Flag("New films of which worklist.html has pictures, the highest-ranked ones.", min=0)] = (
        500
    )
    device: Device = "auto"
    workers: Workers = 0


@dataclass(frozen=True)
class HeatmapOptions:
    """Export heatmaps."""

    run: RunFolder
    paths: Films = ()
    split: Split = None
    where: Where = ()
    by: By = None
    space: Annotated[
        str | None,
        Flag("cache: the prepared film; film: the original one.  [default: cache; film where a format is dicom]"),
    ] = None
    formats: Annotated[
        str,
        Flag(
            "Comma list of png (overlay), tiff, npy (float32 values), dicom (four objects for a PACS: an overlay, the "
            "area above the normal range, the map, a report) or of these dicom-sc, dicom-seg, dicom-pm, dicom-sr."
        ),
    ] = "png,tiff,npy"
    as_study: Annotated[
        bool, Flag("With --formats dicom: films that were no DICOM get a study of their own, and are written too.")
    ] = False
    limit: Annotated[int | None, Flag("The highest-scored films only.", min=1)] = None
    calibration: CalibrationName = None
    cache: RunCache = None
    source: Annotated[Path | None, Flag("Where the original films are now, if they have moved; for --space film.")] = (
        None
    )
    out: Annotated[Path | None, Flag("Folder.  [default: RUN/maps; RUN/<split>/maps, RUN/new/<date>-<name>/maps]")] = (
        None
    )
    device: Device = "auto"
    workers: Workers = 0


@dataclass(frozen=True)
class CalibrateOptions:
    """Calibrate a run on normal films of another place."""

    run: RunFolder
    normals: Annotated[
        Sequence[Path],
        Flag("Normal films of that place: folders, zips, manifests, films.", metavar="NORMALS", argument=True),
    ]
    name: Annotated[str | None, Flag("Name of the calibration.  [default: that of NORMALS]")] = None
    refit: Annotated[
        bool,
        Flag("Also fit what scores compare with anew, on half of the patients and the training's normal films."),
    ] = False
    only_local: Annotated[bool, Flag("With --refit: on the films of that place alone.")] = False
    where: Where = ()
    replace: Annotated[bool, Flag("Replace a calibration of this name that is of other films.")] = False
    cache: RunCache = None
    device: Device = "auto"
    workers: Workers = 0


@dataclass(frozen=True)
class ExportOptions:
    """Make a bundle of a run."""

    run: Annotated[
        Path,
        Flag("Run folder, or a bundle to check.", metavar="RUN", argument=True, complete="runs"),
    ]
    out: Annotated[Path | None, Flag("Folder of the bundle.  [default: RUN/bundle]", metavar="BUNDLE")] = None
    check: Annotated[
        bool, Flag("Score at most 64 test films by torch and by the bundle; of a bundle, its made-up films.")
    ] = False
    layout: Annotated[str, Flag("plain, or also as a MONAI bundle (monai) or for the Hugging Face Hub (hf).")] = "plain"
    calibration: Annotated[str | None, Flag("Calibration of another place, as the bundle's own.", metavar="NAME")] = (
        None
    )
    cache: RunCache = None


@dataclass(frozen=True)
class ReportOptions:
    """Make a page."""

    path: Annotated[
        Path | None,
        Flag(
            "Run or bench folder.  [default: the newest in runs/]",
            metavar="RUN|BENCH",
            argument=True,
            complete="runs",
        ),
    ] = None
    cache: RunCache = None
    device: Device = "auto"


@dataclass(frozen=True)
class RunsOptions:
    """List runs."""

    folder: Annotated[
        Path, Flag("Folder that holds the runs, such as runs/bench-1/cells.  [default: runs]", argument=True)
    ] = Path("runs")
    sort: Annotated[str, Flag("date (newest first), name, model, auc (highest first) or size.")] = "date"
    json: Annotated[bool, Flag("Print everything that is known of each as JSON.")] = False


@dataclass(frozen=True)
class CompareOptions:
    """Compare two runs."""

    first: Annotated[
        Path, Flag("Scored run, such as runs/cae-1.", metavar="RUN[:SCORE]", argument=True, complete="runs")
    ]
    second: Annotated[
        Path, Flag("The run that it is compared with.", metavar="RUN[:SCORE]", argument=True, complete="runs")
    ]
    shared: Annotated[bool, Flag("Leave out test films that only one of the runs has.")] = False
    json: Annotated[bool, Flag("Print the comparison as JSON.")] = False


@dataclass(frozen=True)
class RmOptions:
    """Remove runs."""

    runs: Annotated[
        Sequence[Path],
        Flag("Folders of runs, ensembles or benches.", metavar="RUN", argument=True, complete="runs"),
    ]
    yes: Annotated[bool, Flag("Remove them without asking.")] = False


@dataclass(frozen=True)
class ModelsOptions:
    """List the models."""

    name: Annotated[
        str | None, Flag("Show all settings and presets of this model.", argument=True, complete="models")
    ] = None
    json: Annotated[bool, Flag("Print what each finds, costs and was measured to give as JSON.")] = False
    make: Annotated[bool, Flag("In a checkout: train the package's ssd and unet again, on built-in films.")] = False
    workers: Workers = 0


@dataclass(frozen=True)
class DemoOptions:
    """Show a detector at work on built-in films."""

    folder: Annotated[Path, Flag("Folder for films, cache and runs.")] = Path("runs/demo")
    patients: Annotated[int, Flag("Patients to draw; fewer are faster.", min=8)] = 152
    size: Annotated[int, Flag("Pixels a side of the prepared films; smaller is faster.", min=64, max=1024)] = 512
    workers: Workers = 0


@dataclass(frozen=True)
class DoctorOptions:
    """Say what this machine has and what it lacks."""

    json: Annotated[bool, Flag("Print the facts as JSON.")] = False
    measure: Annotated[
        bool, Flag("First measure anew, in some seconds, whether training in bfloat16 pays on this machine.")
    ] = False


def named_or_out(name: str | None, out: Path | None) -> Path | None:
    """Return the folder that --name or --out asks for, or None without either; both are refused."""
    if name is None:
        return out
    if out is not None:
        raise InputError("--name NAME is the folder runs/NAME, --out any folder; give one of them")
    from anomaly.runs import named  # here, as `--help` needs none of what it imports

    return named(name)


def names_of(text: str | None) -> tuple[str, ...]:
    """Return the names of a comma list, which may have spaces in them, each once.

    >>> names_of("no fracture, old,")
    ('no fracture', 'old')
    """
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def words_of(text: str | None) -> tuple[str, ...]:
    """Return the words of a comma list, each once.

    >>> words_of("raw, crop,raw")
    ('raw', 'crop')
    """
    return tuple(dict.fromkeys(word for word in (text or "").replace(" ", "").split(",") if word))


def pairs_of(settings: Sequence[str]) -> dict[str, Any]:
    """Return "key=value" settings as a mapping; raises InputError on others.

    >>> pairs_of(["size=64"])
    {'size': '64'}
    """
    for text in settings:
        if "=" not in text:
            raise InputError(f"--set {text!r} is not key=value")
    return {key: value for key, _, value in (text.partition("=") for text in settings)}
