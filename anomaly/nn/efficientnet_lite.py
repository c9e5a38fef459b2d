"""EfficientNet-Lite: the convolutions of an ImageNet classifier, as a network whose blocks are looked into.

EfficientNet-Lite is EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, published by its
authors in 2020 (tensorflow/tpu, models/official/efficientnet/lite). In a network that is not trained batch
normalization is an affine map of each channel, and is multiplied into the convolution before it when weights are
loaded; one that is trained further has layers of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

EPSILON = 1e-3
"""Of the published network's batch normalization."""
STEM = 32
"""Channels of the first convolution, whatever the width."""


@dataclass(frozen=True)
class Block:
    """What one inverted bottleneck is made of."""

    channels: int  # of its input
    outputs: int
    expansion: int
    kernel: int
    stride: int


STAGES = (
    (16, 1, 1, 3, 1),
    (24, 2, 6, 3, 2),
    (40, 2, 6, 5, 2),
    (80, 3, 6, 3, 2),
    (112, 3, 6, 5, 1),
    (192, 4, 6, 5, 2),
    (320, 1, 6, 3, 1),
)
"""Of Lite0: channels, blocks, expansion, kernel, stride of the first block."""
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
"""By how much channels and blocks of a variant are multiplied."""
MEAN, DEVIATION = 127 / 255, 128 / 255
"""Of the levels of all three channels, by which the network's authors normalized its input."""


def blocks_of(variant: str) -> list[Block]:
    """Return the blocks of lite0, lite1 or lite2, from the film to the head.

    >>> [block.outputs for block in blocks_of("lite0")]
    [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    """
    width, depth = SCALES[variant]
    blocks: list[Block] = []
    channels = STEM
    for index, (outputs, repeats, expansion, kernel, stride) in enumerate(STAGES):
        scaled = _rounded(outputs * width)
        if index not in (0, len(STAGES) - 1):  # the first and the last stage of Lite keep their one block
            repeats = math.ceil(repeats * depth)
        for number in range(repeats):
            blocks.append(Block(channels, scaled, expansion, kernel, stride if number == 0 else 1))
            channels = scaled
    return blocks


