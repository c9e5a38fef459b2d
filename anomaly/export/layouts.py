"""The same bundle where other tools look for a model: MONAI's bundles, Hugging Face's repositories.

plain  the files of the bundle, in one folder.
monai  `configs/metadata.json` with the keys that the MONAI Bundle Specification asks for, `LICENSE` and
       `docs/README.md` beside them. Its `models/model.onnx` is optional there; `models/model.pt`, a pickled state,
       is asked for, and isn't written: nothing pickled is.
hf     `README.md` with the card's metadata in its first lines (Hugging Face Hub, "Model Cards"), and
       `.gitattributes`, by which graphs are kept as large files.

Either way bundle.json and its files lie where a bundle has them, and the folder is scored as one.
"""

from typing import Any, Literal

from anomaly.export.bundle import MODEL, Bundle, Tensor
from anomaly.runs import to_json

Layout = Literal["plain", "monai", "hf"]
LAYOUTS: tuple[Layout, ...] = ("plain", "monai", "hf")


def layout_files(layout: Layout, bundle: Bundle, card: str, licence: str, graph: bytes) -> dict[str, bytes]:
    """Return the files that a layout adds to a bundle, by their path in it."""
    if layout == "monai":
        return {
            "configs/metadata.json": to_json(monai_metadata(bundle)).encode(),
            f"models/{MODEL}": graph,
            "docs/README.md": card.encode(),
            "LICENSE": licence.encode(),
        }
    if layout == "hf":
        attributes = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("onnx", "safetensors"))
        return {"README.md": (hf_front_matter(bundle) + card).encode(), ".gitattributes": attributes.encode()}
    return {}


def monai_metadata(bundle: Bundle) -> dict[str, Any]:
    """Return metadata.json of the MONAI Bundle Specification: its mandatory keys, and those that say what it is for."""
    versions = bundle.versions
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from {bundle.run} by xray-anomaly {versions.get('xray-anomaly', '')}"},
        # The version whose specification this follows: MONAI itself is neither needed nor used.
        "monai_version": "1.4.0",
        "pytorch_version": versions.get("torch", ""),
        "numpy_version": versions.get("numpy", ""),
        "required_packages_version": {"onnxruntime": versions.get("onnxruntime", "")},
        "optional_packages_version": {"xray-anomaly": versions.get("xray-anomaly", "")},
        "name": bundle.run,
        "task": "Anomaly detection on X-ray films",
        "description": f"{bundle.model}: scores how unusual an X-ray film is among normal ones, and maps where.",
        "authors": "The xray-anomaly developers, and who trained it",
        "copyright": bundle.licence,
        "intended_use": "Research. NOT A MEDICAL DEVICE.",
        "data_type": "films prepared by the recipe in run.json" + (", synthetic" if bundle.synthetic else ""),
        "network_data_format": {
            "inputs": {tensor.name: _monai_tensor(tensor, bundle) for tensor in bundle.inputs},
            "outputs": {tensor.name: _monai_tensor(tensor, bundle) for tensor in bundle.outputs},
        },
    }


def _monai_tensor(tensor: Tensor, bundle: Bundle) -> dict[str, Any]:
    """Return a format specifier: images by channel; the scores as a tuple of numbers a film."""
    if tensor.name == "scores":
        kind, channels, shape = "tuples", len(bundle.score_names), [1]
        meanings = {str(place): name for place, name in enumerate(bundle.score_names)}
    else:
        kind, channels, shape = "image", 1, [bundle.size, bundle.size]
        meanings = {"0": tensor.meaning}
    bounded = tensor.name in ("film", "mask", "reconstruction")
    return {
        "type": "probabilities" if tensor.name == "scores" and bundle.labelled else kind,
        "format": "segmentation" if tensor.name == "mask" else "magnitude",
        "modality": "X-ray" if tensor.name in ("film", "reconstruction") else "n/a",
        "num_channels": channels,
        "spatial_shape": shape,
        "dtype": tensor.dtype,
        "value_range": [0, 1] if bounded else [],
        "is_patch_data": False,
        "channel_def": meanings,
    }


def hf_front_matter(bundle: Bundle) -> str:
    """Return the metadata that the Hub reads: YAML between two lines of dashes."""
    tags = ["anomaly-detection", "x-ray", "radiography", "medical-imaging", "onnx", bundle.model]
    return "\n".join(
        [
            "---",
            "license: mit",
            "library_name: onnx",
            # A detector with labels tells two classes apart; no task of the Hub is anomaly detection on images.
            *(["pipeline_tag: image-classification"] if bundle.labelled else []),
            "tags:",
            *(f"- {tag}" for tag in tags),
            "---",
            "",
            "",
        ]
    )
