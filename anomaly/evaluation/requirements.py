"""What figures of labelled films need, beyond what scores, p-values, flags and maps do.

An installation that only scores bundles (requirements/score.txt) may lack it: 290 MB.
"""

from importlib.util import find_spec

PACKAGES = {"scipy": "scipy", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
"""Module -> the package that has it: intervals, ROC curves and thresholds on labels, charts."""


def without_figures() -> str | None:
    """Say which packages are missing, and what installs them, as a clause; None where figures can be computed."""
    missing = [package for module, package in PACKAGES.items() if not _importable(module)]
    if not missing:
        return None
    return f"they need {', '.join(missing)}: `pip install {' '.join(missing)}`"


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # an importer of the environment refuses it
        return False
