"""What computes for a run: PyTorch for a run as it was trained, onnxruntime for a bundle (`anomaly export`).

The one place that decides; nothing of PyTorch is imported for a bundle.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.evaluation.scorer import Scorer
from anomaly.export.bundle import is_bundle
from anomaly.manifest import check_files
from anomaly.runs import RESULTS, Run
from preprocessing import InputError
from preprocessing.nets import Nets

if TYPE_CHECKING:
    from anomaly.evaluation.torch_scorer import TorchScorer


def load_scorer(run: Run, device: str, refitted: Path | None = None) -> Scorer:
    """Return the detector of a finished run, ready to score.

    device  "auto", "cpu", "cuda", ...    refitted  a file of tensors in place of those of the run: a reference fitted
    to other films. Raises InputError where the weights are missing or damaged, the device isn't there, or a bundle is
    to take a reference.
    """
    if not is_bundle(run.path):
        from anomaly.evaluation.torch_scorer import trained_scorer

        return trained_scorer(run, device, refitted)
    if refitted is not None:
        raise InputError(
            f"{refitted.parent} fits what scores compare with anew, which {run.path} has fixed in its graph; choose "
            "another --calibration, or calibrate without --refit"
        )
    from anomaly.export.onnx_scorer import OnnxScorer

    # bundle.json has the hashes of what was exported, the manifest those of what was written there since.
    check_files(run.path, "put the right file back, or export the run again", RESULTS)
    return OnnxScorer.open(run.path, device)


def load_refittable(run: Run, device: str) -> "TorchScorer":
    """Return the detector of a finished run, to fit what its scores compare with anew; InputError for a bundle."""
    if is_bundle(run.path):
        raise InputError(
            f"{run.path} is a bundle, which has what scores compare with fixed in its graph; leave out --refit, or "
            "refit the run and export it again"
        )
    from anomaly.evaluation.torch_scorer import trained_scorer

    return trained_scorer(run, device)


def recorded_nets(run: Run) -> Nets:
    """Return the nets that prepared a run's films, to prepare new ones in the same way.

    Raises InputError where one is gone or no longer the same.
    """
    recorded = run.config.cache.nets
    if not recorded:
        return Nets()
    if is_bundle(run.path):
        from anomaly.export.onnx_nets import bundled_nets

        return bundled_nets(run.path, recorded)
    from anomaly.localization.nets import load_localizer, load_segmenter

    nets: dict[str, Any] = {}
    for part, load in (("localizer", load_localizer), ("segmenter", load_segmenter)):
        if part in recorded:
            about = recorded[part]
            nets[part] = load(Path(about["run"]) if about["run"] else None)
            if nets[part].digest != about["digest"]:
                place = about["run"] or f"the {about['name']} of this version of the package"
                remedy = "put the run back there" if about["run"] else "install the version that prepared them"
                raise InputError(
                    f"{place} is not the {about['name']} that prepared the films of {run.path}: it has other weights; "
                    f"{remedy}, or prepare the films again and train again"
                )
    return Nets(**nets)
