"""Masks between annotations by a video segmenter of transformers: a fresh session for every window between two annotations.

A session keeps every frame it has seen, and of several annotated frames given at once it follows the first alone. So a window is
followed twice, forwards from the annotation before it and backwards from the one after it, and the two are blended; the
annotations themselves stay as they are. Any window can be made again alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from javisc.compiler.inputs.masklets import RECIPE
from javisc.compiler.media.transcode import transcode
from javisc.trainer.data.bytes import decode
from javisc.trainer.use.prior.networks import check_precision, class_of, dtype_of, folder, transformer
from javisc.trainer.use.prior.objects import rle

Pictures = NDArray[np.uint8]
#: What follows an object that it is shown, by the class that config.json names.
CLASSES = ("Sam2VideoModel", "EdgeTamVideoModel")
#: What a network says where it sees nothing; a neighbour without the object says the same.
ABSENT = -10.0
#: Frames, and bytes of pictures, of the longest window: sessions keep all their frames. Where annotations stand farther apart,
#: what lies between is followed from the nearer one alone, and not farther than half a window.
MOST, MOST_BYTES = 256, 1_500_000_000


class Segmenter:
    """A folder of transformers' with one of CLASSES. Raises UserError for anything else."""

    def __init__(self, path: str, *, precision: str = "auto") -> None:
        self.path = folder(path, "--segmenter")
        self.kind = class_of(self.path, "--segmenter", (*CLASSES, "Sam3VideoModel"))
        self.precision = check_precision(precision)

    def header(self) -> dict[str, Any]:
        """What shapes the masks."""
        return {"segmenter": self.kind, "precision": self.precision}

    def load(self, device: str) -> Any:
        """(model, processor, device). Raises UserError."""
        dtype = dtype_of(self.precision, device)
        model = transformer(self.kind, self.path, "--segmenter", dtype=dtype, use_safetensors=True)
        # EdgeTAM's folders hold SAM 2's processor; SAM 3 has one with a tokenizer.
        name = "Sam3VideoProcessor" if self.kind == "Sam3VideoModel" else "Sam2VideoProcessor"
        return model.to(device).eval(), transformer(name, self.path, "--segmenter"), device

    def tracks(
        self, model: Any, video: Path, placed: Sequence[Mapping[int, dict[str, Any]]], scratch: Path
    ) -> Iterator[Followed]:
        """Each object's masks. placed: by object, tick → its annotation (run lengths)."""
        film = Film.of(video, scratch)
        ticks = sorted({tick for each in placed for tick in each if tick < film.total})
        made: list[dict[int, dict[str, Any]]] = [dict(each) for each in placed]
        for first, last in pairwise(ticks):
            if last - first >= film.window:
                half = film.window // 2
                for start, at, order in ((first, first, 1), (last - half + 1, last, -1)):
                    shown = seen([each.get(at) for each in placed])
                    found = self._followed(model, film.pictures(start, half)[::order], shown) if shown else {}
                    for number, logits in found.items():
                        for step in range(1, half):
                            made[number].setdefault(at + order * step, rle.encode(logits[step] > 0))
            elif last - first > 1:
                known = [(each.get(first), each.get(last)) for each in placed]
                pictures = film.pictures(first, last - first + 1)
                for number, masks in self.window(model, pictures, known).items():
                    for at, mask in enumerate(masks, first + 1):
                        made[number].setdefault(at, rle.encode(mask))
        for each, followed in zip(placed, made, strict=True):
            yield Followed(followed, next(iter(each.values()))["size"])

    def window(self, model: Any, pictures: Pictures, known: Sequence[tuple[Any, Any]]) -> dict[int, list[rle.Mask]]:
        """By object the masks of all frames but the first and the last, which `known` (run lengths or None) tells."""
        sides = []
        for side, order in ((0, 1), (1, -1)):
            masks = seen([pair[side] for pair in known])
            sides.append(self._followed(model, pictures[::order], masks) if masks else {})
        count = len(pictures)
        made = {}
        for number in sorted({*sides[0], *sides[1]}):
            ahead, back = sides[0].get(number), sides[1].get(number)
            rows = []
            for at in range(1, count - 1):
                part = at / (count - 1)
                one = ABSENT if ahead is None else ahead[at]
                other = ABSENT if back is None else back[count - 1 - at]
                rows.append(np.asarray((1 - part) * one + part * other) > 0)
            made[number] = rows
        return made

    def _followed(
        self, model: Any, pictures: Pictures, shown: Mapping[int, rle.Mask | Sequence[float]]
    ) -> dict[int, NDArray[np.float32]]:
        """By object its logits [T, h, w] when it is followed from the first picture on, where it is `shown` by a mask [h, w], in
        whose size they are, or by a box (left, top, right, bottom) of the picture."""
        import torch

        network, processor, device = model
        one = next(iter(shown.values()))
        told: dict[str, Any]
        if isinstance(one, np.ndarray):
            size = list(one.shape)
            told = {"input_masks": [torch.from_numpy(np.array(mask)) for mask in shown.values()]}
        else:
            size = list(pictures.shape[1:3])
            told = {"input_boxes": [[[float(edge) for edge in box] for box in shown.values()]]}
        with torch.inference_mode():
            session = processor.init_video_session(
                video=np.ascontiguousarray(pictures), inference_device=device, dtype=network.dtype
            )
            processor.add_inputs_to_inference_session(
                inference_session=session,
                frame_idx=0,
                obj_ids=list(shown),  # the processor empties the list that it is given
                **told,
            )
            out: dict[int, list[NDArray[np.float32]]] = {number: [] for number in shown}
            network(inference_session=session, frame_idx=0)
            for found in network.propagate_in_video_iterator(session, start_frame_idx=0):
                whole = processor.post_process_masks([found.pred_masks], original_sizes=[size], binarize=False)[0]
                for number, logits in zip(found.object_ids, whole, strict=True):
                    out[int(number)].append(logits[0].float().cpu().numpy())
        return {number: np.stack(rows) for number, rows in out.items()}


