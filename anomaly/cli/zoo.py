"""The verb models: what there is, and training the package's nets again."""

import time
from collections.abc import Sequence
from typing import Any, get_args

from anomaly.cli.declare import command
from anomaly.cli.films import preprocess
from anomaly.cli.scoring import score
from anomaly.cli.training import USES, train
from anomaly.console import SYNTHETIC, clock, hand_over, progress, say
from anomaly.formatting import command_line
from anomaly.pipeline.options import (
    CACHES,
    ModelsOptions,
    PreprocessOptions,
    ScoreOptions,
    TrainOptions,
)
from preprocessing import InputError

MADE: dict[str, tuple[str, ...]] = {"ssd": ("epochs=24",), "unet": ()}
"""The nets that come with the package, and the settings beside preset `fast` that `anomaly models --make` trains with.
"""
MADE_OF = {"seed": 1, "patients": 800}
"""The built-in films they learn from: others than those of `anomaly preprocess` without a source, which have seed 0."""


@command(ModelsOptions)
def models(options: ModelsOptions) -> None:
    """List the models, or the settings and presets of one; or train the package's nets again."""
    if options.make:
        if options.name not in (None, *MADE):
            raise InputError(
                f"{options.name!r} is not trained by --make; there are: {', '.join(MADE)}, or both without a name"
            )
        _make_nets(tuple(MADE) if options.name is None else (options.name,), options.workers)
    elif options.json:
        from anomaly.reporting.model_list import models_json

        hand_over(models_json(options.name))
    elif options.name is None:
        _list()
    else:
        _explain(options.name)


def _list() -> None:
    from anomaly.models import TOOLS, headline
    from anomaly.reporting.model_list import model_table

    for line in model_table():
        say(line)
    say()
    say("nets that prepare films")
    width = max(map(len, TOOLS))
    for name, where in TOOLS.items():
        say(f"{name:<{width}} {headline(where)}")
    say()
    say("`anomaly models NAME` lists the settings and presets of one; `anomaly auto FILMS` tries several on your films")
    say("next: anomaly models cae")


def _explain(name: str) -> None:
    """List everything that one model can be told."""
    from anomaly.models import COMPOSED, find_model, zoo
    from anomaly.training.config import TrainConfig

    model, entries = find_model(name), zoo()
    if name in COMPOSED:
        raise InputError(f"{name} has no settings, as it is made of finished runs: `anomaly {name} RUN RUN`")
    package = entries[name].package if name in entries else None
    about = (model.__doc__ or "").strip().splitlines()
    say(f"{name}{f' (of the package {package})' if package else ''}: {about[0] if about else ''}")
    if model.targets in ("boxes", "masks"):
        say(f"trains on films with {model.targets}: `anomaly preprocess FILMS --for {name}`")
        if name in MADE:
            say(f"comes trained with the package: `anomaly preprocess FILMS {USES[name]}`")
    else:
        scores: tuple[str, ...] = getattr(model, "score_names", ())
        say(f"scores: {', '.join(scores)}; trains on {'labelled' if model.targets == 'labels' else 'normal'} films")
    width = max(map(len, (*model.Config.model_fields, *TrainConfig.model_fields)))
    for title, config in (("model", model.Config), ("training", TrainConfig)):
        say()
        say(f"{title} settings (--set name=value)")
        for key, field in config.model_fields.items():
            text = " ".join((field.description or "").split())
            say(f"  {key:<{width}} {field.default!s:<12} {_allowed(field):<24} {text}")
    say()
    say("presets (--preset name)")
    for key, values in model.presets.items():
        say(f"  {key:<{width}} {', '.join(f'{k}={v}' for k, v in values.items())}")
    say()
    say(f"next: {command_line('anomaly', 'train', name)}")


def _allowed(field: Any) -> str:
    """Return what a setting may be, to read: its words, or its type and limits."""
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


def _make_nets(names: Sequence[str], workers: int) -> None:
    """Train nets on posed built-in films, and put them in the place of the package's.

    What is interrupted is resumed by the same command. A net is the package's once its training has ended; its run
    stays in cache/nets/, and is packaged again as it is until it is deleted.
    """
    from anomaly.localization import packaged
    from anomaly.localization.poses import write_posed_films
    from anomaly.runs import Run, write_atomic
    from preprocessing.phantom import plan_films

    root = packaged.checkout()
    start, folder = time.monotonic(), CACHES / "nets"
    films = folder / "films"
    with progress("drawing", len(plan_films(**MADE_OF)), "films") as advance:
        count, posed = write_posed_films(films, **MADE_OF, on_film=lambda *_: advance())
    say(f"{films}: {count} films, {posed} of them posed; {SYNTHETIC}")
    for name in names:
        out, cache, commit = folder / name, folder / f"{name}.h5", folder / f"{name}.commit"
        begun = (out / "run.json").is_file()
        if not begun:
            preprocess(PreprocessOptions(films, net=name, out=cache, workers=workers))
            write_atomic(commit, packaged.commit(root))
        if begun and Run(out).finished:
            say(f"{out}: already trained; delete it to train it again")
        else:
            train(TrainOptions(name, cache, preset="fast", settings=MADE[name], out=out, resume=begun))
        if not (out / "metrics.json").is_file():
            score(ScoreOptions(out, cache=cache, workers=workers))
        net = packaged.package(Run(out), f"anomaly models --make {name}", MADE_OF, commit.read_text())
        path = packaged.WEIGHTS / f"{name}.safetensors"
        say(f"{path}: {path.stat().st_size / 1e6:.2f} MB, SHA-256 {net.sha256[:12]}...")
    flags = " ".join(USES[name] for name in names)
    say(f"made in {clock(time.monotonic() - start)}")
    say(f"next: anomaly preprocess FILMS {flags}")
