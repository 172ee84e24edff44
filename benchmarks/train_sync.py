"""`benchmarks/train.py --model sync`: a training step of the sync selector, and its transformer's growth with the clip."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from measure import command, exponent, growth, in_turn, machine, table
from plain_sync import plain_sync
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from javisc.trainer.forecast.flops import META, counted
from javisc.trainer.models.sync.config import (
    AVSyncConfig,
    FullAttentionConfig,
    FusionConfig,
    SelectorConfig,
    SyncTransformerConfig,
    TrunkConfig,
)
from javisc.trainer.models.sync.model import AVSync, to_channels_last
from javisc.trainer.models.sync.transformer import FullAttention, SyncTransformer

CONTESTANTS = {
    "plain": "plain eager torch",
    "javisc": "javisc: channels-last trunks, selector_attention",
    "javisc-compiled": "javisc, torch.compile per block",
    "javisc-recompute": "javisc, every block computed again",
}
GROWING = {"selector": "selectors and fusion", "full": "full attention, same width and layers"}
_DRY = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def config_of(options: argparse.Namespace, grids: tuple[tuple[int, int, int], tuple[int, int]]) -> AVSyncConfig:
    """The published model without dropout, its position tables as large as the grids; or a small one (`--tiny`)."""
    stack = {**_DRY, **({"n_layer": 1, "n_head": 2} if options.tiny else {})}
    common = {"visual_shape": grids[0], "audio_shape": grids[1], **({"width": 32} if options.tiny else {})}
    trunk = TrunkConfig(size="small" if options.tiny else "full")
    return AVSyncConfig(
        visual_trunk=trunk,
        audio_trunk=trunk,
        audio_bridge="conv" if options.tiny else "identity",
        transformer=SyncTransformerConfig(
            visual_selector=SelectorConfig(**stack),
            audio_selector=SelectorConfig(**stack),
            fusion=FusionConfig(**stack),
            **common,
        ),
        full_attention=FullAttentionConfig(stack=FusionConfig(**stack), **common),
    )


def grids_of(seconds: float) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """The feature grids (T,h,w) and (F,T') of a clip at 25 fps, 224 pixels and 16 kHz, by the trunks' strides."""

    def halved(size: int, times: int) -> int:
        for _ in range(times):
            size = (size - 1) // 2 + 1
        return size

    return (halved(round(25 * seconds), 2) // 2, 7, 7), (9, halved(1 + round(125 * seconds), 5))


def autocast(device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def clip(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of random pictures and spectrograms with their classes."""
    torch.manual_seed(1)
    side, seconds = (32, 1.0) if options.tiny else (224, options.seconds)
    vis = torch.randn(options.rows, round(25 * seconds), 3, side, side, device=device)
    aud = torch.randn(options.rows, 1, 257, 1 + round(125 * seconds), device=device)
    return vis, aud, torch.arange(options.rows, device=device)


def step_of(name: str, options: argparse.Namespace, device: torch.device) -> Callable[[], dict[str, Tensor]]:
    """One training step of a contestant: forward, backward, Adam. Returns loss and gradients by name."""
    torch.manual_seed(0)
    config = config_of(options, ((32, 14, 14), (18, 40)) if options.tiny else grids_of(options.seconds))
    config.full_attention = None
    model = AVSync(config).to(device).train()
    if name != "plain":
        to_channels_last(model)
    vis, aud, target = clip(options, device)
    named = dict(model.named_parameters())
    heads = config.transformer.fusion.n_head

    def plain() -> Tensor:
        return plain_sync(named, vis, aud, heads=heads, size=config.visual_trunk.size)

    def ours() -> Tensor:
        logits: Tensor = model(vis, aud)[1]
        return logits

    blocks = model.blocks()
    if name == "javisc-recompute":
        chosen = {id(block) for block in blocks}
        apply_activation_checkpointing(model, check_fn=lambda module: id(module) in chosen)
    if name == "javisc-compiled":
        for block in blocks:
            block.compile()
    optimizer = torch.optim.Adam(named.values(), lr=1e-5, fused=True)

    def step() -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            loss = F.cross_entropy((plain if name == "plain" else ours)().float(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        grads = {key: p.grad for key, p in named.items() if p.grad is not None}
        optimizer.step()
        return {"loss": loss.detach(), **grads}

    return step


def agreement(options: argparse.Namespace) -> float:
    """The largest relative difference of loss and gradients between plain and javisc's step, on a small clip in float32 on the
    CPU. Raises SystemExit if it is above 1e-3."""
    small = copy.copy(options)
    small.tiny, small.rows = True, 2
    want, got = (step_of(name, small, torch.device("cpu"))() for name in ("plain", "javisc"))
    if want.keys() != got.keys():
        raise SystemExit(
            f"gradients of {sorted(want.keys() ^ got.keys())[:3]} exist on one side only: nothing is timed"
        )
    scale = max(float(value.norm()) for key, value in want.items() if key != "loss")
    worst = 0.0
    for key, value in want.items():
        # Gradients that are zero but for rounding (a key's bias) are judged by the largest gradient.
        error = float((value - got[key]).norm() / value.norm().clamp(min=1e-4 * scale))
        if not error <= 1e-3:
            raise SystemExit(f"{key} differs by {error:.1e} between plain torch and javisc: nothing is timed")
        worst = max(worst, error)
    return worst


def growing(kind: str, seconds: float, options: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """Forward and backward of the transformer alone, over random features of a clip of this length, one clip."""
    torch.manual_seed(0)
    grids = grids_of(seconds)
    config = config_of(options, grids)
    assert config.full_attention is not None
    model: nn.Module = (
        SyncTransformer(config.transformer) if kind == "selector" else FullAttention(config.full_attention)
    )
    model.to(device).train()
    width = config.transformer.width
    vis = torch.randn(1, grids[0][0], width, *grids[0][1:], device=device, requires_grad=True)
    aud = torch.randn(1, width, *grids[1], device=device, requires_grad=True)

    def run() -> None:
        with autocast(device):
            loss = model(vis, aud).float().square().mean()
        loss.backward()

    return run


def report(options: argparse.Namespace, device: torch.device) -> list[str]:
    """Measure and return the report's lines."""
    if options.one:
        name, seconds = options.one
        run = step_of(name, options, device) if name in CONTESTANTS else growing(name, float(seconds), options, device)
        print(json.dumps(growth(run, device)))
        raise SystemExit(0)
    error = agreement(options)
    names = [name for name in CONTESTANTS if not options.only or name in options.only]
    steps = {name: step_of(name, options, device) for name in names}
    times = in_turn(steps, options.repeats, device)
    del steps
    vis, aud, target = clip(options, META)
    with META:
        config = config_of(options, grids_of(options.seconds))
        config.full_attention = None
        model = AVSync(config)
    work = counted(lambda: F.cross_entropy(model(vis, aud)[1], target)).total
    rows = [
        [
            CONTESTANTS[name],
            str(times[name]),
            f"{times[names[0]].median / times[name].median:.2f}×",
            f"{_memory(name, 0) / 1e9:.2f}",
            f"{work / times[name].median / 1e12:.3g}",
        ]
        for name in names
    ]
    print(*(" ".join(row) for row in rows), sep="\n", file=sys.stderr, flush=True)
    return [
        "# A training step of the sync selector",
        "",
        f"`{command('train.py')}`",
        "",
        f"{machine(device)}, {'bfloat16 autocast' if device.type == 'cuda' else 'float32'}.",
        "",
        f"{options.rows} clips of {vis.shape[1]} frames of {vis.shape[3]} pixels and {aud.shape[3]} spectrogram columns;",
        "forward, backward and fused Adam of the whole model, without dropout. Plain torch (benchmarks/plain_sync.py) computes",
        f"the same: loss and every gradient agree to {error:.0e} on a small clip. Contestants run in turn: medians of",
        f"{options.repeats} rounds. Memory is the growth above weights and optimizer state, measured alone.",
        "",
        *table(["step", "seconds (least–most)", "faster by", "peak GB", "TFLOP/s"], rows),
        "",
        "## Growth with the clip's length",
        "",
        "The transformer alone (selectors and fusion, or the full-attention baseline), forward and backward over one clip's",
        "features; the trunks before it are linear in the length. Exponents are fitted slopes of logarithms: 1 is linear, 2",
        "quadratic.",
        "",
        *_growth_tables(options, device),
    ]


def _growth_tables(options: argparse.Namespace, device: torch.device) -> list[str]:
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in GROWING}
    peaks: dict[str, list[tuple[float, float]]] = {kind: [] for kind in GROWING}
    for length in options.lengths:
        timed = in_turn({kind: growing(kind, length, options, device) for kind in GROWING}, options.repeats, device)
        for kind in GROWING:
            seconds[kind].append((length, timed[kind].median))
            peaks[kind].append((length, _memory(kind, length) / 1e6))
    tokens = [
        str(grid[0][0] * grid[0][1] * grid[0][2] + grid[1][0] * grid[1][1]) for grid in map(grids_of, options.lengths)
    ]
    out = []
    for unit, found in (("seconds", seconds), ("peak MB", peaks)):
        header = [
            unit,
            *(f"{length:g} s ({count} tokens)" for length, count in zip(options.lengths, tokens)),
            "exponent",
        ]
        body = [
            [GROWING[kind], *(f"{value:.3g}" for _, value in points), f"{exponent(points):.2f}"]
            for kind, points in found.items()
        ]
        out += [*table(header, body), ""]
    return out


def _memory(name: str, seconds: float) -> float:
    """Bytes at the peak of a step, from a process of its own; not a number if it fails (out of memory)."""
    run = [sys.executable, "-P", *sys.argv, "--one", name, str(seconds)]
    done = subprocess.run(run, check=False, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)) if done.returncode == 0 else float("nan")
