"""Duplicates: exact ones by digest, near ones by what they look and sound like; nothing else; and nothing leaks from
test to train."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.dedupe import fingerprint
from javisc.compiler.dedupe.fingerprint import picture_prints, pictures_alike, sound_prints, sounds_alike
from javisc.compiler.dedupe.repeats import dedupe
from javisc.compiler.inputs.local import AUDIO_SUFFIXES
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests import dedupe as groups
from javisc.manifests.dedupe import candidates, choose, exact_pairs, group
from javisc.manifests.io import Dataset, scan_many
from javisc.manifests.schema import MANIFEST_SCHEMA
from support.shared import SHARED, need
from support.tables import clip, dataset, real_dataset, rows


def melody(seed: int, seconds: float = 6.0, rate: int = 16000) -> np.ndarray:
    """Chords that change four times a second, with some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    out = 0.02 * rng.standard_normal(len(time))
    for start in np.arange(0, seconds, 0.25):
        inside = (time >= start) & (time < start + 0.25)
        for pitch in rng.uniform(250, 2200, 3):
            out[inside] += 0.2 * np.sin(2 * np.pi * pitch * time[inside])
    return out.astype(np.float32)


def through(samples: np.ndarray, codec: str, rate: int = 16000) -> np.ndarray:
    """Encoded at a low bit rate and decoded again; the codec's delay stays in."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = rate, "mono", "fltp", 32_000
    frame = av.AudioFrame.from_ndarray(samples[None, :].copy(), "fltp", "mono")
    frame.sample_rate = rate
    fifo = av.AudioFifo()
    fifo.write(frame)
    encoder.open()
    pieces = []
    while (piece := fifo.read(encoder.frame_size or 1024, partial=True)) is not None:
        pieces += encoder.encode(piece)
    pieces += encoder.encode(None)
    decoder = av.CodecContext.create(codec, "r")
    decoder.extradata = encoder.extradata
    decoded = [frame.to_ndarray()[0] for packet in [*pieces, None] for frame in decoder.decode(packet)]
    return np.concatenate(decoded).astype(np.float32)


@pytest.mark.parametrize("change", ["aac", "louder", "later", "noise", "resampled"])
def test_a_sound_is_found_again_after(change: str) -> None:
    for seed in range(4):
        sound = melody(seed)
        rate = 16000
        if change == "aac":
            other = through(sound, "aac")
        elif change == "louder":
            other = 0.3 * sound
        elif change == "later":
            other = np.concatenate([melody(99, 1.37), sound])[: len(sound)]
        elif change == "noise":
            other = sound + 0.01 * np.random.default_rng(seed).standard_normal(len(sound)).astype(np.float32)
        else:
            import soxr

            other, rate = soxr.resample(sound, 16000, 22050), 22050
        a, b = sound_prints(sound, 16000), sound_prints(other, rate)
        assert sounds_alike(a, b), seed
        empty = np.zeros(0, np.uint64)
        assert np.intersect1d(fingerprint.buckets(empty, a), fingerprint.buckets(empty, b)).size, seed


def test_other_sounds_are_not_alike() -> None:
    prints = [sound_prints(melody(seed), 16000) for seed in range(12)]
    prints += [sound_prints(np.sin(np.arange(64000) * tone / 9000).astype(np.float32), 16000) for tone in (200, 700)]
    prints.append(sound_prints(np.zeros(64000, np.float32), 16000))
    alike = [(i, j) for i in range(len(prints)) for j in range(i) if sounds_alike(prints[i], prints[j])]
    assert alike == []


def test_real_sounds_are_alike_only_to_themselves() -> None:
    files = sorted(need(SHARED / "annotations/ESC50/audio").glob("*.wav"))
    prints = {}
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        prints[path.name] = sound_prints(samples.mean(axis=1), rate)
    names = list(prints)
    # Clips of one recording share the freesound number in their name: only these may be alike.
    alike = {(a, b) for i, a in enumerate(names) for b in names[:i] if sounds_alike(prints[a], prints[b])}
    assert all(a.split("-")[1] == b.split("-")[1] for a, b in alike), alike


def reencoded(mp4: bytes, *, size: tuple[int, int], crf: int) -> bytes:
    out = io.BytesIO()
    with av.open(io.BytesIO(mp4)) as source, av.open(out, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=24, options={"crf": str(crf), "preset": "ultrafast", "threads": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in source.decode(video=0):
            for packet in stream.encode(frame.reformat(*size, "yuv420p")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return out.getvalue()


def test_pictures_are_found_again_after_encoding_and_no_others() -> None:
    clips = [clip(3.0, seed=seed, size=(160, 96))[0] for seed in range(5)]
    prints = [picture_prints(mp4) for mp4 in clips]
    assert [len(one) for one in prints] == [3] * 5
    for mp4, one in zip(clips, prints, strict=True):
        again = picture_prints(reencoded(mp4, size=(120, 72), crf=33))
        assert pictures_alike(one, again) and pictures_alike(again, one)
        empty = np.zeros(0, np.uint32)
        assert np.intersect1d(fingerprint.buckets(one, empty), fingerprint.buckets(again, empty)).size
    assert not any(pictures_alike(prints[i], prints[j]) for i in range(5) for j in range(i))


def test_a_flat_picture_is_like_nothing() -> None:
    flat = np.zeros(5, np.uint64)
    assert not pictures_alike(flat, flat) and fingerprint.buckets(flat, np.zeros(9, np.uint32)).size == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=25))
def test_groups_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    found = group(np.array(pairs, np.int64).reshape(-1, 2))
    near: dict[int, set[int]] = {row: {row} for pair in pairs for row in pair}
    for _ in near:
        for a, b in pairs:
            near[a] = near[b] = near[a] | near[b]
    for row, members in near.items():
        whole = set().union(*(near[member] for member in members))
        assert found[row] == min(whole)
    assert set(found) == set(near)


def test_candidates_share_a_bucket_and_cost_is_linear_in_a_crowd() -> None:
    crowd = np.full(5000, 7, np.uint64), np.arange(5000)
    pairs = candidates([crowd, (np.array([1, 1, 2], np.uint64), np.array([9000, 8000, 9000]))])
    assert len(pairs) <= 5000 * groups.REACH + 1 and [8000, 9000] in pairs.tolist()
    assert (pairs[:, 0] < pairs[:, 1]).all() and candidates([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("one", {"a0": True, "a1": False, "b0": False, "b1": True, "b2": False, "c0": True, "c1": False}),
     ("leaks", {"a0": True, "a1": True, "b0": False, "b1": True, "b2": False, "c0": True, "c1": True})],
)  # fmt: skip
def test_evaluation_data_stay_and_training_data_that_repeat_them_go(
    tmp_path: Path, rule: str, kept: dict[str, bool]
) -> None:
    splits = {
        "a0": "train",
        "a1": "train",
        "b0": "val",
        "b1": "test",
        "b2": "train",
        "c0": "test",
        "c1": "test",
        "d": None,
    }
    table = rows(len(splits)).with_columns(
        pl.Series("key", list(splits)),
        pl.Series("split", list(splits.values())),
        pl.Series("source_sha256", [name[0] for name in splits]),
        pl.lit(5, pl.Int64).alias("flac_size"),
        pl.lit(None, pl.Int64).alias("mp4_size"),
    )
    frame = scan_many([dataset(tmp_path / "ds", table)])[1]
    chosen = choose(frame, group(exact_pairs(frame)), rule)
    assert dict(chosen.members.select("key", "kept").iter_rows()) == kept
    assert (chosen.groups, chosen.across) == (3, 1)


def test_windows_of_one_source_are_no_duplicates(tmp_path: Path) -> None:
    table = rows(3, source_sha256="s", mp4_size=None).with_columns(pl.Series("flac_size", [10, 20, 10]))
    done = dedupe([str(dataset(tmp_path / "ds", table))], str(tmp_path / "out"))
    assert (done.rows, done.kept) == (3, 2)
    nothing = rows(4, source_sha256=None)
    assert dedupe([str(dataset(tmp_path / "none", nothing))], None).kept == 4
    assert dedupe([str(dataset(tmp_path / "empty", rows(0)))], None, near=str(tmp_path / "p")).rows == 0


def test_near_duplicates_across_splits_are_dropped_and_fingerprints_are_kept(tmp_path: Path) -> None:
    pictures = [clip(3.0, seed=seed, size=(160, 96))[0] for seed in range(4)]
    sounds = []
    for seed in range(4):
        flac = io.BytesIO()
        soundfile.write(flac, melody(seed, 3.0), 16000, format="FLAC")
        sounds.append(flac.getvalue())
    train = real_dataset(tmp_path / "train", list(zip(pictures, sounds, strict=True)), split="train", prefix="t")
    # In test: picture 1 with new sound, sound 2 with a new picture, and something new.
    fresh = clip(3.0, seed=50, size=(160, 96))
    tests = [
        (reencoded(pictures[1], size=(120, 72), crf=30), fresh[1]),
        (clip(3.0, seed=51, size=(160, 96))[0], sounds[2]),
    ]
    flac = io.BytesIO()
    soundfile.write(flac, melody(77, 3.0), 16000, format="FLAC")
    tests.append((clip(3.0, seed=52, size=(160, 96))[0], flac.getvalue()))
    test = real_dataset(tmp_path / "test", tests, split="test", prefix="e")
    inputs, folder = [str(train), str(test)], tmp_path / "prints"
    done = dedupe(
        inputs, str(tmp_path / "clean"), near=str(folder), rule="leaks", groups=str(tmp_path / "g.parquet"), workers=1
    )
    kept = Dataset.open(tmp_path / "clean").manifest().collect()["key"].to_list()
    assert kept == ["t_0_0000000", "t_0_0000003", "e_0_0000000", "e_0_0000001", "e_0_0000002"]
    assert done.kept == 5 and pl.read_parquet(tmp_path / "g.parquet").height == 4
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert times and dedupe(inputs, None, near=str(folder), match="picture", workers=1).kept == 6
    assert dedupe(inputs, None, near=str(folder), match="both", workers=1).kept == 7
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_broken_sample_gives_no_fingerprint_and_is_told(tmp_path: Path) -> None:
    ds = real_dataset(tmp_path / "ds", [clip(1.0), clip(1.0, seed=1)])
    shard = ds / "shards/000000.tar"
    row = pl.read_parquet(ds / "manifest.parquet").row(0, named=True)
    content = bytearray(shard.read_bytes())
    content[row["flac_offset"] : row["flac_offset"] + 64] = bytes(64)
    shard.write_bytes(content)
    done = dedupe([str(ds)], None, near=str(tmp_path / "p"), workers=2)
    assert done.kept == 2 and any("1 samples gave no fingerprint" in line for line in done.lines)


def test_many_copies_of_real_sounds_become_one_each(tmp_path: Path) -> None:
    """Copies under other names, among them sounds that are mostly digital silence; and the same members from other sources."""
    files = sorted(need(SHARED / "annotations/ESC50/audio").glob("*.wav"))
    (tmp_path / "raw").mkdir()
    for path in files:
        for copy in range(2):
            (tmp_path / "raw" / f"{path.stem}_{copy}.wav").write_bytes(path.read_bytes())
        # One bit of silence more at the end of the file's list of chunks: another digest, the same sound.
        (tmp_path / "raw" / f"{path.stem}_other.wav").write_bytes(path.read_bytes() + b"junk\x02\0\0\0ab")
    given = from_raw([str(tmp_path / "raw")], suffixes=AUDIO_SUFFIXES)
    build(given, PRESETS["audio"], tmp_path / "ds", BuildOptions(workers=2))
    kinds = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    exact = dedupe([str(tmp_path / "ds")], str(tmp_path / "exact"))
    assert (exact.rows, exact.kept) == (3 * len(files), len(kinds))
    near = dedupe([str(tmp_path / "ds")], str(tmp_path / "near"), near=str(tmp_path / "prints"), workers=1)
    assert near.kept <= len(kinds)
    kept = Dataset.open(tmp_path / "near").manifest().collect()["relpath"].to_list()
    assert len({name.split("-")[1] for name in kept}) == len({path.name.split("-")[1] for path in files})


@pytest.mark.parametrize(
    ("what", "sound"),
    [
        ("silence", np.zeros(48000, np.float32)),
        ("a click", np.eye(1, 48000, 9000, dtype=np.float32)[0]),
        ("too short", melody(1, 0.3)),
    ],
)
def test_a_sound_too_poor_for_a_fingerprint_is_named(what: str, sound: np.ndarray, tmp_path: Path) -> None:
    flac = io.BytesIO()
    soundfile.write(flac, sound, 16000, format="FLAC")
    ds = real_dataset(tmp_path / "ds", [(clip(3.0, seed=n)[0], flac.getvalue()) for n in range(2)])
    done = dedupe([str(ds)], None, near=str(tmp_path / "p"), match="sound", workers=1)
    assert done.kept == 2, what
    keys = pl.read_parquet(ds / "manifest.parquet")["key"].to_list()
    assert any(line.startswith("2 sounds are too short or silent") and ", ".join(keys) in line for line in done.lines)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "source_sha256": st.sampled_from(["a", "b", None]),
                "audio_sha256": st.sampled_from([None, "x"]),
                "clip_start": st.sampled_from([None, 0.0, 1.0]),
                "group": st.sampled_from([None, "g"]),
                "flac_size": st.sampled_from([None, 10, 20]),
                "mp4_size": st.sampled_from([None, 30]),
            }
        ),
        max_size=12,
    )
)
def test_equal_parts_of_equal_sources_are_repeats_and_nothing_else(parts: list[dict[str, object]]) -> None:
    """Against the definition: the same source, sound and window, alike in what members they have; sizes for old rows alone."""
    table = rows(len(parts)).with_columns(
        pl.Series(name, [part[name] for part in parts], MANIFEST_SCHEMA[name]) for name in (parts[0] if parts else ())
    )

    def same(a: dict[str, object], b: dict[str, object]) -> bool:
        if a["source_sha256"] is None or (a["group"] is None) != (b["group"] is None):
            return False
        sizes = ("flac_size", "mp4_size")
        fits = all(
            a[name] == b[name] if a["group"] is None else (a[name] is None) == (b[name] is None) for name in sizes
        )
        return fits and all(a[name] == b[name] for name in ("source_sha256", "audio_sha256", "clip_start"))

    expected = {
        (min(j for j in range(i + 1) if same(parts[j], parts[i])), i)
        for i in range(len(parts))
        if any(same(parts[j], parts[i]) for j in range(i))
    }
    assert {(a, b) for a, b in exact_pairs(table.lazy()).tolist()} == expected


def test_equal_checksums_of_other_bytes_are_no_repeat(tmp_path: Path) -> None:
    """CRC-32 and size agree by accident: the members are read before one is dropped."""
    clips = [clip(1.0, seed=n) for n in range(2)]
    ds = real_dataset(tmp_path / "ds", [clips[0], clips[1], clips[0]])
    frame = pl.read_parquet(ds / "manifest.parquet")
    forged = frame.with_columns(
        flac_crc32=pl.lit(7, pl.Int64),
        mp4_crc32=pl.lit(7, pl.Int64),
        flac_size=pl.col("flac_size").min(),
        mp4_size=pl.col("mp4_size").min(),
    )
    forged.write_parquet(ds / "manifest.parquet")
    kept = dedupe([str(ds)], str(tmp_path / "out")).kept
    assert kept == 2
    (ds / "shards" / "000000.tar").unlink()
    lost = dedupe([str(ds)], str(tmp_path / "out2"))
    assert lost.kept == 3 and any("could not be read, so they stay" in line for line in lost.lines)
