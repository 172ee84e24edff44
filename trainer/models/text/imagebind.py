"""ImageBind's text tower: a causal pre-norm transformer over CLIP tokens, written from the public architecture.

Its weights carry CC BY-NC-SA 4.0 and are not part of this package. Letters: B rows, L positions, C width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.weights import load_strictly


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(*x.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x), mask)
        return x + self.mlp(self.norm_2(x))


class _Tokens(nn.Module):
    mask: Tensor

    def __init__(self, positions: int, vocabulary: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, positions, width).normal_(std=0.01))
        self.register_buffer("mask", torch.full((positions, positions), float("-inf")).triu(1))
        self.token_embedding = nn.Embedding(vocabulary, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.pos_embed


class _Trunk(nn.Module):
    def __init__(self, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))


class _Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, width, bias=False))


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


class ImageBindText(nn.Module):
    """The tower under its official key names; defaults are ImageBind-huge's. All parameters are frozen.

    The prior consumes `forward`'s trunk output; the head is kept so that files load strictly, and for `embed`.
    """

    def __init__(
        self, positions: int = 77, vocabulary: int = 49408, width: int = 1024, blocks: int = 24, heads: int = 16
    ) -> None:
        super().__init__()
        self.modality_preprocessors = nn.ModuleDict({"text": _Tokens(positions, vocabulary, width)})
        self.modality_trunks = nn.ModuleDict({"text": _Trunk(width, blocks, heads)})
        self.modality_heads = nn.ModuleDict({"text": _Head(width)})
        self.modality_postprocessors = nn.ModuleDict({"text": nn.Sequential(nn.Identity(), _Scale())})
        self.requires_grad_(False)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], where: str) -> ImageBindText:
        """From a file's tensors: the whole ImageBind's, or the text tower's alone. Sizes follow from the tensors (heads
        of 64)."""
        own = {name: value for name, value in tensors.items() if ".text." in name}
        front = "modality_preprocessors.text."
        if f"{front}pos_embed" not in own or f"{front}token_embedding.weight" not in own:
            raise UserError(
                f"{where} holds no ImageBind text tower; give imagebind_huge.pth, or a prior with text_encoder.* tensors"
            )
        (_, positions, width), vocabulary = own[f"{front}pos_embed"].shape, len(own[f"{front}token_embedding.weight"])
        blocks = len({name.split(".")[3] for name in own if name.startswith("modality_trunks.text.blocks.")})
        model = cls(positions, vocabulary, width, blocks, max(1, width // 64))
        load_strictly(model, own, where)
        return model.eval()

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] → hidden states [B, L, C], no norm after the last block; padding is not masked."""
        front, trunk = self.modality_preprocessors["text"], self.modality_trunks["text"]
        assert isinstance(front, _Tokens) and isinstance(trunk, _Trunk)
        x, mask = front(tokens), front.mask
        for block in trunk.blocks:
            x = block(x, mask.to(x.dtype))
        return x

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """The joint space's embedding [B, C]: the head at the end token (the largest id), normalised, at the stored scale."""
        hidden = self.forward(tokens)
        at_end = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=-1)]
        head, scale = self.modality_heads["text"], self.modality_postprocessors["text"].get_submodule("1")
        assert isinstance(head, _Head) and isinstance(scale, _Scale)
        return F.normalize(head.proj(at_end), dim=-1) * scale.log_logit_scale.exp().clamp(max=100.0)
