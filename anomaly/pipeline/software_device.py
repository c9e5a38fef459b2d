"""A run as the device that DICOM objects name."""

import hashlib
from functools import lru_cache
from pathlib import Path

from anomaly.evaluation.named_calibration import REFITTED, calibration_folder
from anomaly.export.finding import SoftwareDevice
from anomaly.pipeline.open_run import OpenRun
from anomaly.runs import versions

_DETECTORS = ("model.onnx", "weights.safetensors", "checkpoint.safetensors")  # of a bundle, a run, an unfinished one


def software_device(run: OpenRun, score: str) -> SoftwareDevice:
    """Return a run as a device: its digest is of the detector's file, its calibration and the score that flags."""
    config, folder = run.run.config, run.run.path
    digest = hashlib.sha256()
    files = [next(path for name in _DETECTORS if (path := folder / name).is_file())]
    if run.calibration_name is not None:
        files.append(calibration_folder(run.run, run.calibration_name) / REFITTED)
    for path in files:
        if path.is_file():
            state = path.stat()
            digest.update(_digest(path, state.st_mtime_ns, state.st_size))
    digest.update(run.calibration.model_dump_json().encode())
    digest.update(score.encode())
    return SoftwareDevice(
        config.model,
        versions()["xray-anomaly"] or "unknown",
        run.name,
        digest.hexdigest(),
        {
            "variant": config.variant,
            "size": f"{config.size} px",
            "calibration": run.calibrated_on or "own",
            "trained by version": config.versions.get("xray-anomaly") or "unknown",
        },
        config.cache.synthetic,
    )


@lru_cache(maxsize=8)
def _digest(path: Path, changed: int, size: int) -> bytes:
    """Return the SHA-256 of a file, which is read once as long as it does not change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
