"""Unsupervised anomaly detection for X-ray films: films, cache, model, scores, heatmaps.

>>> import anomaly
>>> anomaly.list_models()  # doctest: +ELLIPSIS
['alphagan', 'bigan', 'cae', ...]

`preprocess` makes a cache of films, `train` a run of a cache, `load` opens a run that scores films and draws their
heatmaps. What is wrong with what was given is an `InputError`, in one line. See docs/api.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly.pipeline.api import list_models, load, preprocess, train
    from preprocessing import InputError

    __version__: str

__all__ = ["InputError", "__version__", "list_models", "load", "preprocess", "train"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: `import anomaly` itself takes no time."""
    if name == "__version__":
        from importlib.metadata import version

        return version("xray-anomaly")
    if name == "InputError":
        from preprocessing import InputError

        return InputError
    if name in __all__:
        from anomaly.pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module 'anomaly' has no attribute {name!r}; there are: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
