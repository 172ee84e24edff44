"""`javisc build sync`: splits, filters, offsets and cuts on small clips, as shards and as SparseSync's files."""

from __future__ import annotations

import signal
import subprocess
import sys
import wave
from pathlib import Path

import av
import polars as pl
import pytest
from click.testing import CliRunner, Result

from javisc.cli import cli
from javisc.compiler.repair.dataset import repair
from javisc.compiler.sparsesync.cuts import read_meta
from javisc.compiler.sparsesync.rules import read_fixed_offsets
from javisc.manifests.errors import UserError
from support.faces import HEIGHT, SIDE, WIDTH, YOUTUBE, corner, level, write_meta, write_video
from support.raw import write_clip
from support.sane import sane

SMALL = ["--short-side", "48", "--min-seconds", "0.9", "--offset-grid", "3:0.2:0.5", "--workers", "2"]


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["build", "sync", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of VGGSound, one too short, one that SparseSync leaves out, one that no list names; and its lists."""
    root = tmp_path_factory.mktemp("vggsound")
    names = ["AAAAAAAAAAA_1000_11000", "BBBBBBBBBBB_0_10000", "CCCCCCCCCCC_2000_12000", "DDDDDDDDDDD_000030"]
    for number, name in enumerate([*names, "EEEEEEEEEEE_0_10000", "stranger"]):
        write_clip(root / f"raw/VGGSound/video/{name}.mp4", seconds=1.0, seed=number)
    write_clip(root / "raw/VGGSound/video/FFFFFFFFFFF_0_10000.mp4", seconds=0.5)
    starts = {"A": 1, "B": 0, "C": 2, "D": 30, "E": 0, "F": 0}
    rows = [f"{char * 11},{start},dog barking,{'test' if char == 'C' else 'train'}\n" for char, start in starts.items()]
    (root / "raw/VGGSound/vggsound.csv").write_text("".join(rows))
    (root / "lists/filtered_examples_vggsound").mkdir(parents=True)
    (root / "lists/filtered_examples_vggsound/filtered_broken.txt").write_text("EEEEEEEEEEE_0_10000.mp4\n")
    splits = {"train": "AF", "valid": "B", "test": "CD"}
    for split, clips in splits.items():
        lines = [f"{clip * 11}_{starts[clip] * 1000}_{starts[clip] * 1000 + 10000}\n" for clip in clips]
        (root / f"lists/vggsound_{split}.txt").write_text("".join(lines))
    (root / "offsets.csv").write_text("path,offset_sec,vstart_sec\nCCCCCCCCCCC_2000_12000,-0.2,0.28\nnobody,0.0,0.0\n")
    return root


def test_shards_with_splits_filters_and_offsets(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "ds"
    options = ["--corpus", "vggsound", "--lists", str(raw / "lists"), "--fixed-offsets", str(raw / "offsets.csv")]
    said = run(str(raw / "raw"), *options, *SMALL, "--out", str(out)).output
    manifest = pl.read_parquet(out / "manifest.parquet")
    assert dict(manifest.select("id", "split").iter_rows()) == {
        "AAAAAAAAAAA_1000_11000": "train",
        "BBBBBBBBBBB_0_10000": "val",
        "CCCCCCCCCCC_2000_12000": "test",
        "DDDDDDDDDDD_000030": "test",
    }
    assert set(manifest.select("fps", "height", "audio_fps", "num_frames", "num_samples", "label").iter_rows()) == {
        (25.0, 48, 16000, 25, 16000, "dog barking")
    }
    offsets = {
        key: (offset, start) for key, offset, start in manifest.select("id", "offset_sec", "vstart_sec").iter_rows()
    }
    assert offsets["AAAAAAAAAAA_1000_11000"] == (None, None) and offsets["CCCCCCCCCCC_2000_12000"] == (-0.2, 0.28)
    for clip in ("BBBBBBBBBBB_0_10000", "DDDDDDDDDDD_000030"):
        offset, start = offsets[clip]
        assert offset in (-0.2, 0.0, 0.2) and max(0, -offset) - 0.04 <= start <= min(0.5, 0.5 - offset)
    assert "evaluation offsets: 1 from the lists, 2 drawn; 1 list entries name no clip of this dataset" in said
    rejected = pl.read_parquet(out / "rejected.parquet")
    assert dict(rejected.select("relpath", "reason").iter_rows()) == {
        "VGGSound/video/EEEEEEEEEEE_0_10000.mp4": "filtered",
        "VGGSound/video/stranger.mp4": "filtered",
        "VGGSound/video/FFFFFFFFFFF_0_10000.mp4": "too_short",
    }
    verified = CliRunner().invoke(cli, ["verify", str(out)], catch_exceptions=False)
    assert verified.exit_code == 0, verified.output
    # Another grid costs no new build: the same shards, other columns.
    before = [path.stat().st_mtime_ns for path in sorted((out / "shards").iterdir())]
    grid = [*SMALL[:-4], "--offset-grid", "3:0.1:0.8", *SMALL[-2:]]
    run(str(raw / "raw"), "--corpus", "vggsound", "--lists", str(raw / "lists"), *grid, "--out", str(out))
    assert before == [path.stat().st_mtime_ns for path in sorted((out / "shards").iterdir())]
    again = pl.read_parquet(out / "manifest.parquet").filter(pl.col("split") != "train")
    assert again.height == 3 and again["offset_sec"].is_in([-0.1, 0.0, 0.1]).to_list() == [True] * 3


def test_what_people_looked_through_has_its_own_offsets(raw: Path, tmp_path: Path) -> None:
    """VGGSound-Sparse clean: its list says who is in it and at which offset, without --fixed-offsets."""
    rows = ["CCCCCCCCCCC_2000_12000,0.28,-0.2,1", "AAAAAAAAAAA_1000_11000,0.0,0.2,0", "BBBBBBBBBBB_0_10000,0.04,0.0,1"]
    lists = tmp_path / "data"
    lists.mkdir()
    (lists / "vggsound_sparse_clean_fixed_offsets.csv").write_text(
        "dataset_name,video_id,vstart_sec,offset_sec,is_sync\n" + "".join(f"VGGSound,{row}\n" for row in rows)
    )
    out = tmp_path / "ds"
    said = run(str(raw / "raw"), "--corpus", "vggsound-sparse-clean", "--lists", str(lists), *SMALL, "--out", str(out))
    columns = ("id", "split", "offset_sec", "vstart_sec")
    assert sorted(pl.read_parquet(out / "manifest.parquet").select(columns).iter_rows()) == [
        ("BBBBBBBBBBB_0_10000", "test", 0.0, 0.04),
        ("CCCCCCCCCCC_2000_12000", "test", -0.2, 0.28),
    ]
    assert "evaluation offsets: 2 from the lists, 0 drawn" in said.output
    told = dict(pl.read_parquet(out / "rejected.parquet").select("relpath", "message").iter_rows())
    assert "is not known to be in sync" in told["VGGSound/video/AAAAAAAAAAA_1000_11000.mp4"]


def test_lrs3_from_full_videos_as_files(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / f"raw/{YOUTUBE}.mkv")
    write_clip(tmp_path / "raw/unnamedvideo.mp4", seconds=1.0)
    write_meta(tmp_path / "meta/pretrain/C8zY0oAdQrs", 5, 30, 61)
    write_meta(tmp_path / "meta/pretrain/C8zY0oAdQrs", 20, 49, 61)
    write_meta(tmp_path / "meta/pretrain/elsewhere", 1, 2, youtube="AAAAAAAAAAA")
    (tmp_path / "meta/pretrain/broken.txt").write_text("?")
    out = tmp_path / "out"
    options = ["--corpus", "lrs3", "--lrs3-meta", str(tmp_path / "meta"), *SMALL, "--short-side", "224", "--crf", "10"]
    run(str(tmp_path / "raw"), *options, "--as-files", "--out", str(out))
    folder = out / "h264_orig_strict_crop_25fps_224side_16000hz_aac"
    clips = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert clips == [f"pretrain/{YOUTUBE}/{clip}.{end}" for clip in ("00005", "00020") for end in ("mp4", "txt", "wav")]
    for clip, first, frames in (("00005", 5, 26), ("00020", 20, 30)):
        with wave.open(str(folder / f"pretrain/{YOUTUBE}/{clip}.wav")) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (16000, 1, frames * 640)
        with av.open(str(folder / f"pretrain/{YOUTUBE}/{clip}.mp4")) as made:
            assert [stream.codec_context.name for stream in made.streams] == ["h264", "aac"]
            pictures = [frame.to_ndarray(format="gray") for frame in made.decode(video=0)]
            made.seek(0)
            heard = sum(frame.samples for frame in made.decode(audio=0))
        assert len(pictures) == frames and pictures[0].shape == (224, 224)
        assert frames * 640 <= heard <= frames * 640 + 1024, "not 40 ms short of the picture"
        assert abs(float(pictures[0][20:200, 20:200].mean()) - (level(first) - 16) * 255 / 219) < 3
        text = read_meta(folder / f"pretrain/{YOUTUBE}/{clip}.txt")
        assert (text.youtube, text.first, len(text.boxes)) == (YOUTUBE, first, frames)
        for number, box in text.boxes.items():  # where the face is, in a crop of the picture's own height at most
            at, (left, top) = (box.x * WIDTH, box.y * HEIGHT), corner(number)
            assert abs(at[0] - left) < 2 and abs(at[1] - top) < 2 and abs(box.w * WIDTH - SIDE) < 3, (number, box)
    assert not (out / ".dataset").exists()
    assert set(pl.read_parquet(out / "manifest.parquet")["id"]) == {"00005", "00020"}
    assert pl.read_parquet(out / "rejected.parquet")["relpath"].to_list() == ["LRS3/unnamedvideo.mp4"]
    reasons = pl.read_parquet(out / "unmatched.parquet").select("identity", "reason").rows()
    assert reasons == [("pretrain/broken.txt", "bad_row"), ("pretrain/elsewhere/00001.txt", "no_file")]


def test_a_folder_of_any_clips_as_files_with_its_lists(tmp_path: Path) -> None:
    for number in range(8):
        write_clip(tmp_path / f"raw/a b/{number}.mp4", seconds=1.0, seed=number)
    write_clip(tmp_path / "raw/a b/0.mkv", seconds=1.0, seed=9)
    out = tmp_path / "mine"
    said = run(
        str(tmp_path / "raw"),
        "--corpus",
        "folder",
        *SMALL,
        "--split",
        "train=0.5,val=0.5",
        "--as-files",
        "--out",
        str(out),
    ).output
    folder = out / "h264_video_25fps_48side_16000hz_aac"
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.mp4")}
    assert files == {f"a b/{number}" for number in range(8)} and "1 clips left out, whose names others have" in said
    listed = {name: (out / f"data/mine_{name}.txt").read_text().splitlines() for name in ("train", "valid")}
    assert set(listed["train"]) | set(listed["valid"]) == files
    with pytest.raises(UserError, match="its files are written already"):
        run(str(tmp_path / "raw"), "--corpus", "folder", *SMALL, "--as-files", "--out", str(out))
    offsets = read_fixed_offsets([out / "data/fixed_offsets_mine/valid_size3_crop0.5_min-0.20_max0.20.csv"])
    assert set(offsets["clip"]) == set(listed["valid"])
    manifest = pl.read_parquet(out / "manifest.parquet").filter(pl.col("split") == "val")
    kept = {name.rpartition(".")[0]: cells for name, *cells in manifest.select("relpath", *offsets.columns[1:]).rows()}
    assert {clip: cells for clip, *cells in offsets.rows()} == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--corpus", "nothing"],
            "--corpus nothing: no such corpus; known for this build: audioset, lrs3, vggsound, vggsound-sparse, vggsound-sparse-"
            "clean, folder (every video below RAW)",
        ),
        (["--corpus", "vggsound"], "columns id, start, label, split"),
        (["--corpus", "lrs3", "--face-crop"], "--face-crop needs --lrs3-meta"),
        (["--corpus", "lrs3", "--lrs3-meta", "nowhere"], "--lrs3-meta nowhere: is no folder"),
        (["--corpus", "folder", "--lists", "."], "--corpus folder takes every video"),
        (["--corpus", "folder", "--offset-grid", "21"], "--offset-grid '21': CLASSES:LARGEST:CROP"),
        *(
            (["--corpus", "folder", "--as-files", *words], "--as-files writes a local folder")
            for words in (["--shard-range", "0:1"], ["--part", "0/2"], ["--write-plan"])
        ),
        (["--corpus", "folder", "--fixed-offsets", "nowhere.csv"], "nowhere.csv is not there"),
        (["--corpus", "folder", "--short-side", "7"], "--short-side 7"),
        (["--corpus", "folder", "--min-seconds", "nan"], "--min-seconds nan"),
        (["--corpus", "lrs3", "--lists", "/"], "holds no list of lrs3: lrs3_train.txt"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as told:
        run(str(tmp_path), *arguments, "--out", str(tmp_path / "ds"))
    assert message in str(told.value)


def test_no_manifest_is_ever_published_without_its_offsets(tmp_path: Path) -> None:
    """Killed at any moment, a dataset either has no manifest or one whose evaluated rows have offsets; later merges keep them."""
    for index in range(6):
        write_clip(tmp_path / "raw" / f"{index}.mp4", seconds=1.2, seed=index)
    out = tmp_path / "ds"
    command = [
        sys.executable,
        "-P",
        "-c",
        KILLED,
        str(out),
        "build",
        "sync",
        str(tmp_path / "raw"),
        "--corpus",
        "folder",
    ]
    command += ["--out", str(out), "--short-side", "32", "--min-seconds", "1", "--offset-grid", "3:0.2:0.5"]
    command += ["--split", "train=0.3,val=0.4,test=0.3", "--workers", "1"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    manifest = pl.read_parquet(out / "manifest.parquet")
    evaluated = manifest.filter(pl.col("split").is_in(["val", "test"]))
    assert evaluated.height and evaluated.select(pl.col("offset_sec", "vstart_sec").is_not_null().all()).row(0) == (
        True,
        True,
    )
    before = (out / "manifest.parquet").read_bytes()
    (out / "manifest.parquet").unlink()
    assert repair(out, workers=1).lines[0].startswith("written anew: manifest.parquet")
    assert (out / "manifest.parquet").read_bytes() == before
    sane(out, split=("train", "val", "test"), inputs=6)
    scored = pl.read_parquet(out / "manifest.parquet").with_columns(sync_score=pl.lit(0.5))
    scored.write_parquet(out / "manifest.parquet")  # what a later command added is kept by a repair
    repair(out, workers=1)
    assert pl.read_parquet(out / "manifest.parquet")["sync_score"].to_list() == [0.5] * 6


#: A build that dies in the moment in which the manifest appears.
KILLED = """
import os, signal, sys, threading
def kill():
    while not os.path.exists(os.path.join(sys.argv[1], "manifest.parquet")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
from javisc.cli import cli
threading.Thread(target=kill, daemon=True).start()
cli.main(sys.argv[2:])
"""
