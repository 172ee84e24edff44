"""Where an object is cut out: a box of one shape for all its frames, so that its proportions are kept, and the mask within."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from javisc.compiler.media.encode import Part, target_size
from javisc.compiler.media.orientation import Orientation
from javisc.trainer.use.prior.objects.rle import Mask

#: Boxes are this much larger than what they hold, and crops have at most this many pixels a side.
MARGIN, MOST = 1.1, 256
Box = tuple[int, int, int, int]


def boxes_of(tight: Sequence[Box | None], size: tuple[int, int]) -> list[Part]:
    """A box for every frame from the boxes around the object (x, y, w, h): MARGIN larger, all of one shape, inside the picture
    `size` (height, width), of even sides. Where nothing is seen, the box before stays."""
    height, width = size[0] // 2 * 2, size[1] // 2 * 2
    seen = [box for box in tight if box is not None]
    wide = min(max(box[2] for box in seen) * MARGIN, width)
    high = min(max(box[3] for box in seen) * MARGIN, height)
    made: list[Part] = []
    for box in tight:
        if box is None:
            made.append(made[-1] if made else _placed(seen[0], wide, high, width, height))
        else:
            made.append(_placed(box, wide, high, width, height))
    return made


def _placed(box: Box, wide: float, high: float, width: int, height: int) -> Part:
    x, y, w, h = box
    scale = min(1.0, max(w * MARGIN / wide, h * MARGIN / high))
    own_wide = min(max(2, 2 * round(wide * scale / 2)), width)
    own_high = min(max(2, 2 * round(high * scale / 2)), height)
    left = min(max(round(x + w / 2 - own_wide / 2), 0), width - own_wide)
    top = min(max(round(y + h / 2 - own_high / 2), 0), height - own_high)
    return Part(left, top, own_wide, own_high)


def short_side(boxes: Sequence[Part]) -> int:
    """The short side of the crops, even and 16 at least: the largest box's own size, or what makes its long side MOST."""
    largest = max(boxes, key=lambda box: (box.width * box.height, box))
    side = max(16, min(largest.width, largest.height) * min(1.0, MOST / max(largest.width, largest.height)) // 2 * 2)
    while side > 16 and max(crop_size(boxes[0], int(side))) > MOST:
        side -= 2
    return int(side)


def crop_size(first: Part, side: int) -> tuple[int, int]:
    """(width, height) of the crops when the first box is `first`."""
    _, _, wide, high = target_size(first.width, first.height, Fraction(1), Orientation(), side)
    return wide, high


def cut(mask: Mask, box: Part, size: tuple[int, int]) -> Mask:
    """The mask [h, w] of a crop of `size` (width, height): the nearest pixels of the picture's mask inside the box."""
    wide, high = size
    rows = box.top + ((np.arange(high) + 0.5) * box.height / high).astype(int)
    columns = box.left + ((np.arange(wide) + 0.5) * box.width / wide).astype(int)
    return mask[np.ix_(rows, columns)]


def lossless(masks: Iterable[Mask], rate: Fraction) -> bytes:
    """Masks [h, w] as a film that gives them back to the last pixel: FFV1 in Matroska, grey, white where the object is."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = None
        for number, mask in enumerate(masks):
            if stream is None:
                stream = container.add_stream("ffv1", rate=rate, options={"level": "3", "g": "1", "slices": "4"})
                stream.height, stream.width, stream.pix_fmt = *mask.shape, "gray"
                stream.codec_context.thread_count = 1
                stream.codec_context.flags |= 1 << 23  # bitexact
            frame = av.VideoFrame.from_ndarray(white(mask), format="gray")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode(None))
    return out.getvalue()


def white(mask: Mask) -> NDArray[np.uint8]:
    """A mask as a picture [h, w]: 255 where it is true."""
    return np.ascontiguousarray(mask).astype(np.uint8) * 255
