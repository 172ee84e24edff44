"""Synchformer in `javisc score`: every segment of a clip is seen and heard once, then windows of them are joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.reader import Reader
from javisc.trainer.forecast.flops import META, counted, hollow
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.use.desync import windows as preset_windows
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

    def plan(self, ticks: int) -> list[list[int]]:
        """The windows of a clip, as numbers of segments from its start on. Raises NoScore if it is too short.

        Evenly spaced, overlapping by half at most, the first and the last always among them where more than one is asked for.
        """
        wanted, frames = self.transforms.segments, self.transforms.segment_frames
        segments = max((ticks - frames) // self.step + 1, 0)
        if self.options.preset:
            return preset_windows(self.options.preset, segments, wanted)
        if segments < wanted:
            needed = self.transforms.rule.span(wanted) / self.transforms.fps
            raise NoScore("too short", f"{ticks / self.transforms.fps:.2f} s, a window has {needed:.2f} s")
        starts = set(spaced(segments, wanted, self.options.crops))
        if self.options.crops > 1:
            starts |= {0, segments - wanted}
        return [list(range(start, start + wanted)) for start in sorted(starts)]

    def cut(self, row: Mapping[str, Any], reader: Reader) -> Cut:
        planned = self.plan(ticks_of(row, self.transforms, self.options.fps))
        rule, frames = self.transforms.rule, self.transforms.segment_frames
        _, size, _, hop = rule.sizes(self.options.fps, RATE)
        # A window that repeats segments is cut as far as it does not.
        span, firsts = rule.span(len(set(planned[0]))), [window[0] * self.step for window in planned]
        found = stretches(
            row, reader, self.transforms, self.options, firsts, span, silent_too=bool(self.options.preset)
        )
        pieces: list[Piece] = []
        numbers: dict[int, int] = {}
        for one in found:
            for number, sound in enumerate(self.transforms.spectrogram(one.wave.unfold(0, size, hop), RATE)):
                segment = one.first // self.step + number
                if segment not in numbers:
                    numbers[segment] = len(pieces)
                    pieces.append((one.video[number * self.step :][:frames], sound))
        heard = {one.first // self.step for one in found}
        return Cut(pieces, [[numbers[one] for one in window] for window in planned if window[0] in heard])

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

    def cost(self, ticks: int) -> tuple[int, int, float]:
        planned = self.plan(ticks)
        segments = len({number for window in planned for number in window})
        segment, window = self._each
        return segments, len(planned), segments * segment + len(planned) * window

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
