"""`benchmarks/train.py --model dit`: a training step of the joint DiT beside the reference's arithmetic."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import command, growth, in_turn, machine, matmul_ceiling, table
from plain_dit import PlainDiT
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from javisc.trainer.engine.peaks import peak_flops
from javisc.trainer.forecast.flops import META, counted, hollow
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.dit.stages import freeze, initialise

#: name → (video latent frames, latent height and width, audio latent frames): specs/javisdit.md section 13, and 144p below it.
BUCKETS = {
    "tiny": (3, 8, 12, 16),
    "144p-2s": (15, 18, 32, 56),
    "240p-2s": (15, 30, 54, 56),
    "240p-4s": (30, 30, 54, 112),
    "480p-2s": (15, 60, 106, 56),
    "480p-4s": (30, 60, 106, 112),
    "720p-2s": (15, 90, 160, 56),
    "720p-4s": (30, 90, 160, 112),
}
CONTESTANTS = {
    "reference": "the reference's arithmetic",
    "reference-compiled": "the same, torch.compile",
    "javisc": "javisc",
    "javisc-compiled": "javisc, torch.compile per block",
}
WORDS = 60
Inputs = dict[str, Any]


def build(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> VASTDiT3:
    """XL/2 at `--depth`, frozen and initialised as stage 3; every gate and output is given a value so that all gradients flow."""
    torch.manual_seed(0)
    size = {"hidden_size": 48, "num_heads": 4, "caption_channels": 64} if options.tiny else {}
    config = dataclasses.replace(PRESETS["VASTDiT3-XL/2"], depth=options.depth, class_dropout_prob=0.0, **size)
    with torch.device(device):
        model = VASTDiT3(config)
        initialise(model)
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.02)
    freeze(model)
    return model.to(dtype).train()


def inputs(
    model: VASTDiT3, bucket: str, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Inputs:
    """Random latents, captions of 60 words and priors; frame masks that are true everywhere, or with given frames (`--given`)."""
    torch.manual_seed(1)
    frames, height, width, sound = BUCKETS[bucket]
    rows, config = options.rows, model.config

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, device=device, dtype=dtype)

    words = torch.arange(config.model_max_length) < WORDS
    generated = torch.arange(frames) >= (max(frames // 4, 1) if options.given else 0)
    heard = torch.nn.functional.interpolate(generated[None, None].float(), size=sound)[0, 0].bool()
    return {
        "video": draw(4, frames, height, width),
        "audio": draw(8, sound, 16),
        "timestep": torch.linspace(200, 800, rows, device=device, dtype=dtype),
        "y": draw(1, config.model_max_length, config.caption_channels),
        "mask": words.expand(rows, -1),
        "fps": torch.full((rows,), 24.0, device=device, dtype=dtype),
        "height": 8.0 * height,
        "width": 8.0 * width,
        "spatial_prior": draw(config.spatial_prior_len, config.st_prior_channel),
        "temporal_prior": draw(config.temporal_prior_len, config.st_prior_channel),
        "x_mask": generated.expand(rows, -1).to(device),
        "ax_mask": heard.expand(rows, -1).to(device),
    }


def loss_of(forward: Callable[..., dict[str, Tensor]], given: Inputs) -> Tensor:
    """Mean squared velocity against the negated latents, over generated frames."""
    out = forward(**given)
    video = (out["video"][:, :4] + given["video"]).float().square() * given["x_mask"][:, None, :, None, None]
    audio = (out["audio"][:, :8] + given["audio"]).float().square() * given["ax_mask"][:, None, :, None]
    return video.mean() + audio.mean()


def forward_of(name: str, model: VASTDiT3, options: argparse.Namespace) -> Callable[..., dict[str, Tensor]]:
    """A contestant's forward pass over the model's parameters. `javisc` ones change the model: give each its own."""
    if name.startswith("reference"):
        return PlainDiT(model, compiled=name.endswith("compiled"), recompute=options.recompute)
    blocks = [modules[index] for modules, index in model.blocks()]
    if options.recompute:
        chosen = {id(block) for block in blocks}
        apply_activation_checkpointing(model, check_fn=lambda module: id(module) in chosen)
    if name.endswith("compiled"):
        for block in blocks:
            block.compile()
    return model


def step_of(name: str, model: VASTDiT3, given: Inputs, options: argparse.Namespace) -> Callable[[], object]:
    """One training step: forward, backward, AdamW."""
    forward = forward_of(name, model, options)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(forward, given).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def agreement(options: argparse.Namespace, device: torch.device) -> float:
    """The largest relative difference of loss and gradients between the reference's arithmetic and javisc, in float32, with frame
    masks that are all true and with given frames. Raises SystemExit if it is above 1e-3."""
    worst = 0.0
    for given_frames in (False, True):
        small = argparse.Namespace(
            **{**vars(options), "depth": 1, "rows": 2, "given": given_frames, "recompute": False}
        )
        model = build(small, device, torch.float32)
        given = inputs(model, "tiny", small, device, torch.float32)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        results = []
        for name in ("reference", "javisc"):
            loss = loss_of(forward_of(name, model, small), given)
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            results.append([loss.detach(), *(torch.zeros(()) if grad is None else grad for grad in grads)])
        for name, want, got in zip(["loss", *named], *results, strict=True):
            error = float((want - got).norm() / want.norm().clamp(min=1e-12)) if want.any() else float(got.norm())
            if not error <= 1e-3:
                raise SystemExit(
                    f"{name} differs by {error:.1e} between the reference's arithmetic and javisc: nothing is timed"
                )
            worst = max(worst, error)
    return worst


def peak_of(name: str, bucket: str, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> int:
    """Peak bytes of a step beyond weights and optimizer state, of a contestant in this process."""
    model = build(options, device, dtype)
    return growth(step_of(name, model, inputs(model, bucket, options, device, dtype), options), device)


def work_of(model: VASTDiT3, given: Inputs, options: argparse.Namespace) -> float:
    """FLOPs of a step, on tensors that have shapes only."""
    shapes = {name: x.to(META) if isinstance(x, Tensor) else x for name, x in given.items()}
    known = {"lengths": [WORDS] * options.rows, "partial": dict.fromkeys(("video", "audio"), options.given)}
    empty = hollow(model)
    return counted(lambda: loss_of(lambda **inputs: empty(**inputs, **known), shapes)).total


def report(options: argparse.Namespace, device: torch.device) -> list[str]:
    """Measure and return the report's lines."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if options.one:
        print(json.dumps(peak_of(options.one[0], options.one[1], options, device, dtype)))
        raise SystemExit(0)
    buckets = options.buckets or (list(BUCKETS)[2:] if device.type == "cuda" else ["144p-2s", "240p-2s"])
    error = agreement(options, device)
    ceiling = matmul_ceiling(device, dtype)
    promised = peak_flops(device, str(dtype).removeprefix("torch."))
    names = [name for name in CONTESTANTS if not options.only or name in options.only]
    rows = []
    for bucket in buckets:
        probe = build(options, device, dtype)
        given = inputs(probe, bucket, options, device, dtype)
        work, config = work_of(probe, given, options), probe.config
        del probe
        steps = {name: step_of(name, build(options, device, dtype), given, options) for name in names}
        for name in list(steps) if device.type == "cuda" else ():
            try:
                steps[name]()
            except torch.OutOfMemoryError:
                del steps[name]
                rows.append([bucket, CONTESTANTS[name], "out of memory", *[""] * 5])
        times = in_turn(steps, options.repeats, device)
        for name in steps:
            seconds = times[name].median
            shares = [f"{work / seconds / limit:.0%}" if limit else "unknown" for limit in (promised, ceiling)]
            rows.append(
                [
                    bucket,
                    CONTESTANTS[name],
                    str(times[name]),
                    f"{times[names[0]].median / seconds:.2f}×" if names[0] in times else "",
                    f"{_memory(name, bucket, device):.2f}",
                    f"{work / seconds / 1e12:.3g}",
                    *shares,
                ]
            )
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
        del steps
    header = [
        "bucket",
        "step",
        "seconds (least–most)",
        "faster by",
        "peak GB",
        "TFLOP/s",
        "MFU",
        "of the product's rate",
    ]
    return [
        "# A training step of the joint DiT",
        "",
        f"`{command('train.py')}`",
        "",
        f"{machine(device)}, {str(dtype).removeprefix('torch.')}.",
        "",
        f"Width {config.hidden_size}, {config.num_heads} heads of {config.hidden_size // config.num_heads}, depth {config.depth} "
        f"(XL/2 has 28), stage 3's frozen branches, {options.rows} rows of {WORDS} words,",
        ("a quarter of the frames given" if options.given else "all frames generated")
        + (", every block computed again in the backward" if options.recompute else "")
        + ". A step is forward, backward and fused AdamW.",
        "The reference's arithmetic (benchmarks/plain_dit.py): prior keys repeated for every frame or patch, every norm and",
        "modulation for both times, transposes around attention over time. It and javisc agree in loss and every gradient to",
        f"{error:.0e} (float32, small bucket). Contestants run in turn: medians of {options.repeats} rounds. Memory is",
        "the growth above weights and optimizer state, measured alone. TFLOP/s counts the products that the model needs, keys",
        "once, nothing recomputed; MFU is that over the data sheet's rate, the last column over that of a large matrix product",
        f"timed in this run ({ceiling / 1e12:.3g} TFLOP/s).",
        "",
        *table(header, rows),
        "",
    ]


def _memory(name: str, bucket: str, device: torch.device) -> float:
    """GB at the peak of a step, from a process of its own."""
    run = [sys.executable, "-P", *sys.argv, "--one", name, bucket]
    if device.type == "cuda":
        torch.cuda.empty_cache()
    done = subprocess.run(run, check=False, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) / 1e9 if done.returncode == 0 else float("nan")
