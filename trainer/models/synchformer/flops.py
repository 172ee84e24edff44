"""Floating-point operations of Synchformer, by its sizes: products of matrices and convolutions, 2 per multiply-add.

Letters: T time steps, N patches of a step, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig


def _layer(tokens: int, width: int, hidden: int) -> float:
    """A transformer's layer: four projections of attention, its two products, and the MLP."""
    return 2.0 * tokens * (4 * width**2 + 2 * width * hidden) + 4.0 * tokens**2 * width


def visual_flops(config: VisualConfig) -> float:
    """One segment's pictures."""
    width, steps, places = config.width, config.steps, (config.image // config.patch) ** 2
    patches, tokens = steps * places, 1 + steps * places
    embedded = 2.0 * patches * 3 * config.tubelet * config.patch**2 * width
    # Both attentions: the class token against all, every patch against its group and the class token.
    pairs = 2 * tokens + patches * (steps + 1) + patches * (places + 1)
    block = 2.0 * tokens * (8 * width**2 + 8 * width**2) + 4.0 * pairs * width
    read = steps * _layer(places + 1, width, 4 * width) if config.aggregation == "transformer" else 0.0
    return embedded + config.depth * block + read


def audio_flops(config: AudioConfig) -> float:
    """One segment's spectrogram."""
    bands, steps = config.grid
    layers = config.depth * _layer(2 + bands * steps, config.width, config.intermediate)
    read = steps * _layer(bands + 1, config.width, config.intermediate) if config.aggregation == "transformer" else 0.0
    return 2.0 * bands * steps * 256 * config.width + layers + read


def join_flops(config: SynchformerConfig) -> tuple[float, float, float]:
    """One window: the projection of its pictures, that of its sounds, and the transformer over both."""
    join: JoinConfig = config.transformer
    seen = 2.0 * config.segments * config.visual.steps * config.visual.width * join.width
    heard = 2.0 * config.segments * config.audio.grid[1] * config.audio.width * join.width
    classes = join.classes if join.head == "offset" else 2
    return seen, heard, join.n_layer * _layer(join.rows, join.width, 4 * join.width) + 2.0 * join.width * classes


@dataclass(frozen=True)
class ClipCost:
    """What scoring a clip costs: `segments` seen and heard once, `windows` of them joined; `total` in FLOP."""

    segments: int
    windows: int
    total: float


def clip_cost(config: SynchformerConfig, segments: int, windows: int) -> ClipCost:
    """The cost of a clip of so many segments and windows."""
    each = visual_flops(config.visual) + audio_flops(config.audio)
    return ClipCost(segments, windows, segments * each + windows * sum(join_flops(config)))


def step_flops(config: SynchformerConfig, clips: int, sounds: int, segments: int) -> float:
    """A training step: what rests is computed once, what learns three times (forward, and twice as much backward)."""
    extractors = clips * segments * visual_flops(config.visual) + sounds * segments * audio_flops(config.audio)
    seen, heard, joined = join_flops(config)
    upper = clips * seen + sounds * (heard + joined)
    return (3 if config.train_extractors else 1) * extractors + 3 * upper
