"""Floating-point operations of the sync model's step.

Letters: B rows, T frames, H/W picture axes, F/T' spectrogram axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn
from torchvision.models.resnet import BasicBlock

from javisc.trainer.forecast.flops import Tally, trains
from javisc.trainer.models.sync.attention import Attention, EncoderBlock, SelectorBlock
from javisc.trainer.models.sync.correlation import Correlation
from javisc.trainer.models.sync.model import AudioClassifier, AVSync, ConvBridge
from javisc.trainer.models.sync.resnet import ResNet18Audio
from javisc.trainer.models.sync.s3d import Basic, Mixed, Sep
from javisc.trainer.models.sync.transformer import FullAttention, FusionTransformer, Selector, SyncTransformer


def _steps(sizes: Sequence[int], layer: nn.Module) -> tuple[int, ...]:
    """Sizes behind a convolution or a pool."""

    def each(name: str) -> tuple[int, ...]:
        value = getattr(layer, name)
        return tuple(value) if isinstance(value, tuple) else (int(value),) * len(sizes)

    axes = zip(sizes, each("kernel_size"), each("stride"), each("padding"), strict=True)
    return tuple((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in axes)


@dataclass
class _Grid:
    """Features on their way through a trunk: rows, their axes, whether gradients reach them."""

    tally: Tally
    rows: int
    axes: tuple[int, ...]
    reached: bool = False

    def through(self, *layers: nn.Module) -> None:
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                self.axes = _steps(self.axes, layer)
                self.reached = self.tally.weight(layer, self.rows * prod(self.axes), self.reached)
            elif isinstance(layer, nn.MaxPool2d | nn.MaxPool3d):
                self.axes = _steps(self.axes, layer)
            elif isinstance(layer, Mixed):
                self.beside(layer.branch0, layer.branch1, layer.branch2, layer.branch3)
            elif isinstance(layer, BasicBlock):
                path = nn.Sequential(layer.conv1, layer.bn1, layer.conv2, layer.bn2)
                self.beside(path, layer.downsample or nn.Identity())
            elif isinstance(layer, nn.Sequential | Basic | Sep | ConvBridge):
                self.through(*layer.children())
            else:
                self.reached = self.reached or trains(layer)

    def beside(self, *branches: nn.Module) -> None:
        start = self.axes, self.reached
        ends = []
        for branch in branches:
            self.axes, self.reached = start
            self.through(branch)
            ends.append(self.reached)
        self.reached = any(ends)

    @property
    def tokens(self) -> int:
        return prod(self.axes)


def _attention(
    tally: Tally, layer: Attention, rows: int, queries: int, keys: int | None, x: bool, context: bool
) -> bool:
    """Attention of `queries` tokens over themselves (`keys` None) or over a context, in each of `rows`."""
    context = x if keys is None else context
    keys = queries if keys is None else keys
    q = tally.weight(layer.query, rows * queries, x)
    k = tally.weight(layer.key, rows * keys, context)
    tally.weight(layer.value, rows * keys, context)
    mixed = tally.attention(rows * queries * keys, layer.key.out_features, q, k)
    return tally.weight(layer.proj, rows * queries, mixed)


def _encoder(tally: Tally, blocks: nn.Module, rows: int, tokens: int, reached: bool) -> bool:
    for block in blocks.children():
        assert isinstance(block, EncoderBlock)
        reached = _attention(tally, block.attn, rows, tokens, None, reached or trains(block.ln1), False) or reached
        reached = tally.chain(block.mlp, rows * tokens, reached or trains(block.ln2)) or reached
    return reached


def _selector(tally: Tally, selector: Selector, rows: int, tokens: int, context: bool) -> bool:
    reached, queries = selector.selectors.requires_grad, len(selector.selectors)
    for block in selector.blocks:
        assert isinstance(block, SelectorBlock)
        reached = _attention(tally, block.attn, rows, queries, None, reached or trains(block.ln1), False) or reached
        reached = (
            _attention(tally, block.xattn, rows, queries, tokens, reached or trains(block.ln2), context) or reached
        )
        reached = tally.chain(block.mlp, rows * queries, reached or trains(block.ln3)) or reached
    return reached


def sync_grids(model: AVSync, vis: Sequence[int], aud: Sequence[int], tally: Tally) -> tuple[_Grid, _Grid]:
    """Both trunks with their bridges, for vis (B,T,3,H,W) and aud (B,1,F,T): the feature grids the transformer sees."""
    video = _Grid(tally, vis[0], (vis[1], vis[3], vis[4]))
    video.through(model.vfeat_extractor.base, model.v_bridge)
    audio = audio_grid(model.afeat_extractor, aud, tally)
    audio.through(model.a_bridge)
    return video, audio


def audio_grid(trunk: ResNet18Audio, aud: Sequence[int], tally: Tally) -> _Grid:
    """The audio trunk, for aud (B,1,F,T): its feature grid."""
    grid = _Grid(tally, aud[0], tuple(aud[2:]))
    grid.through(trunk.conv1, trunk.bn1, trunk.maxpool, trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
    return grid


def classifier_flops(model: AudioClassifier, aud: Sequence[int]) -> Tally:
    """A step of the audio trunk's classifier on aud (B,1,F,T)."""
    tally = Tally()
    grid = audio_grid(model, aud, tally)
    assert isinstance(model.fc, nn.Linear)
    tally.weight(model.fc, grid.rows, grid.reached)
    return tally


def sync_flops(model: AVSync, vis: Sequence[int], aud: Sequence[int]) -> Tally:
    """A step of the sync model on clips vis (B,T,3,H,W) and aud (B·K,1,F,T)."""
    tally = Tally()
    video, audio = sync_grids(model, vis, aud, tally)
    rows, head = aud[0], model.transformer
    if isinstance(head, Correlation):
        v = tally.weight(head.vis_proj, vis[0] * video.axes[0], video.reached or trains(head.pre_lnorm_vis))
        a = tally.weight(head.aud_proj, rows * audio.axes[1], audio.reached or trains(head.pre_lnorm_aud))
        tally.forward += 2.0 * rows * head.moments**2 * head.vis_proj.out_features
        tally.backward += 2.0 * rows * head.moments**2 * head.vis_proj.out_features * (v + a)
        tally.weight(head.off_head, rows, v or a)
        return tally
    assert isinstance(head, FullAttention | SyncTransformer)
    v = video.reached or trains(head.pre_lnorm_vis) or trains(head.vis_pos_emb)
    a = audio.reached or trains(head.pre_lnorm_aud) or trains(head.aud_pos_emb)
    if isinstance(head, FullAttention):
        _encoder(tally, head.blocks, rows, 2 + video.tokens + audio.tokens, v or a or head.OFF_tok.requires_grad)
    else:
        v = _selector(tally, head.v_selector, vis[0], video.tokens, v)
        a = _selector(tally, head.a_selector, rows, audio.tokens, a)
        if isinstance(head.global_transformer, FusionTransformer):
            tokens = 2 + len(head.v_selector.selectors) + len(head.a_selector.selectors)
            _encoder(tally, head.global_transformer.blocks, rows, tokens, v or a or trains(head.global_transformer))
    tally.weight(head.off_head, rows, trains(head) or v or a)
    return tally
