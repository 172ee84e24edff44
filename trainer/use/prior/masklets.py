"""`javisc build prior masklets`: objects of videos, annotated or found by text, cut out at 24 frames a second with a mask
for every frame."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from javisc.compiler.inputs.found import SCAN_SCHEMA
from javisc.compiler.inputs.local import VIDEO_SUFFIXES, scan
from javisc.compiler.inputs.masklets import RECIPE, Geometry
from javisc.compiler.media.quality import SILENT_COLUMNS
from javisc.compiler.media.transcode import transcode
from javisc.compiler.plan.keys import key_of
from javisc.compiler.reasons import Rejected
from javisc.compiler.run.sources import local_source
from javisc.manifests.errors import UserError
from javisc.manifests.extras import need
from javisc.manifests.files import sha256_of
from javisc.manifests.kinds import MEMBERS
from javisc.manifests.schema import MANIFEST_SCHEMA
from javisc.manifests.urls import is_url
from javisc.trainer.data.sources.pool_names import stem
from javisc.trainer.use.prior.objects import crops, rle, sav
from javisc.trainer.use.prior.queried import Queried
from javisc.trainer.use.prior.segmenters import CLASSES, Followed, Segmenter
from javisc.trainer.use.prior.stage import PLACE, Made, Part, Weighted

ANNOTATIONS = ("first", "manual", "auto", "both")
SCHEMA = pl.Schema(
    {**MANIFEST_SCHEMA, **{name: kind for m in MEMBERS if m.extension == "mkv" for name, kind in m.columns.items()}}
)
#: A masklet of fewer frames is no object.
FEWEST = 5
#: Bytes of masks that one record may hold.
MAX_RECORD = 15 << 20


class Masks(Protocol):
    """What knows an object's mask at every tick between its first and its last annotation."""

    def at(self, time: int) -> rle.Mask:
        """The mask [h, w]."""


@dataclass(frozen=True)
class Found:
    """An object on the compiled clock: masks (run lengths, None out of sight) and boxes from tick `first` on; annotated ticks."""

    first: int
    masks: list[dict[str, Any] | None]
    boxes: list[crops.Box | None]
    annotated: list[int]


