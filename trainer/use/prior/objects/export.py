"""A pool of masklets as JavisDiT's own files: content, mask and geometry of each, and the list that its loader looks for."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from javisc.compiler.inputs.masklets import read_geometry
from javisc.compiler.media.encode import MP4_OPTIONS
from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.manifests.io import Dataset
from javisc.manifests.members import MemberReader
from javisc.trainer.data.bytes import decode

#: The folder of the crops; the list lies beside it, where the loader looks: in the parent of the folder that it is given.
CROPS, LIST = "crops", "pool_list.txt"


def check_folder(out: str) -> None:
    """Raise UserError if a folder holds something that is no export."""
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(path.name not in (CROPS, LIST) for path in folder.iterdir())):
        raise UserError(f"--export {out} holds other files than an export: give a new folder")


def export(pool: str, out: str) -> int:
    """Write V_masklet_N.mp4, V_mask_N.mp4 and V_meta_N.json of every masklet below `out`/crops, and pool_list.txt last.

    A mask keeps every pixel: its film is H.264 without loss. Returns the masklets. Raises UserError.
    """
    folder = Path(os.path.abspath(out))  # noqa: PTH100 (keeps links)
    frame = Dataset.open(pool).located()
    lines = []
    try:
        with MemberReader() as reader:
            for row in frame.sort("relpath").collect(engine="streaming").iter_rows(named=True):
                lines.append(str(_write(row, reader, folder / CROPS)))
        with published(folder / LIST) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--export {out} cannot be written: {error}") from error
    return len(lines)


def _write(row: dict[str, Any], reader: MemberReader, folder: Path) -> Path:
    relpath = PurePosixPath(row["relpath"])
    if relpath.is_absolute() or ".." in relpath.parts:
        raise UserError(f"{row['relpath']} leads out of the folder: it is not written")
    name = folder / relpath
    name.parent.mkdir(parents=True, exist_ok=True)
    content, film = reader.read(row, "mp4"), reader.read(row, "mkv")
    if content is None or film is None:
        raise UserError(f"{row['key']} has no masks of its own: export a pool of `javisc build prior masklets`")
    masks = decode.masks_of(film, row)
    geometry = read_geometry(str(row["label"]))
    seen = [box is not None for box in geometry.boxes]
    meta = {
        "video_frame_height": geometry.height,
        "video_frame_width": geometry.width,
        "visible": seen,
        "crop_bbox": [list(map(round, box)) if box else [0, 0, 0, 0] for box in geometry.boxes],
    }
    with published(name) as temporary:
        temporary.write_bytes(content)
    with published(_named(name, "mask", ".mp4")) as temporary:
        _film(temporary, masks, Fraction(row["fps"]).limit_denominator(1001))
    with published(_named(name, "meta", ".json")) as temporary:
        temporary.write_text(json.dumps(meta), encoding="utf-8")
    return _named(name, "meta", ".json")


def _named(content: Path, part: str, suffix: str) -> Path:
    stem, _, number = content.stem.rpartition("_masklet_")
    return content.with_name(f"{stem}_{part}_{number}{suffix}")


def _film(path: Path, masks: NDArray[np.bool_], rate: Fraction) -> None:
    """Masks [T, h, w] as H.264 without loss: black and white of limited range, so that every decoder gives 0 and 255."""
    with av.open(str(path), "w", format="mp4", options=MP4_OPTIONS) as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"qp": "0", "preset": "fast", "x264-params": "threads=1"}
        )
        stream.height, stream.width, stream.pix_fmt = masks.shape[1], masks.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        grey = np.full((masks.shape[1] // 2, masks.shape[2]), 128, np.uint8)
        for number, mask in enumerate(masks):
            luma = np.where(mask, 235, 16).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.vstack([luma, grey]), format="yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
