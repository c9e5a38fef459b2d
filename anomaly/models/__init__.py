"""The zoo, as a table of contents: name -> "module:Class", one file a model."""

import importlib
from typing import TYPE_CHECKING

from preprocessing import InputError

if TYPE_CHECKING:
    from anomaly.detector import Detector

ZOO = {
    "cae": "anomaly.models.cae:CAE",
    "vae": "anomaly.models.vae:VAE",
}


def find_model(name: str) -> "type[Detector]":
    """Return the class of `name`; an unknown one is answered with those there are.

    >>> find_model("vqvae")
    Traceback (most recent call last):
    preprocessing.InputError: no model 'vqvae'; there are: cae, vae
    """
    if name not in ZOO:
        raise InputError(f"no model {name!r}; there are: {', '.join(sorted(ZOO))}")
    module, _, attribute = ZOO[name].partition(":")
    found: type[Detector] = getattr(importlib.import_module(module), attribute)
    return found
