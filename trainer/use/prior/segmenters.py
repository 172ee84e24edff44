"""Masks between annotations by a video segmenter of transformers: a fresh session for every window between two annotations.

A session keeps every frame it has seen, and of several annotated frames given at once it follows the first alone. So a window is
followed twice, forwards from the annotation before it and backwards from the one after it, and the two are blended; the
annotations themselves stay as they are. Any window can be made again alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from javisc.compiler.inputs.masklets import RECIPE
from javisc.compiler.media.transcode import transcode
from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes import decode
from javisc.trainer.use.prior.networks import PRECISIONS, digest_of, dtype_of, folder, quiet, read_json
from javisc.trainer.use.prior.objects import rle

#: By the class that config.json names.
CLASSES = ("Sam2VideoModel", "EdgeTamVideoModel")
#: What a network says where it sees nothing; a neighbour without the object says the same.
ABSENT = -10.0
#: A window is cut after so many frames, and followed from one side or the other only: sessions keep all their frames.
MOST = 256


class Segmenter:
    """A folder of transformers' with one of CLASSES. Raises UserError for anything else."""

    def __init__(self, path: str, *, precision: str = "auto") -> None:
        self.path = folder(path, "--segmenter")
        names = read_json(self.path / "config.json", "--segmenter").get("architectures") or ["?"]
        self.kind = str(names[0])
        if self.kind not in CLASSES:
            raise UserError(
                f"--segmenter {path}: config.json names the class {self.kind[:80]}; known are {', '.join(CLASSES)}"
            )
        if precision not in PRECISIONS:
            raise UserError(f"--precision {precision}: allowed are {', '.join(PRECISIONS)}")
        self.precision = precision

    def header(self) -> dict[str, Any]:
        """What shapes the masks."""
        return {"segmenter": self.kind, "precision": self.precision}

    @cached_property
    def digest(self) -> str:
        """Of all files of the folder."""
        return digest_of(self.path)

    def load(self, device: str) -> Any:
        """(model, processor, device). Raises UserError."""
        import transformers

        quiet()
        try:
            dtype = dtype_of(self.precision, device)
            model = getattr(transformers, self.kind).from_pretrained(
                self.path, dtype=dtype, local_files_only=True, use_safetensors=True
            )
            processor = transformers.Sam2VideoProcessor.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"--segmenter {self.path} cannot be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
        return model.to(device).eval(), processor, device

    def tracks(
        self, model: Any, video: Path, placed: Sequence[Mapping[int, dict[str, Any]]], scratch: Path
    ) -> Iterator[Followed]:
        """Each object's masks. placed: by object, tick → its annotation (run lengths)."""
        work = scratch / "frames"
        work.mkdir(exist_ok=True)
        clip = transcode(video, RECIPE, work)  # on the compiled clock, and read again window by window
        assert clip.mp4 is not None
        film, total = clip.mp4.read_bytes(), int(str(clip.columns["num_frames"]))
        ticks = sorted({tick for each in placed for tick in each if tick < total})
        made: list[dict[int, dict[str, Any]]] = [dict(each) for each in placed]
        for first, last in pairwise(ticks):
            if last - first > 1:
                known = [(each.get(first), each.get(last)) for each in placed]
                pictures = decode.frames(film, first, min(last - first + 1, MOST), fps=RECIPE.rate)
                for number, masks in self.window(model, pictures, known).items():
                    for at, mask in enumerate(masks, first + 1):
                        made[number].setdefault(at, rle.encode(mask))
        clip.mp4.unlink()
        for each, followed in zip(placed, made, strict=True):
            yield Followed(followed, next(iter(each.values()))["size"])

    def window(
        self, model: Any, pictures: NDArray[np.uint8], known: Sequence[tuple[Any, Any]]
    ) -> dict[int, list[rle.Mask]]:
        """By object the masks of all frames but the first and the last, which `known` (run lengths or None) tells."""
        sides = []
        for side, order in ((0, 1), (1, -1)):
            masks = {
                number: mask
                for number, pair in enumerate(known)
                if pair[side] is not None and (mask := rle.decode(pair[side])).any()
            }
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
        self, model: Any, pictures: NDArray[np.uint8], masks: Mapping[int, rle.Mask]
    ) -> dict[int, NDArray[np.float32]]:
        """By object its logits [T, h, w] when it is followed from the first picture on."""
        import torch

        network, processor, device = model
        with torch.inference_mode():
            session = processor.init_video_session(
                video=np.ascontiguousarray(pictures), inference_device=device, dtype=network.dtype
            )
            processor.add_inputs_to_inference_session(
                inference_session=session,
                frame_idx=0,
                obj_ids=list(masks),  # the processor empties the list that it is given
                input_masks=[torch.from_numpy(mask.copy()) for mask in masks.values()],
            )
            size = [session.video_height, session.video_width]
            out: dict[int, list[NDArray[np.float32]]] = {number: [] for number in masks}
            network(inference_session=session, frame_idx=0)
            for found in network.propagate_in_video_iterator(session, start_frame_idx=0):
                whole = processor.post_process_masks([found.pred_masks], original_sizes=[size], binarize=False)[0]
                for number, logits in zip(found.object_ids, whole, strict=True):
                    out[int(number)].append(logits[0].float().cpu().numpy())
        return {number: np.stack(rows) for number, rows in out.items()}


class Followed:
    """An object's masks by tick; nothing where there is none."""

    def __init__(self, masks: Mapping[int, dict[str, Any]], size: Sequence[int]) -> None:
        self.masks, self.size = masks, (size[0], size[1])

    def at(self, time: int) -> rle.Mask:
        """The mask [h, w] at a tick."""
        found = self.masks.get(time)
        return np.zeros(self.size, bool) if found is None else rle.decode(found)
