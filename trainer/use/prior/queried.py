"""Objects of any video, found by text: by SAM 3, or by Grounding DINO, whose finds SAM 2 or EdgeTAM follows.

A video is cut into windows that know nothing of each other: an object is what is followed within one. So memory has a bound, and
any window can be made again alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from javisc.compiler.media.encode import Part
from javisc.manifests.errors import UserError
from javisc.trainer.use.prior.networks import class_of, dtype_of, folder, transformer
from javisc.trainer.use.prior.objects import crops, rle
from javisc.trainer.use.prior.segmenters import Film, Pictures, Segmenter

#: Ticks of a window: five seconds.
WINDOW = 120
#: What a find of Grounding DINO must score where nothing is said (its authors' threshold for boxes), and how much two finds may
#: share before the lesser one is the same object.
SCORE, SHARED = 0.35, 0.7
#: Objects of a window that are followed, the best ones: with a score too low everything is one.
MOST_OBJECTS = 32
#: Tokens of a text that SAM 3's processor takes.
TOKENS = 32


@dataclass(frozen=True)
class Sighting:
    """An object in a window: the text that found it, and its masks by tick (run lengths, in the source's own pixels)."""

    text: str
    masks: Mapping[int, dict[str, Any]]


class Queried:
    """What finds objects by `texts`. Raises UserError for folders that do not fit together."""

    def __init__(self, segmenter: Segmenter, texts: Sequence[str], detector: str, score: float | None) -> None:
        self.segmenter, self.score = segmenter, score
        self.texts = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.split()))
        if not self.texts:
            raise UserError("--text: give some words, as --text 'a dog'")
        if score is not None and not 0 <= score <= 1:
            raise UserError(f"--score {score}: 0 to 1 is allowed")
        self.alone = segmenter.kind == "Sam3VideoModel"
        if self.alone and detector:
            raise UserError(f"--detector {detector}: {segmenter.kind} finds texts itself, leave it out")
        if not self.alone and not detector:
            raise UserError(f"--text: {segmenter.kind} finds no texts: give --detector PATH, a GroundingDino")
        self.detector = None if self.alone else folder(detector, "--detector")
        if self.detector is not None:
            class_of(self.detector, "--detector", ("GroundingDinoForObjectDetection",))

    @property
    def paths(self) -> list[Path]:
        """The folders of its networks."""
        return [self.segmenter.path, *([] if self.detector is None else [self.detector])]

    def header(self) -> dict[str, Any]:
        """What shapes the finds."""
        detector = {} if self.detector is None else {"detector": "GroundingDinoForObjectDetection"}
        return {**detector, "text": self.texts, "score": self.score, "window": WINDOW}

    def load(self, device: str) -> Any:
        """What `objects` takes. Raises UserError."""
        loaded = self.segmenter.load(device)
        if self.detector is None:
            model, processor, _ = loaded
            for text in self.texts:
                if len(processor.tokenizer(text).input_ids) > TOKENS:
                    raise UserError(f"--text {text!r}: {self.segmenter.kind} takes {TOKENS} tokens at most")
            model.max_num_objects = min(model.max_num_objects, MOST_OBJECTS)
            if self.score is not None:
                model.score_threshold_detection = model.new_det_thresh = self.score
            return loaded, None
        dtype = dtype_of(self.segmenter.precision, device)
        kind = "GroundingDinoForObjectDetection"
        found = transformer(kind, self.detector, "--detector", dtype=dtype, use_safetensors=True).to(device).eval()
        return loaded, (found, transformer("GroundingDinoProcessor", self.detector, "--detector"))

    def windows(self, model: Any, video: Path, scratch: Path) -> Iterator[list[Sighting]]:
        """The objects of each window of a video. Raises Rejected."""
        film = Film.of(video, scratch)
        for first in range(0, film.total, min(WINDOW, film.window)):
            pictures = film.pictures(first, min(WINDOW, film.window, film.total - first))
            found = []
            for text, masks in self.objects(model, pictures):
                told = {first + at: rle.encode(in_size(mask, film.upright)) for at, mask in masks.items() if mask.any()}
                if told:
                    found.append(Sighting(text, told))
            yield found

    def objects(self, model: Any, pictures: Pictures) -> list[tuple[str, dict[int, rle.Mask]]]:
        """The objects of a window [T, h, w, 3]: each with its text, and its masks [h, w] by picture."""
        loaded, detector = model
        return self._by_itself(loaded, pictures) if detector is None else self._shown(loaded, detector, pictures)

    def _by_itself(self, loaded: Any, pictures: Pictures) -> list[tuple[str, dict[int, rle.Mask]]]:
        import torch

        network, processor, device = loaded
        masks: dict[int, dict[int, rle.Mask]] = {}
        with torch.inference_mode():
            session = processor.init_video_session(
                video=np.ascontiguousarray(pictures), inference_device=device, dtype=network.dtype
            )
            processor.add_text_prompt(session, list(self.texts))
            for out in network.propagate_in_video_iterator(session):
                found = processor.postprocess_outputs(session, out)
                for number, mask in zip(found["object_ids"].tolist(), found["masks"].cpu().numpy(), strict=True):
                    masks.setdefault(number, {})[int(out.frame_idx)] = mask
        names = {number: session.prompts[session.obj_id_to_prompt_id[number]] for number in masks}
        return [(names[number], masks[number]) for number in sorted(masks)]

    def _shown(self, loaded: Any, detector: Any, pictures: Pictures) -> list[tuple[str, dict[int, rle.Mask]]]:
        """What the detector finds in the middle picture, else in the first or the last, followed to both ends."""
        last = len(pictures) - 1
        for place in dict.fromkeys((last // 2, 0, last)):
            found = self.boxes(detector, pictures[place], loaded[2])
            if found:
                break
        else:
            return []
        shown = dict(enumerate(box for _, box in found))
        made: list[tuple[str, dict[int, rle.Mask]]] = [(text, {}) for text, _ in found]
        for order in (1, -1):
            for number, logits in self.segmenter._followed(loaded, pictures[place::order], shown).items():
                made[number][1].update({place + order * at: row > 0 for at, row in enumerate(logits)})
        return made

    def boxes(self, detector: Any, picture: Pictures, device: str) -> list[tuple[str, list[float]]]:
        """What is found in a picture [h, w, 3]: texts and boxes (left, top, right, bottom), the best first, each object once."""
        import torch
        from torchvision.ops import nms

        network, processor = detector
        least = SCORE if self.score is None else self.score
        texts: list[str] = []
        boxes, scores = [], []
        with torch.inference_mode():
            for text in self.texts:  # each alone: what one is found by does not depend on the others
                told = processor(images=picture, text=f"{text.lower().rstrip('.')}.", return_tensors="pt").to(device)
                told["pixel_values"] = told["pixel_values"].to(network.dtype)
                [found] = processor.post_process_grounded_object_detection(
                    network(**told), told["input_ids"], threshold=least, target_sizes=[picture.shape[:2]]
                )
                boxes.append(found["boxes"].float().cpu())
                scores.append(found["scores"].float().cpu())
                texts += [text] * len(found["scores"])
        joined, scored = torch.cat(boxes), torch.cat(scores)
        height, width = picture.shape[:2]
        joined[:, 0::2] = joined[:, 0::2].clamp(0, width - 1)
        joined[:, 1::2] = joined[:, 1::2].clamp(0, height - 1)
        order = nms(joined, scored, SHARED).tolist()[:MOST_OBJECTS]
        seen = [(texts[at], joined[at].tolist()) for at in order]
        return [(text, box) for text, box in seen if box[2] - box[0] >= 1 and box[3] - box[1] >= 1]


def in_size(mask: rle.Mask, size: tuple[int, int]) -> rle.Mask:
    """A mask [h, w] in another size (height, width): the nearest pixels."""
    if mask.shape == size:
        return mask
    height, width = mask.shape
    return crops.cut(mask, Part(0, 0, width, height), (size[1], size[0]))
