"""What a member of masks must be: FFV1 without loss, black and white, a picture for each of the clip's."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import av.error
import numpy as np


def mask_defects(content: bytes, row: dict[str, Any], recipe: object = None) -> Iterator[str]:
    """The defects of a KEY.mkv: coding, size and number of its pictures, and any pixel that is neither black nor white."""
    try:
        with av.open(io.BytesIO(content), "r", format="matroska") as container:
            if len(container.streams) != 1 or not container.streams.video:
                yield f"{len(container.streams)} streams; one of masks is expected"
                return
            stream = container.streams.video[0]
            found = (stream.codec_context.name, stream.codec_context.width, stream.codec_context.height)
            if found != ("ffv1", row["width"], row["height"]):
                yield f"is {found}, ('ffv1', {row['width']}, {row['height']}) is expected"
                return
            stream.codec_context.thread_count = 1
            count = 0
            for frame in container.decode(stream):
                picture = frame.to_ndarray()
                if frame.format.name != "gray" or not np.isin(picture, (0, 255)).all():
                    yield f"frame {count} is not black and white"
                    return
                count += 1
            if count != row["num_frames"]:
                yield f"{count} frames, the clip has {row['num_frames']}"
    except (av.error.FFmpegError, OSError, ValueError) as error:
        yield f"does not decode: {error}"
