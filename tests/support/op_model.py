"""A small model of the kernels' ops, importable by the processes that a test starts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from javisc.kernels.attention import attention
from javisc.kernels.modulated_norm import gated_residual, modulated_layer_norm
from javisc.kernels.temporal_attention import rope_table, temporal_attention

B, T, S, H, D = 2, 2, 3, 2, 16
C = H * D


class Block(nn.Module):
    """A transformer block of the joint model in small: modulated norm, attention over time and space, gated residual."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.modulation = nn.Linear(C, 3 * C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.gain = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(t).chunk(3, dim=-1)
        qkv = self.qkv(modulated_layer_norm(x, shift, scale, backend=self.backend)).view(B, T, S, 3, H, D)
        cos, sin = rope_table(torch.arange(D // 2, dtype=torch.float32) / D, T)
        over_time = temporal_attention(qkv, self.gain, self.gain, cos, sin, backend=self.backend).flatten(3)
        q, k, v = qkv.flatten(1, 2).unbind(2)
        over_all = attention(q, k, v, backend=self.backend).reshape(B, T, S, C)
        return gated_residual(x, self.proj(over_time + over_all), gate, backend=self.backend)


class Model(nn.Module):
    def __init__(self, backend: str, recompute: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(backend) for _ in range(2))
        self.recompute = recompute

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, t, use_reentrant=False) if self.recompute else block(x, t)
        return x


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(B, T, S, C, generator=generator), torch.randn(B, C, generator=generator)


def made(backend: str) -> Model:
    torch.manual_seed(1)
    return Model(backend)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model(*inputs()).square().mean().backward()
    out = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        out[name] = grad.clone()
    return out


def sharded(rank: int, port: int, backends: list[str], folder: str) -> None:
    """One of two processes: the sharded model's gradients on each backend, saved by the first."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for backend in backends:
        model = made(backend)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        grads = gradients(model)
        if rank == 0:
            torch.save(grads, Path(folder) / f"{backend}.pt")
    dist.barrier()
    dist.destroy_process_group()
