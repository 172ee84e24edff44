"""The sync model's forward pass in plain eager torch, from its state dict alone: what javisc's training step is measured beside.

As specs/sparsesync.md tells: contiguous convolutions, and attention with separate projections whose probabilities are stored.
Batch norms normalise with the batch, as in training; dropout is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from javisc.trainer.models.sync.s3d import SPECS, BasicSpec, MixedSpec, PoolSpec, SepSpec

Weights = Mapping[str, Tensor]


def batch_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True, eps=eps)


def basic(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.relu(batch_norm(w, f"{name}.bn", F.conv3d(x, w[f"{name}.conv.weight"]), 1e-3))


def separable(w: Weights, name: str, x: Tensor, spec: SepSpec) -> Tensor:
    s, p = spec.stride, spec.padding
    x = F.conv3d(x, w[f"{name}.conv_s.weight"], stride=(1, s, s), padding=(0, p, p))
    x = F.relu(batch_norm(w, f"{name}.bn_s", x, 1e-3))
    x = F.conv3d(x, w[f"{name}.conv_t.weight"], stride=(s, 1, 1), padding=(p, 0, 0))
    return F.relu(batch_norm(w, f"{name}.bn_t", x, 1e-3))


def s3d(w: Weights, vis: Tensor, size: str) -> Tensor:
    """(B,T,3,H,W) → (B,C,T',h,w)."""
    x = vis.transpose(1, 2)
    for number, spec in enumerate(SPECS[size]):
        name = f"vfeat_extractor.base.{number}"
        match spec:
            case SepSpec():
                x = separable(w, name, x, spec)
            case BasicSpec():
                x = basic(w, name, x)
            case PoolSpec():
                x = F.max_pool3d(x, *spec)
            case MixedSpec():
                thin = SepSpec(0, 3, 1, 1)
                x = torch.cat(
                    (
                        basic(w, f"{name}.branch0.0", x),
                        separable(w, f"{name}.branch1.1", basic(w, f"{name}.branch1.0", x), thin),
                        separable(w, f"{name}.branch2.1", basic(w, f"{name}.branch2.0", x), thin),
                        basic(w, f"{name}.branch3.1", F.max_pool3d(x, 3, 1, 1)),
                    ),
                    1,
                )
    return x


def resnet(w: Weights, aud: Tensor, stride: tuple[int, int]) -> Tensor:
    """(B,1,F,T) → (B,C,f,t), torchvision's ResNet-18 without its head."""
    name = "afeat_extractor"
    x = F.relu(batch_norm(w, f"{name}.bn1", F.conv2d(aud, w[f"{name}.conv1.weight"], stride=stride, padding=3), 1e-5))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer in range(1, 5):
        number = 0
        while f"{name}.layer{layer}.{number}.conv1.weight" in w:
            block = f"{name}.layer{layer}.{number}"
            step = 2 if layer > 1 and number == 0 else 1
            y = F.conv2d(x, w[f"{block}.conv1.weight"], stride=step, padding=1)
            y = F.conv2d(F.relu(batch_norm(w, f"{block}.bn1", y, 1e-5)), w[f"{block}.conv2.weight"], padding=1)
            y = batch_norm(w, f"{block}.bn2", y, 1e-5)
            if f"{block}.downsample.0.weight" in w:
                x = F.conv2d(x, w[f"{block}.downsample.0.weight"], stride=step)
                x = batch_norm(w, f"{block}.downsample.1", x, 1e-5)
            x, number = F.relu(x + y), number + 1
    return x


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def attention(w: Weights, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    q, k, v = (
        linear(w, f"{name}.{part}", source).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, source in (("query", x), ("key", context), ("value", context))
    )
    mixed = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return linear(w, f"{name}.proj", mixed.transpose(1, 2).flatten(2))


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.2", F.gelu(linear(w, f"{name}.0", x)))


def selector(w: Weights, name: str, context: Tensor, heads: int) -> Tensor:
    """Trained queries over a stream (B,N,C) → (B,S,C)."""
    x = (w[f"{name}.selectors"] + w[f"{name}.selectors_pos_emb.time_embed.weight"]).expand(len(context), -1, -1)
    number = 0
    while f"{name}.blocks.{number}.ln1.weight" in w:
        block = f"{name}.blocks.{number}"
        m = layer_norm(w, f"{block}.ln1", x)
        x = x + attention(w, f"{block}.attn", m, m, heads)
        x = x + attention(w, f"{block}.xattn", layer_norm(w, f"{block}.ln2", x), context, heads)
        x = x + mlp(w, f"{block}.mlp", layer_norm(w, f"{block}.ln3", x))
        number += 1
    return x


def transformer(w: Weights, vis: Tensor, aud: Tensor, heads: int) -> Tensor:
    """Feature grids (B,T,h,w,C) and (B,F,T,C) → logits (B,classes)."""
    t, f = "transformer", w["transformer.aud_pos_emb.freq_embed.weight"]
    vis, aud = layer_norm(w, f"{t}.pre_lnorm_vis", vis), layer_norm(w, f"{t}.pre_lnorm_aud", aud)
    grid = vis.shape[1:4]
    tables = [
        w[f"{t}.vis_pos_emb.{axis}_embed.weight"][:size]
        for axis, size in zip(("time", "height", "width"), grid, strict=True)
    ]
    shaped = (tables[0][:, None, None], tables[2][None, None], tables[1][None, :, None])
    vis = vis + torch.cat([table.expand(*grid, -1) for table in shaped], -1)
    shape = aud.shape[1:3]
    columns = w[f"{t}.aud_pos_emb.time_embed.weight"][: shape[1]]
    aud = aud + torch.cat((f[: shape[0], None].expand(*shape, -1), columns[None].expand(*shape, -1)), -1)
    v = selector(w, f"{t}.v_selector", vis.flatten(1, 3), heads)
    a = selector(w, f"{t}.a_selector", aud.flatten(1, 2), heads)
    g = f"{t}.global_transformer"
    off, mod = (w[f"{g}.{name}_tok"].expand(len(v), -1, -1) for name in ("OFF", "MOD"))
    x = torch.cat((off, layer_norm(w, f"{g}.vis_in_lnorm", v), mod, layer_norm(w, f"{g}.aud_in_lnorm", a)), 1)
    number = 0
    while f"{g}.blocks.{number}.ln1.weight" in w:
        m = layer_norm(w, f"{g}.blocks.{number}.ln1", x)
        x = x + attention(w, f"{g}.blocks.{number}.attn", m, m, heads)
        x = x + mlp(w, f"{g}.blocks.{number}.mlp", layer_norm(w, f"{g}.blocks.{number}.ln2", x))
        number += 1
    return linear(w, f"{t}.off_head", layer_norm(w, f"{g}.ln_f", x)[:, 0])


def plain_sync(w: Weights, vis: Tensor, aud: Tensor, *, heads: int, size: str) -> Tensor:
    """Logits (B,classes) of vis (B,T,3,H,W) and aud (B,1,F,T')."""
    v = s3d(w, vis, size)
    v = F.gelu(F.conv3d(v, w["v_bridge.bridge.0.weight"], w["v_bridge.bridge.0.bias"])).permute(0, 2, 3, 4, 1)
    a = resnet(w, aud, (2, 2) if size == "full" else (4, 2))
    if "a_bridge.bridge.0.weight" in w:
        a = F.gelu(F.conv2d(a, w["a_bridge.bridge.0.weight"], w["a_bridge.bridge.0.bias"]))
    return transformer(w, v, a.permute(0, 2, 3, 1), heads)
