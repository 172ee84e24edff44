"""ResNet-18 over spectrograms, the audio trunk: torchvision's, with one input channel."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from javisc.trainer.models.sync.config import TRUNK_SIZES, check_choice

#: Blocks per layer; a layer that is absent is an identity.
BLOCKS: dict[str, list[int]] = {"full": [2, 2, 2, 2], "small": [1, 1, 1], "tiny": [1, 1, 1]}
#: Channels of the first layer; every further one has twice as many.
_FIRST = {"full": 64, "small": 64, "tiny": 16}
#: Strides of the first convolution over frequency and time.
_STRIDE = {"full": (2, 2), "small": (4, 2), "tiny": (8, 2)}


def trunk_channels(size: str) -> int:
    """Channels of a trunk's features."""
    return _FIRST[check_choice("audio_trunk.size", size, TRUNK_SIZES)] << len(BLOCKS[size]) - 1


class ResNet18Audio(ResNet):
    """aud (B,1,F,T) → features (B,512,f,t); with `classes`, logits (B,classes)."""

    def __init__(self, size: str = "full", classes: int | None = None) -> None:
        channels = trunk_channels(size)
        blocks = BLOCKS[size]
        super().__init__(BasicBlock, [*blocks, *[1] * (4 - len(blocks))])
        # Replaced after torchvision's initialisation, so this layer alone keeps torch's default, as in the reference.
        stride = _STRIDE[size]
        first = _FIRST[size]
        self.conv1 = nn.Conv2d(1, first, 7, stride=stride, padding=3, bias=False)
        if size == "tiny":
            # Thin, and with columns of 64 ms where the others' are 128 (256) ms apart.
            self.inplanes, self.bn1 = first, nn.BatchNorm2d(first)
            self.layer1 = self._make_layer(BasicBlock, first, 1)
            self.layer2 = self._make_layer(BasicBlock, 2 * first, 1, stride=2)
            self.layer3 = self._make_layer(BasicBlock, 4 * first, 1, stride=(2, 1))  # type: ignore[arg-type]
        for absent in range(len(blocks) + 1, 5):
            setattr(self, f"layer{absent}", nn.Identity())
        self.is_classifier = classes is not None
        self.fc = nn.Identity() if classes is None else nn.Linear(channels, classes)

    def features(self, aud: Tensor) -> Tensor:
        """(B,1,F,T) → (B,C,f,t)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(aud))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, aud: Tensor) -> Tensor:
        features = self.features(aud)
        return self.fc(self.avgpool(features).flatten(1)) if self.is_classifier else features
