"""Names of files and folders, and words in manifests, that mean something to a source."""

from __future__ import annotations

MANIFEST = "manifest.csv"
SYNTHETIC = "SYNTHETIC.txt"  # says of the films around it that they are drawn
NORMAL = {"normal", "negative", "good", "healthy"}
ABNORMAL = {"abnormal", "positive"}
GROUND_TRUTH = "ground_truth"
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABELS = {"0": 0, "normal": 0, "negative": 0, "1": 1, "abnormal": 1, "positive": 1, "": -1, "unknown": -1}


def split_names(folders: set[str]) -> dict[str, str]:
    """Map the split folders that occur, in lower case, to splits; `train` alone divides nothing and maps to ""."""
    return {name: "" if folders <= {"train", ""} else SPLITS.get(name, "") for name in folders}
