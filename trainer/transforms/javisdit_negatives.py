"""The prior's negatives: for each clip, videos and sounds that are wrong in space or wrong in time.

Everything depends on the sample's seed alone and runs where the tensors are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws as keyed
from javisc.trainer.engine.settings import setting
from javisc.trainer.transforms import javisdit_audio_negatives as audio
from javisc.trainer.transforms import javisdit_video_negatives as video
from javisc.trainer.transforms.draws import Draws, SeededDraws

VIDEO_SPATIAL = ("random_mask", "add_masklet", "mirror_reflection", "copy_paste")
VIDEO_TEMPORAL = ("temporal_shift", "video_stall")
AUDIO_SPATIAL = ("add_sound_source", "del_sound_source", "scale_volume", "change_frequency")
AUDIO_TEMPORAL = ("temporal_shift", "audio_stall", "audio_repeat", "scale_speed")


@dataclass(frozen=True)
class NegativesConfig:
    """Which augmentations are drawn from, uniformly; how many negatives of each sort; and the reference's windows or the
    corrected ones ("reference": `scale_volume` runs too far, `temporal_shift` never starts late, `del_sound_source` turns the
    sign)."""

    video_spatial: tuple[str, ...] = ("random_mask", "add_masklet")
    video_temporal: tuple[str, ...] = VIDEO_TEMPORAL
    audio_spatial: tuple[str, ...] = ("add_sound_source", "del_sound_source", "scale_volume")
    audio_temporal: tuple[str, ...] = AUDIO_TEMPORAL
    repetitions: int = setting(1, "Negatives of each sort.", least=1, most=1000)
    rule: str = setting(
        "corrected", "The reference's windows or the corrected ones.", choices=("reference", "corrected")
    )
    unpaired: float = setting(0.5, "Probability of a sound that was made from the caption.", least=0, most=1)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("video_spatial", VIDEO_SPATIAL),
            ("video_temporal", VIDEO_TEMPORAL),
            ("audio_spatial", AUDIO_SPATIAL),
            ("audio_temporal", AUDIO_TEMPORAL),
        ):
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(allowed):
                raise UserError(f"{name} is {list(chosen)}; it must hold at least one of {', '.join(allowed)}")
        if self.rule not in ("corrected", "reference"):
            raise UserError(f"rule is {self.rule!r}; allowed are corrected, reference")


@dataclass(frozen=True)
class Source:
    """What a clip's negatives are made from: `clip` [T, 3, H, W], `wave` [n] at `rate`, cut from `whole` at sample `start`;
    `name` identifies the file in pools; `unpaired` [n'] is a sound made from the caption."""

    clip: Tensor
    wave: Tensor
    rate: int
    whole: Tensor
    start: int
    name: str
    unpaired: Tensor | None = None


@dataclass(frozen=True)
class NegativeClips:
    """By aspect ("spatial", "temporal"): `video` [r, T, 3, H, W] and `audio` [r, n]."""

    video: dict[str, Tensor]
    audio: dict[str, Tensor]


def make_negatives(
    source: Source,
    seed: int,
    config: NegativesConfig,
    masklets: video.MaskletPool | None = None,
    sounds: audio.SoundPool | None = None,
) -> NegativeClips:
    """All negatives of one clip. A slot whose augmentation cannot be made takes the one the reference falls back to."""
    made: dict[str, dict[str, list[Tensor]]] = {kind: {"spatial": [], "temporal": []} for kind in ("video", "audio")}
    unpaired_left = source.unpaired is not None and len(source.unpaired) > 0
    for repetition in range(config.repetitions):
        for aspect in ("spatial", "temporal"):
            draws = _draws(seed, repetition, f"{aspect} video")
            kinds = config.video_spatial if aspect == "spatial" else config.video_temporal
            made["video"][aspect].append(_video(_pick(kinds, draws), source.clip, draws, masklets))
            draws = _draws(seed, repetition, f"{aspect} audio")
            if unpaired_left and draws.uniform("unpaired", 0, 1) < config.unpaired:
                assert source.unpaired is not None
                unpaired_left = False
                made["audio"][aspect].append(_fitted(source.unpaired.to(source.wave), len(source.wave)))
                continue
            kinds = config.audio_spatial if aspect == "spatial" else config.audio_temporal
            made["audio"][aspect].append(_audio(_pick(kinds, draws), aspect, source, draws, sounds, config.rule))
    stacked = {kind: {aspect: torch.stack(rows) for aspect, rows in by.items()} for kind, by in made.items()}
    return NegativeClips(stacked["video"], stacked["audio"])


def _draws(seed: int, repetition: int, slot: str) -> SeededDraws:
    return SeededDraws(int(keyed.bits(seed, repetition, slot)[0]))


def _pick(kinds: Sequence[str], draws: Draws) -> str:
    return kinds[draws.integer("kind", 0, len(kinds) - 1)]


def _fitted(wave: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(wave[:length], (0, max(0, length - len(wave))))


def _video(kind: str, clip: Tensor, draws: Draws, masklets: video.MaskletPool | None) -> Tensor:
    if kind == "add_masklet":
        return video.add_masklet(clip, masklets, draws)
    if kind == "mirror_reflection":
        return video.mirror(clip)
    made: dict[str, Callable[[Tensor, Draws], Tensor]] = {
        "random_mask": video.random_mask,
        "copy_paste": video.copy_paste,
        "temporal_shift": video.temporal_shift,
        "video_stall": video.video_stall,
    }
    return made[kind](clip, draws)


def _audio(kind: str, aspect: str, source: Source, draws: Draws, sounds: audio.SoundPool | None, rule: str) -> Tensor:
    wave = source.wave
    if not audio.loud_spans(wave):
        kind = "add_sound_source" if aspect == "spatial" else "temporal_shift"
    if kind == "add_sound_source":
        found = None if sounds is None else sounds.source(draws, source.name)
        if found is not None:
            return audio.add_sound(wave, *found, draws)
        kind = "scale_volume"
    if kind == "temporal_shift":
        crop = audio.other_crop(source.whole, source.start, len(wave), draws, rule=rule)
        if crop is not None:
            return crop.to(wave)
        kind = "audio_stall"
    if kind == "change_frequency":
        return audio.change_frequency(wave, draws.uniform("frequency", -1000, 1000), source.rate)
    if kind in ("audio_stall", "audio_repeat"):
        span = audio.window(wave, draws, 1 / 5, 1 / 2)
        return audio.stall(wave, span) if kind == "audio_stall" else audio.repeat(wave, span)
    span = audio.window(wave, draws, 1 / 3, max(1 / 3, 1 - 10 / max(len(wave), 1)))
    if kind == "scale_volume":
        if rule == "reference":
            span = audio.reference_volume_span(span[0], (span[1] - span[0]) / source.rate, len(wave))
        name = audio.CURVES[draws.integer("volume.curve", 0, len(audio.CURVES) - 1)]
        return audio.scale_volume(wave, span, name, draws.uniform("volume.gain", 0.5, 2))
    if kind == "scale_speed":
        return audio.change_speed(wave, span, draws.choice("speed", (0.5, 2.0)))
    return audio.remove_sound(wave, span, _covering(source, span, sounds), rule=rule)


def _covering(source: Source, span: audio.Span, sounds: audio.SoundPool | None) -> Tensor | None:
    """The crop's part of a separated track of the same file that is active throughout the window."""
    first, last = (source.start + edge for edge in span)
    for track, active in [] if sounds is None else sounds.separated(source.name):
        reaches = len(track) >= source.start + len(source.wave)
        if reaches and any(start <= first and last <= end for start, end in active):
            return track[source.start : source.start + len(source.wave)]
    return None