def _rounded(channels: float) -> int:
    """Return a multiple of 8 that is not below nine tenths of `channels`."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding: where it is odd, the last pixel is on the right and below.

    `anomaly.nn.backbone` says where that leaves the cells of a map.
    """

    def __init__(
        self, channels: int, outputs: int, kernel: int, stride: int, *, groups: int = 1, bias: bool = True
    ) -> None:
        # torch's own symmetric padding where it is the same: it costs no copy of the input.
        symmetric = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(channels, outputs, kernel, stride, symmetric, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            rows, columns = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
            x = pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


def _convolution(
    channels: int, outputs: int, kernel: int, stride: int, groups: int, *, batch_norm: bool
) -> list[nn.Module]:
    """Return a convolution, with batch normalization in place of its bias where the network is to be trained."""
    layer = SameConv2d(channels, outputs, kernel, stride, groups=groups, bias=not batch_norm)
    return [layer, nn.BatchNorm2d(outputs, EPSILON)] if batch_norm else [layer]


class Bottleneck(nn.Module):
    """Expansion, depthwise convolution, projection, and the input added where it has the same shape."""

    def __init__(self, block: Block, *, batch_norm: bool) -> None:
        super().__init__()
        hidden = block.channels * block.expansion
        layers: list[nn.Module] = []
        if block.expansion > 1:
            layers += [*_convolution(block.channels, hidden, 1, 1, 1, batch_norm=batch_norm), nn.ReLU6(inplace=True)]
        layers += _convolution(hidden, hidden, block.kernel, block.stride, hidden, batch_norm=batch_norm)
        layers += [nn.ReLU6(inplace=True), *_convolution(hidden, block.outputs, 1, 1, 1, batch_norm=batch_norm)]
        self.layers = nn.Sequential(*layers)
        self.residual = block.stride == 1 and block.channels == block.outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """The stem and the first `depth` blocks of a variant; weights drawn anew, all of them."""

    def __init__(self, variant: str, depth: int, *, batch_norm: bool = False) -> None:
        """`variant` lite0, lite1 or lite2; `depth` blocks, from 1 to `len(blocks_of(variant))`; `batch_norm` whether
        batch normalization is kept apart, for a network that is trained, or folded into the convolutions.
        """
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, STEM, 3, 2, 1, batch_norm=batch_norm), nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList(Bottleneck(block, batch_norm=batch_norm) for block in blocks_of(variant)[:depth])
        for layer in self.convolutions():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the output of each block: (N, 3, H, W) normalized -> (N, C, h, w), h = H / 2 .. H / 32, rounded up."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            yield x

    def convolutions(self) -> list[SameConv2d]:
        """Return the convolutions, from the film on."""
        return [module for module in self.modules() if isinstance(module, SameConv2d)]

    def tensors_of(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this network's tensors from those of the published one, normalization folded in or apart.

        Raises KeyError for one that lacks a tensor; what `published` has beyond the last block is left out.
        """
        own = {id(layer): name for name, layer in self.named_modules()}
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        tensors: dict[str, Tensor] = {}
        for index, (layer, (weight, norm)) in enumerate(zip(self.convolutions(), self._published_names(), strict=True)):
            name = own[id(layer)]
            if norms:
                parts = ("weight", "bias", "running_mean", "running_var")
                tensors |= {f"{own[id(norms[index])]}.{part}": published[f"{norm}.{part}"] for part in parts}
                tensors[f"{name}.weight"] = published[f"{weight}.weight"]
                continue
            scale = published[f"{norm}.weight"].double()
            scale = scale / (published[f"{norm}.running_var"].double() + EPSILON).sqrt()
            shift = published[f"{norm}.bias"].double() - published[f"{norm}.running_mean"].double() * scale
            folded = published[f"{weight}.weight"].double() * scale[:, None, None, None]
            tensors |= {f"{name}.weight": folded.float(), f"{name}.bias": shift.float()}
        return tensors

    def _published_names(self) -> list[tuple[str, str]]:
        """Return what the package efficientnet-lite-pytorch calls each convolution and its normalization."""
        names = [("_conv_stem", "_bn0")]
        for index, block in enumerate(self.blocks):
            parts = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            assert isinstance(block, Bottleneck)
            present = parts if sum(isinstance(m, SameConv2d) for m in block.layers) == 3 else parts[1:]
            names += [(f"_blocks.{index}.{weight}", f"_blocks.{index}.{norm}") for weight, norm in present]
        return names


HEAD = 1280
"""Channels of the last convolution, whatever the width."""


def feature_layers(variant: str) -> nn.Sequential:
    """Return all layers of a variant before its classes, to be trained further: stem, blocks, head, each a child.

    (N, 3, H, W) -> (N, HEAD, H / 32, W / 32); weights are drawn anew, `feature_tensors` has others.
    """
    network = EfficientNetLite(variant, len(blocks_of(variant)), batch_norm=True)
    last = blocks_of(variant)[-1].outputs
    convolution, norm = _convolution(last, HEAD, 1, 1, 1, batch_norm=True)
    assert isinstance(convolution, SameConv2d)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(network.stem, *network.blocks, nn.Sequential(convolution, norm, nn.ReLU6(inplace=True)))


def feature_tensors(variant: str, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of `feature_layers` from those of the published network; KeyError where it lacks one."""
    blocks = len(blocks_of(variant))
    tensors = {}
    for name, value in EfficientNetLite(variant, blocks, batch_norm=True).tensors_of(published).items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            number, _, rest = rest.partition(".")
            tensors[f"{int(number) + 1}.{rest}"] = value
        else:
            tensors[f"0.{rest}"] = value
    tensors[f"{blocks + 1}.0.weight"] = published["_conv_head.weight"]
    for part in ("weight", "bias", "running_mean", "running_var"):
        tensors[f"{blocks + 1}.1.{part}"] = published[f"_bn1.{part}"]
    return tensors


class LiteEncoder(nn.Module):
    """The way down of a U-Net: the outputs of the last block before each halving of the side, to be trained further."""

    def __init__(self, variant: str) -> None:
        """`variant` lite0, lite1 or lite2; weights are drawn anew, `load_published` takes up others."""
        super().__init__()
        layout = blocks_of(variant)
        # The last stage has the same side as the one before it, and many channels that serve the classes of ImageNet.
        halvings = [index for index, block in enumerate(layout) if block.stride == 2]
        ends = [*(index - 1 for index in halvings), len(layout) - 2]
        self.ends = ends
        self.channels = [layout[index].outputs for index in ends]
        self.network = EfficientNetLite(variant, ends[-1] + 1, batch_norm=True)

    def forward(self, film: Tensor) -> list[Tensor]:
        """(N, 1, S, S) in [0, 1], S a multiple of 32 -> five levels, (N, C, S / 2, S / 2) .. (N, C, S / 32, S / 32)."""
        x = ((film - MEAN) / DEVIATION).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return [output for index, output in enumerate(self.network(x)) if index in self.ends]

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up weights under the names of the published network; KeyError or RuntimeError where they don't fit."""
        own = self.network.state_dict()  # how many batches its running statistics are of is in no published file
        self.network.load_state_dict(own | self.network.tensors_of(tensors))