def seen(told: Sequence[Any]) -> dict[int, rle.Mask]:
    """By object its mask [h, w], for those (run lengths or None) that are to be seen."""
    return {number: mask for number, one in enumerate(told) if one is not None and (mask := rle.decode(one)).any()}


class Followed:
    """An object's masks by tick; nothing where there is none."""

    def __init__(self, masks: Mapping[int, dict[str, Any]], size: Sequence[int]) -> None:
        self.masks, self.size = masks, (size[0], size[1])

    def at(self, time: int) -> rle.Mask:
        """The mask [h, w] at a tick."""
        found = self.masks.get(time)
        return np.zeros(self.size, bool) if found is None else rle.decode(found)


@dataclass(frozen=True)
class Film:
    """A video on the compiled clock, read window by window: its bytes, pictures, and the frames of a window."""

    content: bytes
    total: int
    window: int
    rate: Fraction
    #: (height, width) of the source's own pixels, upright: what masks and crops are measured in.
    upright: tuple[int, int]

    @classmethod
    def of(cls, video: Path, scratch: Path) -> Film:
        """Compile a video. Raises Rejected."""
        from javisc.compiler.media.open import probe

        work = scratch / "frames"
        work.mkdir(exist_ok=True)
        clip = transcode(video, RECIPE, work)
        assert clip.mp4 is not None
        content = clip.mp4.read_bytes()
        clip.mp4.unlink()
        told = clip.columns
        own = probe(video)
        size = (own.width, own.height) if int(str(told.get("rotation") or 0)) % 180 else (own.height, own.width)
        bytes_each = 3 * int(str(told["height"])) * int(str(told["width"]))
        window = max(3, min(MOST, MOST_BYTES // bytes_each))
        return cls(content, int(str(told["num_frames"])), window, RECIPE.rate, size)

    def pictures(self, first: int, count: int) -> Pictures:
        """Pictures [count, h, w, 3] from the tick `first` on."""
        return decode.frames(self.content, first, count, fps=self.rate)
