"""Synchformer in `javisc score`: every segment of a clip is seen and heard once, then windows of them are joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.reader import CorruptSample, Reader
from javisc.trainer.forecast.flops import META, counted, hollow
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.use.desync import windows as preset_windows
from javisc.trainer.use.digests import digest_of
from javisc.trainer.use.kept_features import Segments, read_kept, unpacked
from javisc.trainer.use.rate_crops import together
from javisc.trainer.use.rating import Cut, Piece, rating
from javisc.trainer.use.score_clip import RATE, CropOptions, NoScore, spaced, stretches, ticks_of

#: A segment's features: picture (T,C) and sound (t,C).
Features = tuple[Tensor, Tensor]


class Rater:
    """A piece is a segment; only those that a window needs are decoded."""

    def __init__(self, model: Synchformer, transforms: SegmentTransforms, options: CropOptions) -> None:
        if options.fps != transforms.fps:
            raise UserError(
                f"--fps {options.fps}: the model's segments are of {transforms.fps} frames a second; give that"
            )
        self.model, self.transforms, self.options = model, transforms, options
        self.step = int(transforms.step * transforms.segment_frames)

    def to(self, device: torch.device) -> Rater:
        """Move the model."""
        self.model.to(device)
        self.device = device
        return self

    def plan(self, ticks: int, options: CropOptions | None = None) -> list[list[int]]:
        """The windows of a clip, as numbers of segments from its start on. Raises NoScore if it is too short.

        Evenly spaced, overlapping by half at most, the first and the last always among them where more than one is asked for.
        """
        options = options or self.options
        wanted, frames = self.transforms.segments, self.transforms.segment_frames
        segments = max((ticks - frames) // self.step + 1, 0)
        if options.preset:
            return preset_windows(options.preset, segments, wanted)
        if segments < wanted:
            needed = self.transforms.rule.span(wanted) / self.transforms.fps
            raise NoScore("too short", f"{ticks / self.transforms.fps:.2f} s, a window has {needed:.2f} s")
        starts = set(spaced(segments, wanted, options.crops))
        if options.crops > 1:
            starts |= {0, segments - wanted}
        return [list(range(start, start + wanted)) for start in sorted(starts)]

    def cut(self, row: Mapping[str, Any], reader: Reader) -> Cut:
        planned = self.plan(ticks_of(row, self.transforms, self.options.fps))
        if (content := self._kept(row, reader)) is not None and (cut := self._again(content, planned)) is not None:
            return cut
        rule, frames = self.transforms.rule, self.transforms.segment_frames
        _, size, _, hop = rule.sizes(self.options.fps, RATE)
        # A window that repeats segments is cut as far as it does not.
        span, firsts = rule.span(len(set(planned[0]))), [window[0] * self.step for window in planned]
        found = stretches(
            row, reader, self.transforms, self.options, firsts, span, silent_too=bool(self.options.preset)
        )
        pieces: list[Piece] = []
        numbers: dict[int, int] = {}
        audible = []
        for one in found:
            waves = one.wave.unfold(0, size, hop)
            for number, sound in enumerate(self.transforms.spectrogram(waves, RATE)):
                segment = one.first // self.step + number
                if segment not in numbers:
                    numbers[segment] = len(pieces)
                    pieces.append((one.video[number * self.step :][:frames], sound))
                    audible.append(bool(waves[number].any()))
        heard = {one.first // self.step for one in found}
        silent = sorted({number for window in planned for number in window} - set(numbers))
        return Cut(
            pieces,
            [[numbers[one] for one in window] for window in planned if window[0] in heard],
            segments=Segments(tuple(numbers), tuple(audible), tuple(silent)),
        )

    def _kept(self, row: Mapping[str, Any], reader: Reader) -> bytes | None:
        """What a field keeps of the row; None also where it cannot be read: it is then computed again."""
        try:
            return read_kept(row, reader)
        except CorruptSample:
            return None

    def _again(self, content: bytes, planned: Sequence[Sequence[int]]) -> Cut | None:
        """The clip from its kept features; None if they do not hold all that is planned, or are damaged."""
        config = self.model.config
        seen = (config.visual.steps, config.visual.width)
        try:
            segments, said = unpacked(content, (seen, (config.audio.grid[1], config.audio.width)))
        except CorruptSample:
            return None
        numbers = {number: at for at, number in enumerate(segments.numbers)}
        sounding = {number for number, one in zip(segments.numbers, segments.audible, strict=True) if one}
        windows = [window for window in planned if self.options.preset or sounding & set(window)]
        silent = {number for window in planned if window not in windows for number in window}
        if not silent <= set(numbers) | set(segments.silent) or not {n for window in windows for n in window} <= set(
            numbers
        ):
            return None
        if not windows:
            raise NoScore("silent")
        return Cut((), [[numbers[one] for one in window] for window in windows], said)

    def features(self) -> tuple[str, int]:
        config, transforms = self.model.config, self.transforms
        names = (
            "segment_frames",
            "step",
            "fps",
            "rate",
            "input_size",
            "mels",
            "columns",
            "pad",
            "half",
            "audio_advance_sec",
        )
        settings = [
            config.visual,
            config.audio,
            self.options.short_side,
            *(getattr(transforms, name) for name in names),
        ]
        both = torch.nn.ModuleList([self.model.vfeat_extractor, self.model.afeat_extractor])
        size = config.visual.steps * config.visual.width + config.audio.grid[1] * config.audio.width
        return digest_of(both, settings), 4 * size

    def see(self, pictures: Sequence[Tensor], sounds: Sequence[Tensor]) -> Iterable[Features]:
        vis = self.transforms.scaled(together(pictures, self.device)).unsqueeze(1)
        seen, heard = self.model.features(vis, torch.stack(list(sounds)).unsqueeze(1).to(self.device))
        return [(v[0], a[0]) for v, a in zip(seen, heard, strict=True)]

    def conclude(self, said: Sequence[Features], windows: Sequence[Sequence[int]]) -> dict[str, Any]:
        chances = []
        for window in windows:
            seen, heard = (torch.stack([said[number][side] for number in window])[None] for side in (0, 1))
            chances.append(self.model.join(seen, heard)[0].double().softmax(0).cpu())
        return rating(chances, self.transforms, all_of_them=bool(self.options.preset)) | {"crops": len(chances)}

    def cost(self, ticks: int, *, kept: CropOptions | None = None) -> tuple[int, int, float]:
        planned = self.plan(ticks)
        needed = {number for window in planned for number in window}
        if kept and needed <= {number for window in self.plan(ticks, kept) for number in window}:
            needed = set()
        segment, window = self._each
        return len(needed), len(planned), len(needed) * segment + len(planned) * window

    @cached_property
    def _each(self) -> tuple[float, float]:
        """FLOPs of a segment seen and heard, and of a window joined."""
        model, c = hollow(self.model), self.model.config
        vis = torch.empty((1, 1, c.visual.frames, 3, c.visual.image, c.visual.image), device=META)
        aud = torch.empty((1, 1, 1, c.audio.mels, c.audio.columns), device=META)
        with torch.no_grad():
            window = [x.repeat(1, self.transforms.segments, 1, 1) for x in model.features(vis, aud)]
        extracted = counted(lambda: model.features(vis, aud)[0], backward=False)
        return extracted.forward, counted(lambda: model.join(*window), backward=False).forward
