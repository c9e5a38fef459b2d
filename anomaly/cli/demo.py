"""The verb demo: a detector at work on built-in films, from drawing them to pictures of what it finds and misses."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from anomaly.cli.declare import command
from anomaly.cli.films import inspect, phantom, preprocess
from anomaly.cli.scoring import heatmap, score
from anomaly.cli.training import train
from anomaly.console import SYNTHETIC, clock, say
from anomaly.formatting import command_line, markdown, with_interval
from anomaly.pipeline.options import (
    DemoOptions,
    HeatmapOptions,
    InspectOptions,
    PhantomOptions,
    PreprocessOptions,
    ScoreOptions,
    TrainOptions,
)
from preprocessing import InputError

if TYPE_CHECKING:
    from anomaly.evaluation.figures import Metrics
    from anomaly.models.feature_mixture import FeatureMixtureConfig
    from anomaly.pipeline.open_run import OpenRun

FOCAL, BY = "feature_mixture", "max"
"""The detector that the demo begins with, and the score that it ranks by."""
SHOWN = 12
"""Films whose heatmaps are written: the highest-scored ones."""
SIDE = 256
"""Pixels of each film in the picture of all findings."""
Step = tuple[tuple[object, ...], Callable[[], object]]


@command(DemoOptions)
def demo(options: DemoOptions) -> None:
    """Show a detector at work on the built-in SYNTHETIC films: what it finds, and how well; then the paper's CAE."""
    start, folder = time.monotonic(), options.folder
    focal, cae, cache = folder / FOCAL, folder / "cae", folder / "films.h5"
    reason = _no_weights()
    for words, step in _steps(options, cache, None if reason else focal, cae):
        say()
        say(f"$ {command_line('anomaly', *words)}")
        try:
            step()
        except InputError as error:
            raise InputError(f"{error} (to start the demo from scratch, delete {folder})") from error
    say()
    pictures = _cae_pictures(folder, cae) if reason else _focal_pictures(folder, focal, cae)
    say()
    say(f"The whole demo took {clock(time.monotonic() - start)}. {SYNTHETIC}.")
    if reason:
        say(f"Only the paper's CAE was shown, which is at chance on these films: {reason}")
    say("Open these:")
    for path, about in pictures.items():
        say(f"  {path}: {about}")
    best: tuple[object, ...] = (cae,) if reason else (focal, "--by", BY)
    say("next, with films of your own:")
    say("  anomaly preprocess FILMS")
    say(f"  anomaly train {'cae' if reason else FOCAL}")
    say(f"next, with these: {command_line('anomaly', 'heatmap', *best, '--limit', 4, '--space', 'film')}")


def _no_weights() -> str | None:
    """Return why the detector of focal lesions cannot be shown, None where it can."""
    from anomaly.models.pretrained import packaged_file

    try:
        packaged_file("lite0")
    except InputError as error:
        return str(error)
    return None


def _steps(options: DemoOptions, cache: Path, focal: Path | None, cae: Path) -> Iterator[Step]:
    """Yield what is typed, and what it does; `focal` is None where that detector cannot be trained."""
    folder, workers, size = options.folder, options.workers, options.size
    films, sheet = folder / "films", folder / "sheet.png"
    yield (
        ("phantom", films, "--patients", options.patients),
        lambda: phantom(PhantomOptions(films, patients=options.patients)),
    )
    yield (
        ("preprocess", films, "--size", size, "--out", cache),
        lambda: preprocess(PreprocessOptions(films, size=size, out=cache, workers=workers)),
    )
    yield ("inspect", cache, "--sheet", sheet), lambda: inspect(InspectOptions(cache, sheet=sheet))
    if focal is not None:
        settings = _fewer_components(cache)
        yield (
            (
                "train",
                FOCAL,
                "--preset",
                "focal",
                *(word for one in settings for word in ("--set", one)),
                "--cache",
                cache,
                "--out",
                focal,
            ),
            lambda: train(
                TrainOptions(FOCAL, cache, preset="focal", settings=settings, out=focal, resume=focal.exists())
            ),
        )
        yield ("score", focal, "--by", BY), lambda: score(ScoreOptions(focal, by=BY, workers=workers))
        yield (
            ("heatmap", focal, "--by", BY, "--limit", SHOWN),
            lambda: heatmap(HeatmapOptions(focal, by=BY, limit=SHOWN, workers=workers)),
        )
    small = f"size={min(size, 128)}"
    yield (
        ("train", "cae", "--preset", "fast", "--set", small, "--cache", cache, "--out", cae),
        lambda: train(TrainOptions("cae", cache, preset="fast", settings=(small,), out=cae, resume=cae.exists())),
    )
    yield ("score", cae), lambda: score(ScoreOptions(cae, workers=workers))


