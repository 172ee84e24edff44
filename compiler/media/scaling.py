"""swscale on the thread that calls it: pictures in another size or format."""

from __future__ import annotations

from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

#: PyAV 17 and later let swscale start a thread for every core unless told otherwise; before, it had none.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


class Scaler:
    """`VideoFrame.reformat` for one frame after another: with one thread, and one table of filters for frames that are alike.

    A frame's own `reformat` and `to_ndarray(format=…)` start as many threads as there are cores, and end them, for every frame;
    and every process of a machine has a core's share of it already. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._scaler = VideoReformatter()

    def __call__(self, frame: VideoFrame, **wanted: Any) -> VideoFrame:
        """The frame as `wanted` says, in the words of `VideoFrame.reformat`; the same bytes. Raises av's errors, ValueError."""
        return self._scaler.reformat(frame, **wanted, **_ONE_THREAD)
