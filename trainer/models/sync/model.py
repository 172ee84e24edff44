"""The whole sync model, and the classifier that pre-trains its audio trunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.models.sync import resnet, s3d
from javisc.trainer.models.sync.alignment import PARTS, alignment_loss, similarities
from javisc.trainer.models.sync.config import BRIDGES, AVSyncConfig, check_choice
from javisc.trainer.models.sync.correlation import Correlation
from javisc.trainer.models.sync.transformer import FullAttention, SyncTransformer, channels_last


class ConvBridge(nn.Module):
    """A convolution of kernel 1 and GELU on (B,C,T,H,W), or with two dimensions on (B,C,F,T); with `norm`, then standardised.

    Features that start from nothing have much in common everywhere. Standardised over the batch, without weights, they show
    what differs, which alone tells when something happens.
    """

    def __init__(self, inputs: int, outputs: int, dims: int, norm: bool) -> None:
        super().__init__()
        conv = nn.Conv3d(inputs, outputs, 1) if dims == 3 else nn.Conv2d(inputs, outputs, 1)
        self.bridge = nn.Sequential(conv, nn.GELU())
        if norm:
            self.bridge.append((nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d)(outputs, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.bridge(x)


def _bridge(option: str, kind: str, inputs: int, outputs: int, dims: int) -> nn.Module:
    if check_choice(option, kind, BRIDGES) != "identity":
        return ConvBridge(inputs, outputs, dims, norm=kind == "conv-norm")
    if inputs != outputs:
        raise ValueError(
            f"{option}='identity' needs transformer.width={inputs}, it is {outputs}: use 'conv' or change the width"
        )
    return nn.Identity()


class AVSync(nn.Module):
    """vis (B,T,3,H,W), aud (B·K,1,F,T') → (loss or None, logits (B·K,classes)); K sounds per picture, which lie together.

    `vis` is normalised with ImageNet's statistics, `aud` a standardised log spectrogram. The loss is the mean cross entropy
    against `targets` (B·K,), where given. With `shift` (B·K,), by how many crop lengths the sound was taken later than the
    picture, it is the alignment loss instead: of the features that correlate, or of the normalised ones.
    """

    def __init__(self, config: AVSyncConfig | None = None) -> None:
        super().__init__()
        config = config or AVSyncConfig()
        width = config.head.width
        self.config = config
        self.vfeat_extractor = s3d.S3D(config.visual_trunk.size)
        self.afeat_extractor = resnet.ResNet18Audio(config.audio_trunk.size)
        visual, audio = s3d.trunk_channels(config.visual_trunk.size), resnet.trunk_channels(config.audio_trunk.size)
        self.v_bridge = _bridge("visual_bridge", config.visual_bridge, visual, width, 3)
        self.a_bridge = _bridge("audio_bridge", config.audio_bridge, audio, width, 2)
        self.transformer: Correlation | FullAttention | SyncTransformer
        if config.correlation is not None:
            self.transformer = Correlation(config.correlation)
        elif config.full_attention is not None:
            self.transformer = FullAttention(config.full_attention)
        else:
            self.transformer = SyncTransformer(config.transformer)
        for trunk in self._frozen():
            trunk.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        pairs = ((self.config.visual_trunk, self.vfeat_extractor), (self.config.audio_trunk, self.afeat_extractor))
        bridges: list[nn.Module] = [] if self.config.train_bridges else [self.v_bridge, self.a_bridge]
        return [*(trunk for config, trunk in pairs if not config.trained), *bridges]

    def blocks(self) -> list[nn.Module]:
        """The repeated parts: the trunks' stages and the transformer's blocks."""
        stages = [module for module in self.vfeat_extractor.base if any(True for _ in module.parameters())]
        layers = [getattr(self.afeat_extractor, f"layer{number}") for number in range(1, 5)]
        stages += [layer for layer in layers if any(True for _ in layer.parameters())]
        stacks = [stack for name, stack in self.transformer.named_modules() if name.split(".")[-1] == "blocks"]
        return [*stages, *(block for stack in stacks for block in stack.children())]

    def train(self, mode: bool = True) -> AVSync:
        super().train(mode)
        for trunk in self._frozen():
            trunk.eval()
        return self

    def forward(
        self, vis: Tensor, aud: Tensor, targets: Tensor | None = None, shift: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        vis = self.v_bridge(self.vfeat_extractor(vis).transpose(1, 2)).transpose(1, 2)
        aud = self.a_bridge(self.afeat_extractor(aud))
        if shift is not None:
            if isinstance(self.transformer, Correlation):
                return self.transformer.aligned(vis, aud, shift)
            return self._aligned(vis, aud, shift), self.transformer(vis, aud)
        logits = self.transformer(vis, aud)
        return (None if targets is None else F.cross_entropy(logits, targets)), logits

    def _aligned(self, vis: Tensor, aud: Tensor, shift: Tensor) -> Tensor:
        assert not isinstance(self.transformer, Correlation)
        seen, heard = channels_last(vis, aud)
        seen, heard = self.transformer.pre_lnorm_vis(seen).amax((2, 3)), self.transformer.pre_lnorm_aud(heard).mean(1)
        return alignment_loss(similarities(seen, heard, vis.shape[1], PARTS), shift)


class AudioClassifier(resnet.ResNet18Audio):
    """The audio trunk with its head: aud (B,1,F,T) → (loss or None, logits (B,classes)).

    With `class_weights` (classes,), the loss is Σ w·l / Σ w over the batch, else the plain mean.
    """

    def __init__(self, classes: int = 308, size: str = "full") -> None:
        super().__init__(size, classes)

    def forward(  # type: ignore[override]
        self, aud: Tensor, targets: Tensor | None = None, class_weights: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        logits = super().forward(aud)
        return (None if targets is None else F.cross_entropy(logits, targets, weight=class_weights)), logits


def to_channels_last(model: AVSync) -> AVSync:
    """Lay out the trunks' weights channels-last: what cuDNN's tensor-core convolutions want. Changes no
    state dict value, but makes new parameters: call it before an optimizer is."""
    layouts = ((model.vfeat_extractor, torch.channels_last_3d), (model.afeat_extractor, torch.channels_last))
    for trunk, layout in layouts:
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                # Not `Module.to`, which cannot exchange the fake weights of a dry run.
                weight = module.weight.detach().contiguous(memory_format=layout)
                module.weight = nn.Parameter(weight, module.weight.requires_grad)
    return model
