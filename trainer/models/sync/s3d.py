"""S3D: a separable 3-D Inception for video (Xie et al., ECCV 2018), the visual trunk.

The trunk is one Sequential described by a table, so that a small one for tests and demonstrations is another table.
Inside, tensors are (B,C,T,H,W).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.models.sync.config import TRUNK_SIZES, check_choice


class SepSpec(NamedTuple):
    """A spatial convolution followed by a temporal one, both of `kernel` with `stride` and `padding` in their own axes."""

    channels: int
    kernel: int
    stride: int
    padding: int


class BasicSpec(NamedTuple):
    """A 1x1x1 convolution."""

    channels: int


class PoolSpec(NamedTuple):
    """A max pool."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]


class MixedSpec(NamedTuple):
    """Four branches side by side: 1x1x1; 1x1x1 then separable 3; the same, thinner; max pool then 1x1x1."""

    a: int
    b: tuple[int, int]
    c: tuple[int, int]
    d: int


Spec = SepSpec | BasicSpec | PoolSpec | MixedSpec

_SPATIAL_POOL = PoolSpec((1, 3, 3), (1, 2, 2), (0, 1, 1))
SPECS: dict[str, tuple[Spec, ...]] = {
    "full": (
        SepSpec(64, 7, 2, 3),
        _SPATIAL_POOL,
        BasicSpec(64),
        SepSpec(192, 3, 1, 1),
        _SPATIAL_POOL,
        MixedSpec(64, (96, 128), (16, 32), 32),
        MixedSpec(128, (128, 192), (32, 96), 64),
        PoolSpec((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        MixedSpec(192, (96, 208), (16, 48), 64),
        MixedSpec(160, (112, 224), (24, 64), 64),
        MixedSpec(128, (128, 256), (24, 64), 64),
        MixedSpec(112, (144, 288), (32, 64), 64),
        MixedSpec(256, (160, 320), (32, 128), 128),
        PoolSpec((2, 2, 2), (2, 2, 2), (0, 0, 0)),
        MixedSpec(256, (160, 320), (32, 128), 128),
        MixedSpec(384, (192, 384), (48, 128), 128),
    ),
    "small": (
        SepSpec(16, 3, 2, 1),
        _SPATIAL_POOL,
        SepSpec(32, 3, 1, 1),
        MixedSpec(16, (16, 32), (8, 8), 8),
        PoolSpec((1, 2, 2), (1, 2, 2), (0, 0, 0)),
        MixedSpec(32, (24, 48), (8, 24), 24),
    ),
    "tiny": (
        SepSpec(16, 3, 2, 1),
        _SPATIAL_POOL,
        SepSpec(32, 3, 1, 1),
        PoolSpec((1, 2, 2), (1, 2, 2), (0, 0, 0)),
        MixedSpec(24, (16, 24), (8, 8), 8),
        MixedSpec(24, (24, 48), (8, 12), 12),
        PoolSpec((1, 4, 4), (1, 4, 4), (0, 0, 0)),
    ),
}


def trunk_channels(size: str) -> int:
    """Channels of a trunk's features."""
    specs = SPECS[check_choice("visual_trunk.size", size, TRUNK_SIZES)]
    last = [spec for spec in specs if isinstance(spec, MixedSpec)][-1]
    return last.a + last.b[1] + last.c[1] + last.d


def _norm(channels: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(channels, eps=1e-3, momentum=0.001)


class Basic(nn.Module):
    """1x1x1 convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1, bias=False)
        self.bn = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Sep(nn.Module):
    """Spatial convolution, norm, ReLU, temporal convolution, norm, ReLU."""

    def __init__(self, inputs: int, spec: SepSpec) -> None:
        super().__init__()
        outputs, k, s, p = spec
        self.conv_s = nn.Conv3d(inputs, outputs, (1, k, k), (1, s, s), (0, p, p), bias=False)
        self.bn_s = _norm(outputs)
        self.conv_t = nn.Conv3d(outputs, outputs, (k, 1, 1), (s, 1, 1), (p, 0, 0), bias=False)
        self.bn_t = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_s(self.conv_s(x)), inplace=True)
        return F.relu(self.bn_t(self.conv_t(x)), inplace=True)


class Mixed(nn.Module):
    """The four branches of a MixedSpec, concatenated on the channels."""

    def __init__(self, inputs: int, spec: MixedSpec) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(Basic(inputs, spec.a))
        self.branch1 = nn.Sequential(Basic(inputs, spec.b[0]), Sep(spec.b[0], SepSpec(spec.b[1], 3, 1, 1)))
        self.branch2 = nn.Sequential(Basic(inputs, spec.c[0]), Sep(spec.c[0], SepSpec(spec.c[1], 3, 1, 1)))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Basic(inputs, spec.d))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)), 1)


def _layers(specs: tuple[Spec, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for spec in specs:
        match spec:
            case SepSpec():
                layers.append(Sep(channels, spec))
                channels = spec.channels
            case BasicSpec():
                layers.append(Basic(channels, spec.channels))
                channels = spec.channels
            case MixedSpec():
                layers.append(Mixed(channels, spec))
                channels = spec.a + spec.b[1] + spec.c[1] + spec.d
            case PoolSpec():
                layers.append(nn.MaxPool3d(*spec))
    return nn.Sequential(*layers)


class S3D(nn.Module):
    """vis (B,T,3,H,W) → features (B,T',C,h,w); with `classes`, logits (B,classes) as the Kinetics classifier."""

    def __init__(self, size: str = "full", classes: int | None = None) -> None:
        super().__init__()
        channels = trunk_channels(size)
        self.base = _layers(SPECS[size])
        if size != "full":
            # The published momentum suits published statistics; a trunk that starts from nothing would evaluate with old ones.
            for module in self.base.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.momentum = 0.1
        self.fc = nn.Identity() if classes is None else nn.Sequential(nn.Conv3d(channels, classes, 1))
        self.is_classifier = classes is not None

    def forward(self, vis: Tensor) -> Tensor:
        features = self.base(vis.transpose(1, 2))
        if not self.is_classifier:
            return features.transpose(1, 2)
        pooled = F.avg_pool3d(features, (2, *features.shape[3:]), stride=1)
        return self.fc(pooled).flatten(2).mean(2)
