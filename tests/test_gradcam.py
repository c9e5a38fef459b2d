"""The Grad-CAM of a classifier against captum's, an independent implementation of Selvaraju et al. 2017."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch.nn.functional import interpolate

from anomaly.data.batch import Batch
from anomaly.models.classifier import BACKBONES, Classifier, ClassifierConfig


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")  # captum does
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_the_map_is_the_grad_cam_of_captum(backbone: str, rng: np.random.Generator) -> None:
    size = 64
    model = Classifier(ClassifierConfig(backbone=backbone), size).eval()
    mask = torch.zeros(3, 1, size, size, dtype=torch.bool)
    mask[:, :, 8:56, 12:60] = True
    film = torch.from_numpy(rng.random((3, 1, size, size), dtype=np.float32)) * mask
    with torch.inference_mode():
        prediction = model.predict(Batch(film, mask, torch.tensor([0, 1, 1])), maps=True)
    layer = model.features[model._cam_layer()]
    captum = LayerGradCam(model, layer).attribute(film, relu_attributions=True).detach()
    expected = interpolate(captum, size=(size, size), mode="bilinear", align_corners=False) * mask
    assert prediction.map is not None and expected.max() > 0
    torch.testing.assert_close(prediction.map, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    torch.testing.assert_close(
        prediction.scores["probability"].float(), model(film).detach().sigmoid(), rtol=1e-4, atol=1e-6
    )
