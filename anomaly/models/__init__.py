"""The zoo, as a table of contents: name -> "module:Class", one file a model; and the models of other packages.

An installed package that has an entry point of the group `anomaly.models`, name = "module:Class" with a `Detector` as
its class, has that model here too, under its name.
"""

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.console import warn
from preprocessing import InputError
from preprocessing.wording import did_you_mean

if TYPE_CHECKING:
    from anomaly.models.base import Detector, Model

ZOO = {
    "alphagan": "anomaly.models.alphagan:AlphaGAN",
    "bigan": "anomaly.models.bigan:BiGAN",
    "cae": "anomaly.models.cae:CAE",
    "classifier": "anomaly.models.classifier:Classifier",
    "contrast_density": "anomaly.models.contrast_density:ContrastDensity",
    "dcgan": "anomaly.models.dcgan:DCGAN",
    "feature_mixture": "anomaly.models.feature_mixture:FeatureMixture",
    "synthetic": "anomaly.models.synthetic:Synthetic",
    "vae": "anomaly.models.vae:VAE",
}
TOOLS = {
    "dense": "anomaly.localization.dense:Dense",
    "ssd": "anomaly.localization.ssd:SSD",
    "unet": "anomaly.localization.unet:UNet",
}
"""Nets that prepare films: trained like the others, on films with boxes or masks."""
COMPOSED = {"ensemble": "anomaly.models.ensemble:Ensemble"}
"""Made of trained models, not trained."""


@dataclass(frozen=True)
class Entry:
    """Where a model is."""

    where: str  # "module:Class"
    package: str | None = None  # the installed package it comes with; none: this one


def zoo() -> dict[str, Entry]:
    """Return all models there are by name, none of them imported."""
    return _others() | {name: Entry(where) for name, where in ZOO.items()}


@cache
def _others() -> dict[str, Entry]:
    """Return the models of other packages; of two with one name the first is taken, and one of ZOO before any."""
    from importlib.metadata import entry_points

    found: dict[str, Entry] = {}
    points = [(point.dist.name, point) for point in entry_points(group="anomaly.models") if point.dist]
    for package, point in sorted(points, key=lambda pair: (pair[0], pair[1].name)):
        own = point.name in ZOO | TOOLS | COMPOSED
        if own or point.name in found:
            other = "anomaly itself" if own else f"the package {found[point.name].package}"
            warn(f"model {point.name!r} of the package {package} is left out: {other} has one of that name")
        else:
            found[point.name] = Entry(point.value, package)
    return found


def find_model(name: str) -> "type[Model]":
    """Return the class of `name`; an unknown one is answered with those there are.

    >>> find_model("vqvae")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    preprocessing.InputError: no model 'vqvae'; there are: ..., cae, ...
    """
    there = _all()
    if name not in there:
        known = sorted([*zoo(), *TOOLS])
        raise InputError(f"no model {name!r}; there are: {', '.join(known)}{did_you_mean(name, known)}")
    entry = there[name]
    if entry.package is None:
        built_in: type[Model] = _load(entry.where)
        return built_in
    try:
        found = _load(entry.where)
    except Exception as error:  # anything may happen in code that isn't ours
        reason = f"can't be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    else:
        reason = _unfit(found)
    if reason:
        raise InputError(
            f"model {name!r} of the package {entry.package} {reason}; update the package, or remove it: "
            f"pip uninstall {entry.package}"
        )
    fit: type[Model] = found
    return fit


def _all() -> dict[str, Entry]:
    return zoo() | {own: Entry(where) for own, where in (TOOLS | COMPOSED).items()}


def about(name: str) -> str:
    """Return what a model is, in a line, without importing it; "" where that isn't known.

    >>> about("cae")
    'Convolutional autoencoder: Davletshina et al. 2020, section 3.1 and their table of layers.'
    """
    entry = _all().get(name)
    return "" if entry is None else headline(entry.where)


def find_detector(name: str) -> "type[Detector]":
    """Return the class of the detector `name`; a net that prepares films is none.

    >>> find_detector("ssd")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    preprocessing.InputError: ssd prepares films and scores none; the detectors are: ..., cae, ...
    """
    from anomaly.models.base import Detector

    kind = find_model(name)
    if not issubclass(kind, Detector):
        raise InputError(f"{name} prepares films and scores none; the detectors are: {', '.join(sorted(zoo()))}")
    return kind


def _load(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _unfit(found: Any) -> str:
    """Return why an object is no model, as the end of a sentence, or "" for one that is."""
    from anomaly.models.base import Detector

    if not (isinstance(found, type) and issubclass(found, Detector)):
        return "is not a subclass of anomaly.models.base.Detector"
    lacking = [name for name in ("Config", "presets", "score_names") if not hasattr(found, name)]
    lacking += sorted(found.__abstractmethods__)
    return f"has no {', '.join(lacking)}" if lacking else ""


def headline(where: str) -> str:
    """Return the first docstring line of the module of "module:Class", or else of its class; "" where there is none.

    The file is read, not run: the list needs no torch, and no other package's code.

    >>> headline("anomaly.models.cae:CAE")
    'Convolutional autoencoder: Davletshina et al. 2020, section 3.1 and their table of layers.'
    """
    module, _, name = where.partition(":")
    package, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
        for part in inner:  # `find_spec` of a dotted name would run the packages on the way
            spec = spec and PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations or [])
        tree = ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except (ImportError, ValueError, OSError, SyntaxError):  # said when the model is used
        tree = None
    if tree is None:
        return ""
    places: list[ast.Module | ast.ClassDef] = [tree]
    places += [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return next((text.splitlines()[0] for place in places if (text := ast.get_docstring(place))), "")
