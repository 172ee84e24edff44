"""Renditions: smaller pictures beside a clip's own, on the same grid, scaled by area and encoded as a recipe of theirs says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from av.filter import Graph
from av.video.frame import VideoFrame

from javisc.compiler.media.clip import Clip
from javisc.compiler.media.encode import SCALER, Encoder, make_graph
from javisc.compiler.recipe import Recipe

#: How pictures may be scaled down: by area each pixel of the rendition is the mean of those it covers, as batches are measured.
SCALERS = {"area": SCALER.replace("bicubic", "area"), "bicubic": SCALER}


def size_of(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) of a rendition of such pictures: the longer side is the even number nearest to its share.

    Cut towards zero, 480p of 16:9 were 852 wide: two pixels less than JavisDiT's bucket of that name, which could not use it.
    """
    short, long = min(width, height), max(width, height)
    even = (long * short_side + short) // (2 * short) * 2  # halfway: the larger
    return (even, short_side) if width >= height else (short_side, even)


class Rendition:
    """The file of one rendition: takes a clip's converted frames, one a tick; has none where they are as small already."""

    def __init__(self, path: Path, recipe: Recipe, scaler: str = "area") -> None:
        self.path, self.recipe, self.scaler = path, recipe, scaler
        self.encoder: Encoder | None = None
        self._graph: Graph | None = None
        self._last: tuple[VideoFrame, VideoFrame] | None = None
        self.size: tuple[int, int] | None = None
        self.larger = True

    def add(self, frame: VideoFrame) -> None:
        """Append a frame as the next tick; the same one again is not scaled again. Raises av's errors, ValueError."""
        assert self.recipe.short_side is not None
        if self.encoder is None:
            self.larger = min(frame.width, frame.height) > self.recipe.short_side
            if not self.larger:
                return
            wide, high = size_of(frame.width, frame.height, self.recipe.short_side)
            self.size = (high, wide)
            self._graph = make_graph(frame, [f"scale={wide}:{high}:{SCALERS[self.scaler]}"])
            self.encoder = Encoder(self.path, self.recipe, wide, high)
        if self._last is None or self._last[0] is not frame:
            assert self._graph is not None
            self._graph.vpush(frame)
            self._last = (frame, self._graph.vpull())
        self.encoder.add(self._last[1])

    def close(self) -> None:
        """Finish the file."""
        if self.encoder is not None:
            self.encoder.close()
            self.encoder = None

    def abandon(self) -> None:
        """Close without caring for the content."""
        if self.encoder is not None:
            self.encoder.abandon()


def renditions_in(folder: Path, recipes: Sequence[Recipe]) -> list[Rendition]:
    """Renditions to be written into a folder, each under its recipe's name."""
    return [Rendition(folder / f"clip.{recipe.name}.mp4", recipe) for recipe in recipes]


def files_of(renditions: Sequence[Rendition]) -> dict[str, Path]:
    """What a clip's renditions left, as members of a kind of their own: r240.mp4."""
    return {f"{one.recipe.name}.mp4": one.path for one in renditions if one.size is not None}


def sizes_of(renditions: Sequence[Rendition]) -> dict[str, list[int]]:
    """(height, width) of each rendition that has pictures, by its recipe's name."""
    return {one.recipe.name: list(one.size) for one in renditions if one.size is not None}


def pictures_only(
    source: Path,
    recipe: Recipe,
    scratch: Path,
    *,
    window: tuple[float, float] | None = None,
    renditions: Sequence[Recipe] = (),
) -> Clip:
    """The renditions of a source that was compiled before, with the bytes that they have where they are made with the clip.

    No sound is heard and no clip encoded. Raises `Rejected`.
    """
    from javisc.compiler.media.transcode import transcode  # which makes renditions of this file's kind

    return transcode(source, recipe, scratch, window=window, renditions=renditions, whole=False)
