"""What a bench would train, from what is asked for alone: no film is looked at, and torch is not imported."""

from dataclasses import dataclass

from anomaly.evaluation.paper import PAPER_VARIANTS
from anomaly.models import TOOLS, zoo
from anomaly.pipeline.options import BenchOptions, words_of
from preprocessing import InputError
from preprocessing.wording import counted, did_you_mean

PAPER_MODELS = ("cae", "vae", "dcgan", "bigan", "alphagan")
"""The models of the paper's table, in its order."""
TRAINING_FREE = "contrast_density"
PAPER_SEEDS = "42,4242,424242,42424242"  # the original's
PLAIN_VARIANTS = ("raw", "raw-he")
"""What a bench prepares of films that fill the frame."""


@dataclass(frozen=True)
class BenchPlan:
    """The sides of a grid, as far as they are known before the films are."""

    rows: tuple[str, ...]  # models, or "model/preset"
    variants: tuple[str, ...] | None  # None: a look at the films decides
    seeds: tuple[int, ...]
    size: int | None  # pixels; None: that of the cache
    films: str  # where they come from, in words
    unknown: tuple[str, ...]  # what cannot be said yet, a phrase each


def plan_bench(options: BenchOptions) -> BenchPlan:
    """Return what a bench would train; raises InputError for a name of a model or variant that there is not, for seeds
    that are no numbers, and for films that are not there.
    """
    unknown = []
    rows = rows_of(options)
    if "all" in rows:
        rows = tuple(dict.fromkeys(name for row in rows for name in (sorted(zoo()) if row == "all" else (row,))))
        unknown.append(f"which of these models have no preset {options.preset}, and are left out")
    for row in rows:
        _check_name(row.partition("/")[0])
    variants = words_of(options.variants) or None
    size: int | None = options.size or (512 if options.preset == "paper" else 64)
    if options.cache:
        from preprocessing.cache.reader import Cache

        cache = Cache(options.cache)
        known, size = cache.variants, cache.size
        variants = variants or tuple(name for name in PAPER_VARIANTS if name in known) or tuple(known)
        if missing := [name for name in variants if name not in known]:
            hint = did_you_mean(missing[0], known)
            raise InputError(f"{cache.path}: no variant {missing[0]!r}; there are: {', '.join(known)}{hint}")
        synthetic = " (SYNTHETIC)" * cache.synthetic
        films = f"{counted(len(cache), 'film')} of {cache.source}{synthetic}, prepared in {cache.path}"
    elif options.source:
        if not options.source.exists():
            raise InputError(f"{options.source} is not there; name a folder, a zip or a manifest of films")
        films = f"films of {options.source}, which are prepared first"
        unknown.append("how many films there are, and how many of them each split has")
        if variants is None and options.recipe != "auto":
            variants = PAPER_VARIANTS if options.recipe == "limb" else PLAIN_VARIANTS
        elif variants is None:
            plain = ", ".join(PLAIN_VARIANTS)
            unknown.append(f"the variants: {', '.join(PAPER_VARIANTS)} of limbs, {plain} of films that fill the frame")
    else:
        films, variants = "built-in SYNTHETIC films, drawn and prepared first", variants or PAPER_VARIANTS
    unknown.append("how long it takes, and whether each model can be trained with these settings")
    return BenchPlan(rows, variants, seeds_of(options), size, films, tuple(unknown))


def rows_of(options: BenchOptions) -> tuple[str, ...]:
    """Return the rows that are asked for, "all" among them as it is."""
    standard = PAPER_MODELS if options.preset == "paper" else (*PAPER_MODELS, TRAINING_FREE, "classifier")
    return words_of(options.models) or standard


def seeds_of(options: BenchOptions) -> tuple[int, ...]:
    """Return the seeds that are asked for; raises InputError for what is no number."""
    seeds = words_of(options.seeds) or words_of(PAPER_SEEDS if options.preset == "paper" else "0")
    if not all(text.isdecimal() for text in seeds):
        raise InputError(f"--seeds {options.seeds!r} is not a comma list of whole numbers")
    return tuple(dict.fromkeys(map(int, seeds)))


def _check_name(model: str) -> None:
    known = sorted(zoo())
    if model in TOOLS:
        raise InputError(f"{model} prepares films and scores none; the detectors are: {', '.join(known)}")
    if model not in known:
        raise InputError(f"no model {model!r}; there are: {', '.join(known)}{did_you_mean(model, known)}")
