"""From a source of films to a cache: which recipe, which nets, and the command that makes it again."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from anomaly.console import silent
from anomaly.models import TOOLS, find_model
from anomaly.pipeline.options import CACHES, PhantomOptions, PreprocessOptions, names_of, pairs_of, words_of
from anomaly.pipeline.selection import Display, advancing
from preprocessing import InputError
from preprocessing.build import BuildOptions, BuildReport, build, cache_path
from preprocessing.cache.notes import cache_notes
from preprocessing.cache.reader import Cache
from preprocessing.choice import choose_recipe
from preprocessing.phantom import DEFAULT, plan_films, write_phantoms
from preprocessing.recipe import AUTO, VARIANTS, Nets, Recipe
from preprocessing.sources import Source, open_source
from preprocessing.sources.annotations import annotate
from preprocessing.wording import counted

if TYPE_CHECKING:
    from anomaly.localization.base import LocalizationModel

PHANTOMS = CACHES / "phantoms"
COMPRESSIONS = ("gzip", "lzf", "none")


@dataclass(frozen=True)
class Preprocessed:
    """What became of a source."""

    report: BuildReport
    source: Source
    candidates: int  # films that the source lists, before those without annotations are left out
    net: "type[LocalizationModel] | None"  # what the films are to train, with `--for`
    notes: tuple[str, ...]  # what a user should know
    reason: str  # why this recipe was chosen, with `auto`

    @property
    def path(self) -> Path:
        """The cache file."""
        return self.report.path

    @cached_property
    def cache_notes(self) -> list[str]:
        """What a user should know of the films in the cache."""
        return cache_notes(Cache(self.path))

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of the films that can't be read."""
        return list(self.report.failures)

    def __repr__(self) -> str:
        films = counted(self.report.rows, "SYNTHETIC film" if self.source.synthetic else "film")
        unread = f", {len(self.failures)} unreadable" if self.failures else ""
        return f"<cache {self.path}: {films}{unread}>"


def draw_phantoms(options: PhantomOptions, *, display: Display = silent) -> Any:
    """Draw the built-in films and return how many they are: films, normal, abnormal, patients."""
    count = options.patients or DEFAULT
    with display("drawing", len(plan_films(seed=options.seed, patients=count)), "films") as advance:
        return write_phantoms(
            options.out, seed=options.seed, patients=count, size=options.size, on_film=lambda *_: advance()
        )


def preprocess(options: PreprocessOptions, *, display: Display = silent) -> Preprocessed:
    """Prepare a source into a cache; where none is named the built-in films, drawn once all settings are checked."""
    if options.out and options.out.is_dir():
        raise InputError(f"{options.out}: is a folder; name a file")
    if options.compression not in COMPRESSIONS:
        raise InputError(f"no compression {options.compression!r}; there are: {', '.join(COMPRESSIONS)}")
    net = localization_model(options.net) if options.net else None
    chosen, nets = _steps(options)
    settings = _defaults(options, net) | _settings(options) | chosen
    recipe = Recipe(**settings, **({} if options.recipe == AUTO else {"name": options.recipe}))
    variants = options.variants or (",".join(net.variants) if net else "full-he")
    if options.source is None:
        draw_phantoms(PhantomOptions(PHANTOMS), display=display)
    origin = options.source or PHANTOMS
    source = open_source(
        origin,
        normal=names_of(options.normal),
        abnormal=names_of(options.abnormal),
        follow_links=options.follow_links,
    ).where(options.where)
    candidates = len(source.records)
    notes: tuple[str, ...] = ()
    reason = ""
    if net:  # learns to prepare limbs: the recipe is that of the nets' input
        source = annotate(source, cast("Any", net.targets))
    else:
        choice = choose_recipe(source, window=recipe.window == "voi")
        if options.recipe == AUTO:
            recipe, reason = Recipe(**settings, name=choice.recipe), choice.reason()
        notes = choice.misfit_notes(recipe.name)
    wanted = VARIANTS if variants == "all" else words_of(variants)
    path = options.out or cache_path(source, recipe, wanted, CACHES, nets)
    how = BuildOptions(
        variants=wanted,
        workers=options.workers,
        cluster=options.cluster,
        compression=None if options.compression == "none" else options.compression,
        force=options.force,
        command=_command(options, origin, recipe, variants, chosen, nets),
    )
    with display("preparing", len(source.records), "films") as advance:
        report = build(source, recipe, path, nets, how, advancing(advance))
    return Preprocessed(report, source, candidates, net, (*source.notes, *notes), reason)


def localization_model(name: str) -> "type[LocalizationModel]":
    """Return the class of a net that prepares films."""
    if name not in TOOLS:
        raise InputError(f"no net {name!r} that prepares films; there are: {', '.join(TOOLS)}")
    return cast("type[LocalizationModel]", find_model(name))


def _defaults(options: PreprocessOptions, net: "type[LocalizationModel] | None") -> dict[str, Any]:
    """Return the recipe's settings that follow from what the films are for."""
    defaults: dict[str, Any] = {"size": 128} | (dict(net.recipe) if net else {})
    return defaults | ({"size": options.size} if options.size else {})


def _settings(options: PreprocessOptions) -> dict[str, Any]:
    for text in options.settings:
        if text.startswith(("name=", "size=")):
            raise InputError(f"--set {text!r}: the recipe's name is --recipe, its size --size")
    return pairs_of(options.settings)


def _steps(options: PreprocessOptions) -> tuple[dict[str, str], Nets]:
    """Return how hands and masks are found: settings of the recipe, and trained nets.

    `ssd` and `unet` alone are those of the package.
    """
    settings: dict[str, str] = {}
    nets: dict[str, Any] = {}
    for flag, value, setting, classical, net in (
        ("localizer", options.localizer, "hand", ("classical", "none"), "ssd"),
        ("mask", options.mask, "mask", ("local", "grabcut", "otsu", "none"), "unet"),
    ):
        if value is None:
            continue
        name, named, run = value.partition(":")
        if value in classical:
            settings[setting] = value
            continue
        if name != net or (named and not run):
            allowed = ", ".join((*classical, net, f"{net}:RUN"))
            raise InputError(f"no --{flag} {value!r}; there are: {allowed}")
        from anomaly.localization.nets import load_localizer, load_segmenter

        path = Path(run) if named else None
        if net == "ssd":
            nets["localizer"] = load_localizer(path)
        else:
            nets["segmenter"] = load_segmenter(path)
    return settings, Nets(**nets)


def _command(
    options: PreprocessOptions, origin: Path, recipe: Recipe, variants: str, steps: dict[str, str], nets: Nets
) -> str:
    """Return the command that makes the cache again, wherever it is typed."""
    named = {part: f"{net.name}:{net.run}".rstrip(":") for part, net in nets.named().items()}
    flags = {
        "--recipe": recipe.name,
        "--size": str(recipe.size),
        "--variants": variants,
        "--for": options.net,
        "--normal": options.normal,
        "--abnormal": options.abnormal,
        "--localizer": named.get("localizer", steps.get("hand")),
        "--mask": named.get("segmenter", steps.get("mask")),
        "--out": options.out and str(options.out.absolute()),
        "--compression": options.compression if options.compression != "none" else None,
    }
    words = ["anomaly", "preprocess", str(origin.absolute())]
    words += [word for flag, value in flags.items() if value for word in (flag, value)]
    words += [word for setting in options.settings for word in ("--set", setting)]
    words += [word for condition in options.where for word in ("--where", condition)]
    words += ["--follow-links"] if options.follow_links else []
    return shlex.join(words)
