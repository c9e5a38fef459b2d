"""What a detector's scores compare with, fitted anew to normal films of another place: what needs PyTorch of a
calibration.
"""

from collections.abc import Sequence

import torch
from safetensors.torch import save

from anomaly.data.batch import batches
from anomaly.data.dataset import FilmSet
from anomaly.data.joined import JoinedBatches
from anomaly.evaluation.torch_scorer import TorchScorer


@torch.inference_mode()
def refit(scorer: TorchScorer, films: Sequence[FilmSet]) -> bytes:
    """Fit what scores compare with to all films of some sets; return what this changes, as a .safetensors file.

    The scorer is changed in place.
    """
    model, device = scorer.detector, scorer.device
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fit_reference(JoinedBatches([batches(part, device) for part in films]))
    model.to(device).eval()
    return save(
        {
            name: value.contiguous().cpu()
            for name, value in model.state_dict().items()
            if name not in before or before[name].shape != value.shape or not torch.equal(before[name], value)
        }
    )
