"""Masks between annotated frames without any network: the object is moved, stretched and turned, and its outline blended.

The centre of the pixels follows a cubic curve through the annotations, their spread goes from one to the next. Both neighbours
are brought to where and what the object is by then, by the affine map between their spreads, and their signed distances mixed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt, map_coordinates

from javisc.trainer.use.prior.objects.rle import Mask, decode, tight

Array = NDArray[np.float64]


#: Annotations on either side of the two neighbours that the curve is led through.
_REACH = 3
#: Neighbours whose distances are kept.
_KEPT = 3


@dataclass(frozen=True)
class Shape:
    """Centre [2] (x, y) and the symmetric root [2, 2] of the covariance of a mask's pixels."""

    centre: Array
    root: Array

    @property
    def vector(self) -> Array:
        """All six numbers."""
        return np.concatenate([self.centre, self.root.ravel()])


def shape_of(mask: Mask) -> Shape | None:
    """A mask's shape; None where nothing is visible."""
    box = tight(mask)
    if box is None:
        return None
    x, y, w, h = box
    rows, columns = np.nonzero(mask[y : y + h, x : x + w])
    points = np.stack([columns + x, rows + y]).astype(np.float64)
    spread = np.cov(points, bias=True).reshape(2, 2) + np.eye(2) / 12  # a pixel is a square, no point
    return Shape(points.mean(1), _root(spread))


def _root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 1e-6))) @ vectors.T)


def distances(mask: Mask) -> tuple[Array, tuple[int, int]]:
    """Signed distances to a mask's outline, above zero inside, on a grid [h, w] around it, and its first pixel's (x, y)."""
    box = tight(mask)
    assert box is not None
    x, y, w, h = box
    part = np.pad(mask[y : y + h, x : x + w], 2)
    inside, outside = distance_transform_edt(part), distance_transform_edt(~part)
    return np.where(part, inside - 0.5, 0.5 - outside), (x - 2, y - 2)


class Track:
    """An object's annotations, in the order of time: `times` in ticks, and masks as run lengths (all of one size).

    Any mask between two of them depends on these and on the _REACH annotations before and after them.
    """

    def __init__(self, times: Sequence[int], masks: Sequence[Any]) -> None:
        self.times, self.masks = list(times), list(masks)
        self.size = (int(masks[0]["size"][0]), int(masks[0]["size"][1]))
        self.shapes = [shape_of(decode(mask)) for mask in masks]
        self._distances: OrderedDict[int, tuple[Array, tuple[int, int]]] = OrderedDict()

    def at(self, time: int) -> Mask:
        """The mask [h, w] at a tick between the first and the last annotation; the annotation itself at its own.

        Where the object is out of sight at one of the neighbours, it is seen up to the middle.
        """
        after = min(max(bisect_right(self.times, time), 1), len(self.times) - 1)
        before = max(after - 1, 0)
        for place in (before, after):
            if self.times[place] == time:
                return decode(self.masks[place])
        part = (time - self.times[before]) / (self.times[after] - self.times[before])
        if self.shapes[before] is None or self.shapes[after] is None:
            at = before if part < 0.5 else after
            shape = self.shapes[at]
            if shape is None:
                return np.zeros(self.size, bool)
            return self._drawn([(at, shape, 1.0)], self._gone(at, shape, time), shape.root)
        return self._blended(before, after, part, time)

    def _blended(self, before: int, after: int, part: float, time: int) -> Mask:
        first, second = self.shapes[before], self.shapes[after]
        assert first is not None and second is not None
        low, high = before, after
        while low > max(before - _REACH, 0) and self.shapes[low - 1] is not None:
            low -= 1
        while high < min(after + _REACH, len(self.times) - 1) and self.shapes[high + 1] is not None:
            high += 1
        line = (1 - part) * first.vector + part * second.vector
        centre = line[:2]
        if high - low >= 2:
            centres = [shape.centre for shape in self.shapes[low : high + 1] if shape is not None]
            centre = CubicSpline(self.times[low : high + 1], np.stack(centres), bc_type="natural")(time)
        # The shape goes in a straight line: a curve may swing past zero.
        return self._drawn([(before, first, 1 - part), (after, second, part)], centre, line[2:].reshape(2, 2))

    def _gone(self, at: int, shape: Shape, time: int) -> Array:
        """Where an object that comes or goes is: it keeps the speed it had on its visible side."""
        for other in (at - 1, at + 1):
            if 0 <= other < len(self.shapes) and (beside := self.shapes[other]) is not None:
                speed = (shape.centre - beside.centre) / (self.times[at] - self.times[other])
                return np.asarray(shape.centre + speed * (time - self.times[at]))
        return shape.centre

    def _distance(self, place: int) -> tuple[Array, tuple[int, int]]:
        if place not in self._distances:
            self._distances[place] = distances(decode(self.masks[place]))
            while len(self._distances) > _KEPT:
                self._distances.popitem(last=False)
        return self._distances[place]

    def _drawn(self, parts: Sequence[tuple[int, Shape, float]], centre: Array, root: Array) -> Mask:
        """The annotations `parts` (place, shape, weight) brought to a centre and a root, and mixed."""
        height, width = self.size
        out = np.zeros(self.size, bool)
        inverse = np.linalg.inv(root)
        corners = []
        for place, shape, _ in parts:
            field, corner = self._distance(place)
            ends = [[x, y] for x in (0, field.shape[1] - 1) for y in (0, field.shape[0] - 1)]
            forward = root @ np.linalg.inv(shape.root)
            corners.append((np.asarray(ends) + corner - shape.centre) @ forward.T + centre)
        low = np.floor(np.min(np.concatenate(corners), 0)).astype(int)
        high = np.ceil(np.max(np.concatenate(corners), 0)).astype(int) + 1
        left, top = max(int(low[0]), 0), max(int(low[1]), 0)
        right, bottom = min(int(high[0]), width), min(int(high[1]), height)
        if right <= left or bottom <= top:
            return out
        xs, ys = np.meshgrid(np.arange(left, right) - centre[0], np.arange(top, bottom) - centre[1])
        points = np.stack([xs, ys]).reshape(2, -1)
        mixed = np.zeros(points.shape[1])
        for place, shape, weight in parts:
            field, corner = self._distance(place)
            back = shape.root @ inverse
            x, y = back @ points + (shape.centre - corner)[:, None]
            found = map_coordinates(field, [y, x], order=1, mode="constant", cval=-float(max(field.shape)))
            mixed += weight * found / np.sqrt(max(float(np.linalg.det(back)), 1e-6))
        out[top:bottom, left:right] = (mixed > 0).reshape(bottom - top, right - left)
        return out
