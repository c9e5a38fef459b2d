"""What a shell may complete a word to: models and run folders. Nothing heavy is imported, as Tab waits for it."""

from collections.abc import Callable
from pathlib import Path


def models(incomplete: str) -> list[str]:
    """Return the models whose name begins so."""
    from anomaly.models import TOOLS, zoo

    return sorted(name for name in (*zoo(), *TOOLS) if name.startswith(incomplete))


def run_folders(incomplete: str) -> list[str]:
    """Return the runs and benches in runs/, or in the folder that is typed so far, whose path begins so."""
    from anomaly.experiments.run_list import find_runs

    typed = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    places = dict.fromkeys([Path("runs"), *([typed] if typed != Path() else [])])
    paths = dict.fromkeys(str(path) for place in places for path in find_runs(place))
    return [path for path in paths if path.startswith(incomplete)]


def models_or_runs(incomplete: str) -> list[str]:
    """Return both."""
    return models(incomplete) + run_folders(incomplete)


COMPLETERS: dict[str | None, Callable[[str], list[str]] | None] = {
    "models": models,
    "runs": run_folders,
    "models or runs": models_or_runs,
    None: None,
}
"""By the name that options give them."""