def _fewer_components(cache: Path) -> tuple[str, ...]:
    """Return the setting for films so few or small that the preset's components would have too few cells, or none."""
    import numpy as np

    from anomaly.models.feature_mixture import LEAST_CELLS
    from anomaly.pipeline.plan import resolve
    from preprocessing.cache.reader import Cache

    films = Cache(cache)
    normal = np.flatnonzero(films.index["label"] == 0)
    pixels = sum(int(films.masks("full-he", rows).sum()) for rows in np.array_split(normal, 1 + len(normal) // 16))
    model = cast("FeatureMixtureConfig", resolve(FOCAL, "focal", ())[0])
    # About half of the films are trained on; a mask that covers less than half of a cell does not count.
    most = pixels // model.stride**2 // 4 // LEAST_CELLS
    return () if most >= model.components else (f"components={max(1, most)}",)


def _focal_pictures(folder: Path, focal: Path, cae: Path) -> dict[Path, str]:
    """Draw what was found and what was not, print figures by difficulty, and return the pictures, the first to open
    first.
    """
    from anomaly.pipeline.lesion_pictures import find_lesion, lesion_sheet, of_each_finding
    from anomaly.pipeline.selection import recorded_films
    from anomaly.reporting.heatmap import titled, write_png
    from anomaly.runs import Run

    runs = [_opened(focal), _opened(cae)]
    selection = recorded_films(Run(focal), "test", None)
    for line in _by_difficulty(folder / "films", focal):
        say(line)
    pictures: dict[Path, str] = {}
    lesion = find_lesion(runs[0], selection, BY)
    if lesion is None:
        say(f"No map of {FOCAL} peaks in a lesion of the test films; more --patients give it more normal films.")
    else:
        pictures[folder / "found.png"] = str(lesion)
        kind = ", ".join(word for word in (lesion.finding, lesion.difficulty) if word)
        title = f"SYNTHETIC film ({kind}), its lesion outlined, and the heatmap of {FOCAL}"
        write_png(folder / "found.png", lesion.picture(title))
    films = of_each_finding(selection.films, "obvious")
    if len(films):
        path = folder / "findings.png"
        pictures[path] = "the first obvious film of each finding, found or not: film, feature_mixture, CAE"
        write_png(path, titled(lesion_sheet(runs, films, SIDE), f"SYNTHETIC films, lesion outlined: {FOCAL}, cae"))
    pictures[focal / "maps"] = f"heatmaps of the {SHOWN} highest-scored films, right or wrong"
    pictures[focal / "report.html"] = "the page with all figures"
    return pictures | _cae_pictures(folder, cae)


def _cae_pictures(folder: Path, cae: Path) -> dict[Path, str]:
    return {
        cae / "reconstructions.png": "the paper's CAE: films and what it makes of them",
        cae / "report.html": "its page",
        folder / "sheet.png": "every step of the preparation",
    }


def _opened(run: Path) -> "OpenRun":
    from anomaly.pipeline.open_run import open_run
    from anomaly.runs import Run

    return open_run(Run(run))


def _by_difficulty(films: Path, run: Path) -> Iterator[str]:
    """Yield lines: the detector's figures on the test films by difficulty, beside those of the ideal observers."""
    from anomaly.evaluation.figures import Metrics
    from anomaly.evaluation.observers import matched_filter, mean_ideal, observe_films, observer_interval
    from anomaly.pipeline.selection import recorded_films
    from anomaly.runs import Run
    from preprocessing.phantom import DIFFICULTIES, plan_films, set_settings

    figures = Metrics.model_validate_json((run / "metrics.json").read_bytes())
    settings = set_settings(films)
    plans = plan_films(seed=settings["seed"], patients=settings["patients"])
    tested = set(recorded_films(Run(run), "test", None).films.column("path"))
    observed = list(observe_films((plan for plan in plans if plan.path in tested), settings["seed"]))
    rows = []
    for name in DIFFICULTIES:
        group = [film for film in observed if film.plan.difficulty == name]
        if not group or name not in figures.difficulty:
            continue
        ours = figures.difficulty[name][BY]
        ceilings = [with_interval(f(group), observer_interval(group, f)) for f in (matched_filter, mean_ideal)]
        peak = _peak(figures, name)
        rows.append([name, str(ours.n_abnormal), with_interval(ours.roc_auc, ours.roc_auc_interval), peak, *ceilings])
    head = ["difficulty", "abnormal films", f"{FOCAL}, {BY}", "peak in lesion", "matched filter", "ideal observer"]
    yield "By difficulty: ROC-AUC on the test films, and on how many the map peaks in the lesion [95 % over patients]."
    yield from markdown(head, rows)
    yield "Both observers are told where and what to look for, and compare a film with the same hand without it;"
    yield "to the ideal one bones are noise, the matched filter has to see past them."


def _peak(figures: "Metrics", difficulty: str) -> str:
    if figures.localization is None or difficulty not in figures.localization.kinds.get("difficulty", {}):
        return "–"
    return with_interval(*figures.localization.kinds["difficulty"][difficulty].value("peak_in_lesion"))
