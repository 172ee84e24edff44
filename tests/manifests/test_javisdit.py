"""JavisDiT's tables: columns, order and types as documented; media extracted whole; and the way back to a build's inputs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
import soundfile

from javisc.manifests.errors import UserError
from javisc.manifests.io import scan_many
from javisc.manifests.javisdit import export_csv, import_csv
from support.tables import clip, dataset, real_dataset, rows

#: Written out here, independently of the code: the reference's documented tables.
COMMON = "path,id,relpath,num_frames,height,width,aspect_ratio,fps,resolution,audio_path,audio_fps,text"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("kind", "more"), [("audio", ",audio_text"), ("prior", ",unpaired_audio_path"), ("jav", "")])
def test_columns_and_their_order_are_the_documented_ones(tmp_path: Path, kind: str, more: str) -> None:
    frame = scan_many([dataset(tmp_path / "ds", rows(5, unpaired_audio_path="/x/u.wav"))])[1]
    assert export_csv(frame, str(tmp_path / "t.csv"), kind).rows == 5
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == COMMON + more


def test_values_of_the_joint_table(tmp_path: Path) -> None:
    table = rows(3).with_columns(pl.Series("text", ['says "hi", twice\nand leaves', "=1+1", "ünï"]))
    export_csv(scan_many([dataset(tmp_path / "ds", table)])[1], str(tmp_path / "t.csv"), "jav")
    for row, source in zip(read(tmp_path / "t.csv"), table.to_dicts(), strict=True):
        for name in ("path", "id", "relpath", "audio_path", "text"):
            assert row[name] == source[name]
        for name in ("num_frames", "height", "width", "resolution", "audio_fps"):
            assert row[name] == str(source[name])  # whole numbers: 16000, never 16000.0
        assert row["fps"] == "24" and float(row["aspect_ratio"]) == source["aspect_ratio"]


def test_the_audio_table_holds_the_dummy_picture(tmp_path: Path) -> None:
    table = rows(
        2,
        text="placeholder",
        audio_text="rain",
        num_frames=None,
        height=None,
        width=None,
        fps=None,
        resolution=None,
        duration=5.25,
    )
    export_csv(scan_many([dataset(tmp_path / "ds", table)])[1], str(tmp_path / "t.csv"), "audio")
    row = read(tmp_path / "t.csv")[0]
    assert row == {
        "path": "placeholder.mp4",
        "id": "placeholder",
        "relpath": table["relpath"][0],
        "num_frames": "126",
        "height": "720",
        "width": "1280",
        "aspect_ratio": "0.5625",
        "fps": "24",
        "resolution": "921600",
        "audio_path": table["audio_path"][0],
        "audio_fps": "16000",
        "text": "placeholder",
        "audio_text": "rain",
    }


def test_rows_its_loader_fails_on_are_left_out_and_counted(tmp_path: Path) -> None:
    table = rows(6).with_columns(
        pl.Series("text", ["a", None, "c", None, "e", "f"]),
        pl.Series("channels", [1, 1, 0, 1, 1, 1], dtype=pl.Int16),
        pl.Series("audio_path", ["/a", "/b", None, "/d", None, "/f"]),
    )
    frame = scan_many([dataset(tmp_path / "ds", table)])[1]
    done = export_csv(frame, str(tmp_path / "t.csv"), "jav")
    assert (done.rows, done.without_caption, done.without_media) == (2, 2, 2)
    assert [row["text"] for row in read(tmp_path / "t.csv")] == ["a", "f"]
    assert export_csv(frame, str(tmp_path / "t.csv"), "jav", allow_no_caption=True).rows == 4
    short = rows(2).with_columns(num_frames=pl.Series([0, 1], dtype=pl.Int32))  # a picture is one, and none is none
    frame = scan_many([dataset(tmp_path / "short", short)])[1]
    assert export_csv(frame, str(tmp_path / "t.csv"), "jav").rows == 1


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_media_are_extracted_once_and_open_in_other_readers(
    tmp_path: Path, audio_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("javisc.manifests.javisdit.BATCH", 2)  # the table is written in three pieces, with one header
    clips = [clip(0.5, seed=seed, tone=300 + 100 * seed) for seed in range(5)]
    ds = real_dataset(tmp_path / "ds", clips)
    frame, media, out = scan_many([ds])[1], tmp_path / "media", tmp_path / "t.csv"
    done = export_csv(frame, str(out), "jav", media=str(media), audio_format=audio_format)
    assert (done.rows, done.files) == (5, 10)
    for row, (mp4, flac) in zip(read(out), clips, strict=True):
        assert Path(row["path"]).read_bytes() == mp4
        with av.open(row["path"]) as container:
            assert sum(1 for _ in container.decode(video=0)) == int(row["num_frames"])
        samples, rate = soundfile.read(row["audio_path"], dtype="int16")
        assert rate == int(row["audio_fps"])
        np.testing.assert_array_equal(samples, soundfile.read(io.BytesIO(flac), dtype="int16")[0])
    before = {path: path.stat().st_mtime_ns for path in media.rglob("*.*")}
    damaged = Path(read(out)[0]["path"])
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    text = out.read_bytes()
    export_csv(frame, str(out), "jav", media=str(media), audio_format=audio_format)
    assert out.read_bytes() == text and damaged.read_bytes() == clips[0][0]
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} == {damaged}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"key": pl.lit("../../etc/x")}, "is not made of a-z"),
        ({"key": pl.lit("a/b")}, "is not made of a-z"),
        ({"mp4_offset": pl.lit(-1, pl.Int64)}, "not possible"),
        ({"flac_size": pl.lit(1 << 60, pl.Int64)}, "not possible"),
        ({"mp4_offset": pl.lit(1 << 40, pl.Int64)}, "ends before"),
        ({"shard": pl.lit(77, pl.Int32)}, "is not there"),
        ({"shard": pl.lit(-3, pl.Int32)}, "not possible"),
    ],
)
def test_a_hostile_manifest_escapes_nowhere(tmp_path: Path, change: dict[str, pl.Expr], told: str) -> None:
    ds = real_dataset(tmp_path / "ds", [clip(0.5)])
    frame = scan_many([ds])[1].with_columns(value.alias(name) for name, value in change.items())
    with pytest.raises(UserError, match=told):
        export_csv(frame, str(tmp_path / "t.csv"), "jav", media=str(tmp_path / "media"))
    assert not (tmp_path / "t.csv").exists() and not list((tmp_path / "media").rglob("*.*"))


def test_an_export_comes_back_as_inputs(tmp_path: Path) -> None:
    table = rows(4, unpaired_audio_path="/x/u.wav").with_columns(pl.Series("text", ["a,b", 'c"d', "e\nf", "g"]))
    export_csv(scan_many([dataset(tmp_path / "ds", table)])[1], str(tmp_path / "t.csv"), "prior")
    assert import_csv([str(tmp_path / "t.csv")], str(tmp_path / "list.parquet")) == 4
    back = pl.read_parquet(tmp_path / "list.parquet")
    for name in ("path", "relpath", "id", "text", "unpaired_audio_path"):
        assert back[name].to_list() == table[name].to_list()


def test_audio_rows_come_back_by_their_sound(tmp_path: Path) -> None:
    table = rows(2, text="placeholder", audio_text="rain").with_columns(audio_path=pl.Series(["sounds/a.wav", "b.wav"]))
    export_csv(scan_many([dataset(tmp_path / "ds", table)])[1], str(tmp_path / "t.csv"), "audio")
    import_csv([str(tmp_path / "t.csv")], str(tmp_path / "list.parquet"), root="/data")
    row = pl.read_parquet(tmp_path / "list.parquet").row(0, named=True)
    expected = {
        "path": "/data/sounds/a.wav",
        "relpath": table["relpath"][0],
        "id": None,
        "text": "rain",
        "audio_text": "rain",
    }
    assert row == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,text\n1,a\n", "no column path"),
        ("path,relpath\n/a.mp4,../a.mp4\n", "not a path inside"),
        ("path,relpath\n/a.mp4,/etc/a.mp4\n", "not a path inside"),
        ("path,relpath\n,a.mp4\n", "not a path inside"),
        ("path,text\n/a/x.mp4,x\n/a/x.mp4,y\n", "x.mp4 is there twice with the same sound"),
        ("path,audio_path\n/x.mp4,/x.wav\n/x.mp4,/x.wav\n", "x.mp4 is there twice with the same sound"),
        ('path,relpath\n"/a/x.mp4,x.mp4\n', "line 2: its quotes do not pair"),
        ("path,text\n/a.mp4,a dog, barking\n", "line 2: 3 fields where the header has 2"),
        ("path,text\n/a.mp4,x\n/b.mp4\n", "line 3: 1 fields where the header has 2"),
    ],
)
def test_tables_that_cannot_become_inputs_are_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        import_csv([str(tmp_path / "t.csv")], str(tmp_path / "list.parquet"))


def test_a_table_of_pandas_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,audio_fps,text,unpaired_audio_path\nsub/a.mp4,16000.0,,\nb.MP4,,hi,\n")
    import_csv([str(tmp_path / "t.csv")], str(tmp_path / "list.parquet"), root=str(tmp_path))
    back = pl.read_parquet(tmp_path / "list.parquet")
    assert back["path"].to_list() == [f"{tmp_path}/sub/a.mp4", f"{tmp_path}/b.MP4"]
    assert back["relpath"].to_list() == ["a.mp4", "b.MP4"] and back["text"].to_list() == [None, "hi"]
    assert "unpaired_audio_path" not in back.columns


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_sound_of_a_row_comes_from_the_file_that_the_row_names(tmp_path: Path, form: str) -> None:
    """JavisDiT's own train_jav.csv names a wav for every mp4; rows of one relpath are told apart by path."""
    table = pl.DataFrame(
        {
            "path": ["/a/x.mp4", "b/x.mp4", "/c.mp4", "/c.mp4", "/d.mp4", "nan", "/e.mp4"],
            "relpath": ["x.mp4", "x.mp4", "c.mp4", "c.mp4", "d.mp4", "s.wav", "e.mp4"],
            "audio_path": ["/a/x.wav", "b/x.wav", "/c1.wav", "/c2.wav", "/d.mp4", "s.wav", None],
        }
    )
    source = tmp_path / f"t.{form}"
    {"csv": table.write_csv, "parquet": table.write_parquet}[form](source)  # type: ignore[operator]
    assert import_csv([str(source)], str(tmp_path / "list.parquet"), root="/r") == 7
    back = pl.read_parquet(tmp_path / "list.parquet")
    assert back["path"].to_list() == ["/a/x.mp4", "/r/b/x.mp4", "/c.mp4", "/c.mp4", "/d.mp4", "/r/s.wav", "/e.mp4"]
    assert back["audio_path"].to_list() == ["/a/x.wav", "/r/b/x.wav", "/c1.wav", "/c2.wav", None, None, None]
    assert back["relpath"].to_list() == table["relpath"].to_list()
