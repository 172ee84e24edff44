"""Synchformer's transforms in their order, on SparseSync's windows: what is cut into segments, and what happens to each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import setting
from javisc.trainer.transforms import sync_audio
from javisc.trainer.transforms.draws import Draws
from javisc.trainer.transforms.segment_mel import PADS, normalised_log_mel
from javisc.trainer.transforms.segments import SegmentRule
from javisc.trainer.transforms.sync_chain import FixedOffset, SyncTransforms, augmented, centred
from javisc.trainer.transforms.sync_window import Lengths, Window

TARGETS = ("offset", "synchronizability")


@dataclass
class SegmentTransforms(SyncTransforms):
    """The settings of Synchformer's chains; defaults are those of the second stage.

    `segments` of `segment_frames` frames, `step` of a segment apart. With `do_offset` they are cut from a crop of `crop_len_sec`,
    without from the whole clip, with draws of their own for each (the first stage). `target` synchronizability draws clips whose
    sound is of another moment altogether, half of the time (the third stage). `half` rounds pictures to half precision, in
    which the published weights were trained. `pad`: see `segment_mel`.
    """

    segments: int = setting(14, "Segments of a window.", least=1)
    segment_frames: int = setting(16, "Frames of a segment.", least=1)
    step: float = setting(0.5, "From one segment's start to the next one's, as a part of a segment.", above=0, most=1)
    fps: int = setting(25, "Frames a second of the datasets.", least=1)
    rate: int = setting(16000, "Samples a second of the datasets.", least=1000)
    target: str = setting("offset", "What is to be told.", choices=TARGETS)
    half: bool = setting(True, "Round pictures to half precision, as published weights saw them.")
    mels: int = setting(128, "Bands of the spectrogram.", least=16)
    columns: int = setting(66, "Columns of the spectrogram.", least=16)
    pad: str = setting("official", "What fills a short spectrogram.", choices=PADS)
    grid_starts: bool = setting(
        False,
        "Take the centre of training pictures, at whole steps from the clip's start, so that their features can be kept.",
    )

    def check(self) -> None:
        """Raise UserError for settings that do not go together."""
        super().check()
        if int(self.step * self.segment_frames) < 1:
            raise UserError(
                f"transforms.step={self.step}: of {self.segment_frames} frames that is none; make it larger"
            )
        if self.do_offset and self.crop_len_sec + 1e-9 < self.covered_sec:
            raise UserError(
                f"transforms.crop_len_sec={self.crop_len_sec}: {self.segments} segments cover {self.covered_sec} s, "
                "give at least that"
            )

    @property
    def rule(self) -> SegmentRule:
        """Where the segments lie."""
        return SegmentRule(self.segment_frames, self.step, self.segments)

    @property
    def covered_sec(self) -> float:
        """Seconds that the segments cover."""
        return self.rule.span(self.segments) / self.fps

    @property
    def room_sec(self) -> float:
        if not self.do_offset:
            return self.covered_sec
        return 2 * self.crop_len_sec if self.target == "synchronizability" else super().room_sec

    @property
    def window_sec(self) -> float:
        return self.covered_sec

    @property
    def whole_fps(self) -> int | None:
        return self.fps

    @property
    def whole_rate(self) -> int | None:
        return self.rate

    @property
    def asks(self) -> str:
        return self.target

    def label(self, window: Window) -> int | None:
        return window.sync_target if self.target == "synchronizability" else window.offset_target

    def window(self, clip: Lengths, draws: Draws, *, train: bool, fixed: FixedOffset | None = None) -> Window:
        """The window of the crop's segments alone: a crop is longer than what its segments cover."""
        if not self.do_offset:
            cut = self.rule.cut(clip, draws if train else None, self.audio_jitter_sec)
            return Window(cut.v_starts[0], cut.covered[0], cut.a_starts[0], cut.covered[1])
        rule = self.crop_rule(train=train)
        if fixed is not None:
            crop = rule.fixed(clip, fixed.offset_sec, fixed.v_start_sec)
            crop = replace(crop, sync_target=int(abs(fixed.offset_sec) <= self.max_off_sec))
        elif self.target == "synchronizability":
            crop = rule.synchronizable(clip, draws)
        else:
            crop = rule.random(clip, draws)
        return self._narrowed([crop], clip, draws if train else None)[0]

    def several(self, clip: Lengths, draws: Draws, count: int) -> list[Window]:
        if self.target == "synchronizability" or not self.do_offset:
            raise UserError("data.offsets_per_clip above 1 is for training of offsets alone: set it to 1")
        return self._narrowed(self.crop_rule(train=True).several(clip, draws, count), clip, draws)

    def _narrowed(self, crops: list[Window], clip: Lengths, draws: Draws | None) -> list[Window]:
        first = crops[0]
        cut = self.rule.cut(Lengths(first.v_len, first.a_len, clip.fps, clip.rate), draws)
        frames, samples = cut.covered
        v_moved, a_moved = cut.v_starts[0], cut.a_starts[0]
        if draws is not None and self.grid_starts:
            back = self._back(first.v_first + v_moved, min(crop.a_first for crop in crops) + a_moved, clip)
            v_moved, a_moved = v_moved - back, a_moved - back * int(clip.rate) // int(clip.fps)
        return [
            replace(crop, v_first=crop.v_first + v_moved, v_len=frames, a_first=crop.a_first + a_moved, a_len=samples)
            for crop in crops
        ]

    def _back(self, frame: int, sample: int, clip: Lengths) -> int:
        """By how many frames both streams start earlier so that the picture's segments lie on the clip's own grid.

        0 where the sound has no room for it: that window then lies where it was drawn.
        """
        back = frame % int(self.step * self.segment_frames)
        return back if back * int(clip.rate) // int(clip.fps) <= sample else 0

    def cropped(self, video: Tensor, draws: Draws, *, train: bool) -> Tensor:
        """uint8 (T,3,H,W) of the window → uint8 (S,frames,3,side,side)."""
        starts = range(0, len(video) - self.segment_frames + 1, int(self.step * self.segment_frames))
        if not train or self.grid_starts:
            video = centred(self, video)
        elif self.do_offset:
            video = augmented(self, video, draws)
        parts = [video[start : start + self.segment_frames] for start in starts]
        if train and not self.do_offset:
            # The crop is the clip's, what follows is drawn for every segment.
            parts = [
                augmented(self, part, _Renamed(draws, f"segment{number}_", ("upscale", "crop_top", "crop_left")))
                for number, part in enumerate(parts)
            ]
        return torch.stack(parts)

    def normalised(self, cropped: Tensor, *, train: bool) -> Tensor:
        """uint8 → float32 in [-1, 1]."""
        # The first stage looked at its held-out clips in full precision.
        return self.scaled(cropped, half=self.half and (train or self.do_offset))

    def scaled(self, video: Tensor, half: bool | None = None) -> Tensor:
        """uint8 → [-1, 1], rounded to half precision on the way if `half`, by default the setting."""
        if self.half if half is None else half:
            return (video.half().div_(255).sub_(0.5).div_(0.5)).float()
        return (video.float() / 255 - 0.5) / 0.5

    def sounds(self, wave: Tensor, rate: int, draws: Draws, *, train: bool) -> Tensor:
        """(n,) of the window → (S,1,mels,columns)."""
        _, size, _, step = self.rule.sizes(self.fps, rate)
        if train and self.do_offset:
            wave = sync_audio.augment(wave, rate, self.p_audio_aug, draws)
        parts = wave.unfold(0, size, step)
        if train and not self.do_offset:
            parts = torch.stack(
                [
                    sync_audio.augment(part, rate, self.p_audio_aug, _Renamed(draws, f"segment{number}_"))
                    for number, part in enumerate(parts)
                ]
            )
        return self.spectrogram(parts, rate)

    def spectrogram(self, waves: Tensor, rate: int) -> Tensor:
        """(S,n) → (S,1,mels,columns)."""
        return normalised_log_mel(waves, rate, self.mels, self.columns, self.pad).unsqueeze(1)


class _Renamed:
    """Draws under names of one segment, except those that all segments share."""

    def __init__(self, draws: Draws, prefix: str, shared: tuple[str, ...] = ()) -> None:
        self.draws, self.prefix, self.shared = draws, prefix, shared

    def _name(self, name: str) -> str:
        return name if name in self.shared else self.prefix + name

    def uniform(self, name: str, low: float, high: float) -> float:
        return self.draws.uniform(self._name(name), low, high)

    def integer(self, name: str, low: int, high: int) -> int:
        return self.draws.integer(self._name(name), low, high)

    def choice(self, name: str, values: object) -> float:
        return self.draws.choice(self._name(name), values)  # type: ignore[arg-type]

    def order(self, name: str, length: int) -> list[int]:
        return self.draws.order(self._name(name), length)

    def normal(self, name: str, shape: object) -> Tensor:
        return self.draws.normal(self._name(name), shape)  # type: ignore[arg-type]
