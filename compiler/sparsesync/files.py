"""A compiled dataset as the files that SparseSync's own trainer reads: an MP4 with AAC per clip, named after it, and lists."""

from __future__ import annotations

import io
import shutil
import wave
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile

from javisc.compiler.inputs.sync_lists import SPLITS
from javisc.compiler.run.spread import spread
from javisc.compiler.sparsesync.cuts import Box, new_meta, read_texts, square_crop
from javisc.compiler.sparsesync.rules import Grid, write_fixed_offsets
from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.manifests.io import scan_many
from javisc.manifests.members import MemberReader

#: Clips that one task writes.
CHUNK = 64
#: Seconds that a task may take before it has written anything.
_START = 120.0


def folder_name(fps: float, side: int, sample_rate: int, *, lrs3: bool = False, face: bool = False) -> str:
    """SparseSync's name of a folder of clips; LRS3's also say how they were cropped."""
    kind = ("orig_strict_crop" if face else "uncropped") if lrs3 else "video"
    return f"h264_{kind}_{fps:g}fps_{side}side_{sample_rate}hz_aac"


class Done(NamedTuple):
    """Files written, and clips left out because another has the same name."""

    written: int
    clashes: int


def write_files(
    dataset: str,
    target: Path,
    clip_of: Callable[[str], str],
    *,
    workers: int | None = None,
    grid: Grid | None = None,
    name: str = "",
) -> Done:
    """Write every sample of `dataset` as `target`/CLIP.mp4 and CLIP.wav; what is there stays.

    The video is copied, the sound becomes AAC in the MP4 and 16-bit PCM beside it. Where `name` is given, `data/` beside
    `target` gets the lists NAME_{train,valid,test}.txt and, with `grid`, fixed_offsets_NAME/. Raises UserError for a clip whose
    name would lead out of `target`.
    """
    rows = scan_many([dataset])[1].collect()
    jobs, seen, clashes = [], set(), 0
    for row in rows.sort("shard", "mp4_offset").iter_rows(named=True):
        clip = clip_of(row["relpath"])
        path = (target / f"{clip}.mp4").resolve()
        if not path.is_relative_to(target.resolve()) or "\0" in clip:
            raise UserError(f"{row['relpath']}: its name leads out of {target}; rename the file")
        if clip in seen:
            clashes += 1
            continue
        seen.add(clip)
        jobs.append((str(path), {key: row[key] for key in _NEEDED}))
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    # Counted by what is there afterwards: a worker that dies has written some of its clips, and says of none.
    absent = [path for path, _ in jobs if not Path(path).exists()]
    bad: list[tuple[str, dict[str, Any]]] = []
    call = f"{__name__}:write_chunk"
    for outcome in spread(call, ((jobs, {"jobs": jobs}, _START + len(jobs)) for jobs in chunks), workers=workers):
        bad += outcome.call.tag if outcome.error else []
    # What a worker died on, or failed at, is tried clip by clip, so that the one at fault is named.
    alone = spread(call, ((job[0], {"jobs": [job]}, _START) for job in bad), workers=workers)
    failed = [outcome for outcome in alone if outcome.error]
    if failed:
        more = f" (so are {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(
            f"{failed[0].call.tag} cannot be written{more}: {failed[0].error}: {failed[0].message}; the others are there",
            exit_code=1,
        )
    if name:
        _write_lists(rows.iter_rows(named=True), target.parent / "data", clip_of, name, grid)
    return Done(sum(Path(path).exists() for path in absent), clashes)


_NEEDED = ("dataset", "key", "shard", "mp4_offset", "mp4_size", "flac_offset", "flac_size")


def write_chunk(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    """In a worker: write some clips, (file, row) each; what is there stays."""
    with MemberReader() as reader:
        for name, row in jobs:
            path = Path(name)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            video, sound = reader.read(row, "mp4"), reader.read(row, "flac")
            if video is None:
                continue
            with published(path.with_suffix(".wav") if sound else path) as first:
                if sound is None:
                    first.write_bytes(video)
                else:
                    samples, rate = soundfile.read(io.BytesIO(sound), dtype="int16", always_2d=True)
                    _write_wav(first, samples, rate)
            if sound is not None:
                with published(path) as temporary:
                    _mux(video, samples, rate, temporary)


def _write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    with path.open("wb") as file, wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())


def _mux(video: bytes, samples: np.ndarray, rate: int, path: Path) -> None:
    """An MP4 of the video's packets as they are and the sound (samples × channels, int16) as AAC."""
    with (
        av.open(io.BytesIO(video), "r", format="mp4") as source,
        av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as out,
    ):
        picture = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=rate, layout="mono" if samples.shape[1] == 1 else "stereo")
        sound.codec_context.thread_count = 1
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.reshape(1, -1)), "s16", sound.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        # The muxer interleaves what comes in order per stream; a clip's sound is small enough to come first.
        out.mux([*sound.encode(frame), *sound.encode(None)])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                out.mux(packet)


def _write_lists(
    rows: Iterator[dict[str, Any]], folder: Path, clip_of: Callable[[str], str], name: str, grid: Grid | None
) -> None:
    clips: dict[str, list[str]] = defaultdict(list)
    offsets: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        if row["split"] in SPLITS:
            clip = clip_of(row["relpath"])
            clips[row["split"]].append(clip)
            if row["offset_sec"] is not None:
                offsets[row["split"]][clip] = (row["offset_sec"], row["vstart_sec"])
    for ours, theirs in SPLITS.items():
        if clips[ours]:
            with published(folder / f"{name}_{theirs}.txt") as path:
                path.write_text("".join(f"{clip}\n" for clip in sorted(set(clips[ours]))), encoding="utf-8")
        if grid is not None and offsets[ours]:
            with published(folder / f"fixed_offsets_{name}" / grid.file_name(theirs)) as path:
                write_fixed_offsets(path, offsets[ours])


def write_texts(dataset: str, target: Path, clip_of: Callable[[str], str], meta: Path, *, face: bool) -> None:
    """Write SparseSync's meta text beside every clip of LRS3 in `target`: where it lies in its video and each frame's crop."""
    sizes = {
        clip_of(relpath): (height, width)
        for relpath, height, width in scan_many([dataset])[1]
        .select("relpath", "source_height", "source_width")
        .collect()
        .iter_rows()
    }
    for path, found in read_texts(meta):
        if isinstance(found, UserError) or (clip := f"pretrain/{found.youtube}/{path.stem}") not in sizes:
            continue
        whole = Box(0.0, 0.0, 1.0, 1.0)
        crops = [
            square_crop(*sizes[clip], box).written(*sizes[clip]) if face else whole
            for _, box in sorted(found.boxes.items())
        ]
        with published(target / f"{clip}.txt") as temporary:
            temporary.write_text(new_meta(found.youtube, found.first, crops), encoding="utf-8")


def keep_tables(dataset: Path, target: Path) -> None:
    """Move the tables of a dataset whose shards are no longer needed to `target`, and remove the rest."""
    for name in ("manifest.parquet", "rejected.parquet", "unmatched.parquet"):
        if (dataset / name).exists():
            (dataset / name).replace(target / name)
    shutil.rmtree(dataset)
