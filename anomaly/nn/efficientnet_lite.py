"""EfficientNet-Lite: the convolutions of an ImageNet classifier, as a frozen network whose blocks are looked into.

EfficientNet-Lite is EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, published by its
authors in 2020 (tensorflow/tpu, models/official/efficientnet/lite). Batch normalization of a network that is not
trained is an affine map of each channel, and is multiplied into the convolution before it when weights are loaded.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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

    def __init__(self, channels: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        # torch's own symmetric padding where it is the same: it costs no copy of the input.
        symmetric = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(channels, outputs, kernel, stride, symmetric, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            rows, columns = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
            x = pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


class Bottleneck(nn.Module):
    """Expansion, depthwise convolution, projection, and the input added where it has the same shape."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        hidden = block.channels * block.expansion
        layers: list[nn.Module] = []
        if block.expansion > 1:
            layers += [SameConv2d(block.channels, hidden, 1, 1), nn.ReLU6(inplace=True)]
        layers += [SameConv2d(hidden, hidden, block.kernel, block.stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, SameConv2d(hidden, block.outputs, 1, 1))
        self.residual = block.stride == 1 and block.channels == block.outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """The stem and the first `depth` blocks of a variant; weights drawn anew, all of them."""

    def __init__(self, variant: str, depth: int) -> None:
        """`variant` lite0, lite1 or lite2; `depth` blocks, from 1 to `len(blocks_of(variant))`."""
        super().__init__()
        self.stem = nn.Sequential(SameConv2d(3, STEM, 3, 2), nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList(Bottleneck(block) for block in blocks_of(variant)[:depth])
        for layer in self.convolutions():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
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
        """Return this network's tensors from those of the published one, normalization folded in.

        Raises KeyError for one that lacks a tensor; what `published` has beyond the last block is left out.
        """
        own = {id(layer): name for name, layer in self.named_modules()}
        tensors: dict[str, Tensor] = {}
        for layer, (weight, norm) in zip(self.convolutions(), self._published_names(), strict=True):
            scale = published[f"{norm}.weight"].double()
            scale = scale / (published[f"{norm}.running_var"].double() + EPSILON).sqrt()
            shift = published[f"{norm}.bias"].double() - published[f"{norm}.running_mean"].double() * scale
            folded = published[f"{weight}.weight"].double() * scale[:, None, None, None]
            tensors |= {f"{own[id(layer)]}.weight": folded.float(), f"{own[id(layer)]}.bias": shift.float()}
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