class Masklets(Weighted):
    """The stage. `annotated`: the files to read, "first" being manual ones and, without, automatic ones. Between annotations
    masks are interpolated, or made by a segmenter from the folder `segmenter`. `text`: what to look for instead, in any video, by
    the segmenter alone or with a `detector`; see `queried`."""

    name = "masklets"
    schema = SCHEMA
    recipe = RECIPE.to_json()

    def __init__(
        self,
        raw: Sequence[str],
        *,
        annotated: str = "first",
        segmenter: str = "",
        text: Sequence[str] = (),
        detector: str = "",
        score: float | None = None,
        precision: str = "auto",
    ) -> None:
        need("build prior masklets", "scipy")
        if annotated not in ANNOTATIONS:
            raise UserError(f"--annotations {annotated}: allowed are {', '.join(ANNOTATIONS)}")
        if remote := next((path for path in raw if is_url(str(path))), None):
            raise UserError(
                f"{remote}: videos are read where they lie, several times over: copy them to a disk of this machine"
            )
        self.raw, self.annotated = list(raw), annotated
        self.network: Segmenter | None = None
        self.queried: Queried | None = None
        self.networks: list[Path] = []
        if segmenter:
            self.network = Segmenter(segmenter, precision=precision)
            self.networks = [self.network.path]
            if text:
                self.queried = Queried(self.network, text, detector, score)
                self.networks = self.queried.paths
            elif self.network.kind not in CLASSES:
                raise UserError(f"--segmenter {segmenter}: {self.network.kind} finds objects by text: give --text")
        elif text:
            raise UserError("--text goes with --segmenter: give both, or leave it out")

    def header(self) -> dict[str, Any]:
        """What made the masks."""
        made = {"baseline": "interpolation"} if self.network is None else self.network.header()
        told = {"annotations": self.annotated} if self.queried is None else self.queried.header()
        return {**made, **told, "recipe": self.recipe}

    def items(self, scratch: Path) -> Iterator[dict[str, Any]]:
        """The videos, by size and time of change, each with the digests of its annotations."""
        found = pl.concat([pl.DataFrame(schema=SCAN_SCHEMA), *scan(self.raw, VIDEO_SUFFIXES)])
        rows = found.sort("relpath", "path").iter_rows(named=True)
        seen: dict[str, int] = {}
        items = []
        for row in rows:
            twin = seen[row["relpath"]] = seen.get(row["relpath"], -1) + 1
            name = stem(row["relpath"]) + (f"__{twin}" if twin else "")
            item = {"key": key_of(row["relpath"], twin=twin), "relpath": row["relpath"], "id": row["id"], "name": name}
            item |= {"source_bytes": row["source_bytes"], "path": row["path"]}
            place: dict[str, Any] = {"path": row["path"], "files": []}
            if row["refused"] is not None:
                item["refused"] = [row["refused"], row["refused_message"] or ""]
            else:
                place["files"] = [] if self.queried else self._files(row["path"])
                item["annotations"] = [[kind, sha256_of(Path(path))] for kind, path in place["files"]]
                item["changed"] = Path(row["path"]).stat().st_mtime_ns
            items.append(item | {PLACE: place})
        yield from sorted(items, key=lambda item: str(item["key"]))

    def _files(self, path: str) -> list[tuple[str, str]]:
        found = sav.beside(path, self._kinds())
        return found[:1] if self.annotated == "first" else found

    def _kinds(self) -> tuple[str, ...]:
        return (self.annotated,) if self.annotated in ("manual", "auto") else ("manual", "auto")

    def load(self, device: str) -> Any:
        """The segmenter on the device."""
        finder = self.queried or self.network
        return None if finder is None else finder.load(device)

    def work(self, part: Part, model: Any, scratch: Path) -> Made:
        """The masklets of each video of the part; a video without any is refused."""
        made = Made()
        for item in part.items:
            before = len(made.samples)
            try:
                if "refused" in item:
                    raise Rejected(*item["refused"])
                if not self.queried and not item[PLACE]["files"]:
                    names = " or ".join(f"_{kind}.json" for kind in self._kinds())
                    raise Rejected("filtered", f"no {names} beside it (--text needs none)")
                # Where its disk is away, the work ends instead: nothing is held against the video.
                with local_source(item[PLACE]["path"], None, scratch) as video:
                    self._cut_out(made, item, model, video, scratch)
                if len(made.samples) == before:
                    raise Rejected("too_short", f"no object is seen for {FEWEST} frames")
            except Rejected as error:
                del made.samples[before:]
                made.refuse(item, error.reason, error.message)
            except OSError as error:
                del made.samples[before:]
                made.refuse(item, "unreadable", str(error))
        return made

    def _cut_out(self, made: Made, item: Mapping[str, Any], model: Any, video: Path, scratch: Path) -> None:
        if self.queried is not None:
            self._look_for(made, item, model, video, scratch)
            return
        objects = []
        for kind, path in item[PLACE]["files"]:
            with Path(path).open("rb") as stream:
                raw = stream.read(sav.MAX_BYTES + 1)
            if len(raw) > sav.MAX_BYTES:
                raise Rejected("too_large", f"its {kind} annotation has more than {sav.MAX_BYTES} bytes")
            objects += sav.read(kind, raw)
        times = sav.times_of(video)
        digest = sha256_of(video)
        wanted = sav.kept(objects)
        tracks = self._tracks(video, wanted, times, model, scratch)
        for number, (track, placed) in enumerate(tracks):
            found = along(track, placed)
            if found is not None:
                made.samples.append(self._sample(item, number, found, video, digest, scratch))

    def _look_for(self, made: Made, item: Mapping[str, Any], model: Any, video: Path, scratch: Path) -> None:
        """The objects that the texts find, window by window, those that the rules keep."""
        assert self.queried is not None
        digest, number, why = sha256_of(video), 0, Rejected("filtered", "no text finds anything in it")
        for sightings in self.queried.windows(model, video, scratch):
            objects = [
                sav.Annotated(each.text, place, sorted(each.masks), [each.masks[tick] for tick in sorted(each.masks)])
                for place, each in enumerate(sightings)
            ]
            try:
                wanted = sav.kept(objects) if objects else []
            except Rejected as error:
                why = error
                continue
            for each in wanted:
                found = along(
                    Followed(dict(zip(each.frames, each.masks, strict=True)), each.masks[0]["size"]), each.frames
                )
                if found is not None:
                    row, members = self._sample(item, number, replace(found, annotated=[]), video, digest, scratch)
                    made.samples.append((row | {"text": each.kind, "texts": [each.kind]}, members))
                    number += 1
                else:
                    why = Rejected("too_short", f"no object is seen for {FEWEST} frames")
        if not number:
            raise why

    def _tracks(
        self, video: Path, wanted: Sequence[sav.Annotated], times: Sequence[Fraction], model: Any, scratch: Path
    ) -> Iterator[tuple[Masks, list[int]]]:
        """Each object's masks, and its annotated ticks. Annotations past the video's end are none."""
        placed = [by_tick for each in wanted if (by_tick := sav.placed(each, times, RECIPE.rate))]
        if self.network is None:
            from javisc.trainer.use.prior.objects.between import Track

            for by_tick in placed:
                yield Track(list(by_tick), list(by_tick.values())), list(by_tick)
        else:
            for by_tick, track in zip(placed, self.network.tracks(model, video, placed, scratch), strict=True):
                yield track, list(by_tick)

    def _sample(
        self, item: Mapping[str, Any], number: int, found: Found, video: Path, digest: str, scratch: Path
    ) -> tuple[dict[str, Any], dict[str, bytes | Path]]:
        folder = scratch / f"{item['key']}-{number}"
        folder.mkdir()
        size = next(mask["size"] for mask in found.masks if mask is not None)
        parts = crops.boxes_of(found.boxes, (size[0], size[1]))
        side = crops.short_side(parts)
        last = found.first + len(parts)

        def part(tick: int, width: int, height: int) -> Any:
            if [height, width] != size:
                raise Rejected(
                    "filtered", f"its masks are of {size[1]}x{size[0]} pixels, its pictures of {width}x{height}"
                )
            return parts[min(max(tick - found.first, 0), len(parts) - 1)]

        rate = RECIPE.rate
        window = (float(found.first / rate), float(last / rate))
        clip = transcode(video, RECIPE.replace(short_side=side), folder, window=window, crop=part)
        assert clip.mp4 is not None
        count = int(str(clip.columns["num_frames"]))  # the last annotation may stand where the film has ended
        wide_high = int(str(clip.columns["width"])), int(str(clip.columns["height"]))
        masks, boxes = (
            found.masks[:count],
            [part if box else None for part, box in zip(parts, found.boxes, strict=True)][:count],
        )
        blank = {"size": size, "counts": [size[0] * size[1]]}
        film = crops.lossless(
            (crops.cut(rle.decode(mask or blank), box, wide_high) for mask, box in zip(masks, parts, strict=False)),
            rate,
        )
        name = f"{item['name']}_masklet_{number:03d}"
        row: dict[str, Any] = {column: clip.columns.get(column) for column in MANIFEST_SCHEMA}
        row |= {
            "key": f"{item['key']}_{number:03d}",
            "id": name.rpartition("/")[2],
            "relpath": f"{name}.mp4",
            "path": item["path"],
        }
        row |= {"source_sha256": digest, "source_bytes": item["source_bytes"], "group": digest}
        row |= {
            "num_samples": 0,
            "channels": 0,
            "audio_path": None,
            **SILENT_COLUMNS,
            "clip_start": window[0],
            "clip_end": float((found.first + count) / rate),
        }
        placed = [
            None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in boxes
        ]
        geometry = Geometry(size[0], size[1], tuple(placed))
        row["label"] = geometry.to_json()
        row["masks"] = {
            "size": size,
            "counts": [None if mask is None else mask["counts"] for mask in masks],
            "annotated": [tick - found.first for tick in found.annotated if found.first <= tick < found.first + count],
            "first_tick": found.first,
        }
        if len(json.dumps(row["masks"])) > MAX_RECORD:
            raise Rejected("too_large", f"the masks of {name} take more than {MAX_RECORD} bytes")
        return row, {"mp4": clip.mp4, "mkv": film}


def along(track: Masks, annotated: Sequence[int]) -> Found | None:
    """An object's masks at every tick from where it is first seen to where it is last seen; None if that is too short."""
    masks: list[dict[str, Any] | None] = []
    boxes: list[crops.Box | None] = []
    for tick in range(annotated[0], annotated[-1] + 1):
        mask = track.at(tick)
        boxes.append(rle.tight(mask))
        masks.append(None if boxes[-1] is None else rle.encode(mask))
    seen = [place for place, box in enumerate(boxes) if box is not None]
    if not seen or seen[-1] - seen[0] + 1 < FEWEST:
        return None
    kept = slice(seen[0], seen[-1] + 1)
    return Found(annotated[0] + seen[0], masks[kept], boxes[kept], list(annotated))
