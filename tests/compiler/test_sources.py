"""What a sample was made of: digests in every kind of dataset, sources that change or go, and sound from a file of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import polars as pl
import pytest
import soundfile
from command.test_build import run as command

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.check.dataset import verify
from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.inputs.table import table
from javisc.compiler.media.transcode import Clip
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS, Recipe
from javisc.compiler.run.unit import compile_input
from javisc.manifests.javisdit import import_csv
from javisc.manifests.splits import split_of
from support import media
from support.raw import write_clip

#: No narrower than 64 pixels, where x265 writes behind its buffers (LIMITS.md).
SMALL = {"short_side": 48, "encoder_preset": "ultrafast", "min_frames": 1}
RECIPES = {name: recipe if recipe.kind == "audio" else recipe.replace(**SMALL) for name, recipe in PRESETS.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources(root: Path, kind: str, count: int = 3) -> list[Path]:
    root.mkdir(parents=True)
    if kind != "audio":
        return [write_clip(root / f"{i}.mp4", seed=i) for i in range(count)]
    for i in range(count):
        soundfile.write(root / f"{i}.wav", media.sound(8000, 1 + 0.1 * i), 8000)
    return [root / f"{i}.wav" for i in range(count)]


def run(root: Path, recipe: Recipe, **more: object) -> pl.DataFrame:
    suffixes = AUDIO_SUFFIXES if recipe.kind == "audio" else VIDEO_SUFFIXES
    options = BuildOptions(workers=1, shard_samples=1, **more)  # type: ignore[arg-type]
    build(from_raw([str(root / "raw")], suffixes=suffixes), recipe, root / "ds", options)
    return pl.read_parquet(root / "ds" / "manifest.parquet")


@pytest.mark.parametrize("name", RECIPES)
def test_every_kind_knows_its_sources_and_follows_them(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    files = sources(tmp_path / "raw", recipe.kind)
    rows = run(tmp_path, recipe)
    assert dict(rows.select("path", "source_sha256").iter_rows()) == {str(path): digest(path) for path in files}
    assert rows["group"].to_list() == rows["source_sha256"].to_list() and rows["audio_sha256"].null_count() == 3
    os.utime(files[0])
    assert "changed" not in "".join(build_notes(tmp_path, recipe))
    files[1].unlink()
    files[2].write_bytes(files[0].read_bytes())
    notes = build_notes(tmp_path, recipe)
    assert any("1 inputs are changed" in note for note in notes) and any(
        "1 inputs are no longer" in note for note in notes
    )
    rows = run(tmp_path, recipe, prune=True)
    assert dict(rows.select("path", "source_sha256").iter_rows()) == {
        str(path): digest(files[0]) for path in files[::2]
    }


def build_notes(root: Path, recipe: Recipe) -> tuple[str, ...]:
    suffixes = AUDIO_SUFFIXES if recipe.kind == "audio" else VIDEO_SUFFIXES
    given = from_raw([str(root / "raw")], suffixes=suffixes)
    return build(given, recipe, root / "ds", BuildOptions(workers=1, shard_samples=1)).notes


def test_a_row_without_a_digest_is_a_defect(tmp_path: Path) -> None:
    sources(tmp_path / "raw", "audio", 2)
    rows = run(tmp_path, RECIPES["audio"])
    assert verify(tmp_path / "ds", workers=1).defects == []
    lost = pl.when(pl.col("path").str.ends_with("1.wav")).then("source_sha256")
    rows.with_columns(source_sha256=lost).write_parquet(tmp_path / "ds" / "manifest.parquet")
    assert any("1 rows have no source_sha256" in defect for defect in verify(tmp_path / "ds", workers=1).defects)


def changing(source: Path, recipe: Recipe, scratch: Path, *, window: object = None, sound: Path | None = None) -> Clip:
    """A compiler during whose work a source grows, and which may fail for it."""
    order = source.read_text()
    grown = source if "source" in order else sound
    if grown is not None:
        with grown.open("a") as stream:
            stream.write("more")
    if "fails" in order:
        raise Rejected("corrupt", "half a file")
    (scratch / "clip.flac").write_bytes(b"x")
    return Clip({"flac": scratch / "clip.flac"}, {})


@pytest.mark.parametrize("order", ["source", "source fails", "sound", "sound fails"])
def test_a_source_that_changes_while_it_is_read_is_refused_as_that(order: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(order)
    (tmp_path / "b").write_text("b")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(Rejected, match="changed while it was read") as caught:
        compile_input(
            "k",
            str(tmp_path / "a"),
            None,
            [None, None],
            PRESETS["audio"].to_json(),
            f"{__name__}:changing",
            str(tmp_path / "scratch"),
            audio=str(tmp_path / "b"),
        )
    assert caught.value.reason == "vanished"


def test_a_list_names_a_picture_and_a_sound(tmp_path: Path) -> None:
    """The wav has its beeps elsewhere than the video's own sound; both files are digested, both can change."""
    raw = tmp_path / "raw"
    raw.mkdir()
    video = media.write(media.Spec(video_late=0.4, audio_late=0.4), raw / "v.mp4")
    wav = raw / "other.wav"
    beeps = (0.25, 1.5, 2.75)
    soundfile.write(wav, media.sound(48000, media.SECONDS, beeps), 48000)
    (raw / "list.csv").write_text("path,audio_path\nv.mp4,other.wav\n")

    def rows(**more: object) -> dict[str, object]:
        given = from_raw([str(raw / "list.csv")])
        build(given, RECIPES["jav"], tmp_path / "ds", BuildOptions(workers=1, **more))  # type: ignore[arg-type]
        return pl.read_parquet(tmp_path / "ds" / "manifest.parquet").row(0, named=True)

    row = rows()
    assert (row["path"], row["audio_path"]) == (str(video), str(wav))
    assert (row["source_sha256"], row["audio_sha256"]) == (digest(video), digest(wav))
    assert heard(tmp_path / "ds", row, beeps) == pytest.approx(beeps, abs=1e-3)
    assert verify(tmp_path / "ds", workers=1).defects == []
    beeps = (0.5, 2.0)
    soundfile.write(wav, media.sound(48000, media.SECONDS, beeps), 48000)
    assert rows()["audio_sha256"] != digest(wav)  # published shards stay without --prune
    row = rows(prune=True)
    assert row["audio_sha256"] == digest(wav) and heard(tmp_path / "ds", row, beeps) == pytest.approx(beeps, abs=1e-3)
    # Without the second file the same row has changed, and is no second sample.
    (raw / "list.csv").write_text("path\nv.mp4\n")
    row = rows(prune=True)
    assert row["audio_path"] == str(video) and row["audio_sha256"] is None
    assert pl.read_parquet(tmp_path / "ds" / "manifest.parquet").height == 1
    assert heard(tmp_path / "ds", row, media.BEATS) == pytest.approx(media.BEATS, abs=3e-3)


def heard(dataset: Path, row: dict[str, object], beeps: tuple[float, ...]) -> list[float]:
    with (dataset / "shards" / f"{row['shard']:06d}.tar").open("rb") as tar:
        tar.seek(row["flac_offset"])  # type: ignore[arg-type]
        samples, rate = soundfile.read(io.BytesIO(tar.read(row["flac_size"])), dtype="float32")  # type: ignore[arg-type]
    return media.beep_times(samples, rate, list(beeps))


def test_a_window_takes_the_sound_of_its_time(tmp_path: Path) -> None:
    video = media.write(media.Spec(audio=None), tmp_path / "v.mp4")
    soundfile.write(tmp_path / "s.wav", media.sound(48000, media.SECONDS), 48000)
    rows = [
        {
            "path": str(video),
            "relpath": "v.mp4",
            "audio_path": str(tmp_path / "s.wav"),
            "window_start": start,
            "window_end": end,
        }
        for start, end in ((1.0, 2.5), (2.0, None))
    ]
    build(table(rows), RECIPES["jav"], tmp_path / "ds", BuildOptions(workers=1))
    for row in pl.read_parquet(tmp_path / "ds" / "manifest.parquet").iter_rows(named=True):
        inside = [
            beat - row["clip_start"] for beat in media.BEATS if row["clip_start"] <= beat < (row["clip_end"] or 9)
        ]
        assert heard(tmp_path / "ds", row, tuple(inside)) == pytest.approx(inside, abs=1e-3) and len(inside) == 2


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "unreadable"), (b"", "empty"), (b"no sound at all", "not_media")]
)
def test_a_sound_that_cannot_be_had_refuses_the_row(content: bytes | None, reason: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "v.mp4")
    if content is not None:
        (tmp_path / "s.wav").write_bytes(content)
    (tmp_path / "list.jsonl").write_text('{"path": "v.mp4", "audio_path": "s.wav"}\n')
    build(from_raw([str(tmp_path / "list.jsonl")]), RECIPES["jav"], tmp_path / "ds", BuildOptions(workers=1))
    rejected = pl.read_parquet(tmp_path / "ds" / "rejected.parquet").row(0, named=True)
    assert rejected["reason"] == reason and rejected["path"].endswith("v.mp4") and "s.wav" in rejected["message"]


def test_windows_of_one_film_never_lie_in_two_splits(tmp_path: Path) -> None:
    films = [write_clip(tmp_path / f"{i}.mp4", seconds=0.6, seed=i) for i in range(4)]
    rows = [
        {"path": str(film), "relpath": film.name, "window_start": 0.1 * n, "window_end": 0.1 * n + 0.1}
        for film in films
        for n in range(5)
    ]
    rows += [
        {"path": str(films[0]), "relpath": "named.mp4", "group": "a film", "window_start": 0.55, "window_end": 0.6}
    ]
    rows += [{"path": str(tmp_path / "gone.mp4"), "relpath": "gone.mp4", "group": "lost", "window_start": 1.0}]
    shares = {"train": 0.5, "val": 0.5}
    build(table(rows), RECIPES["jav"], tmp_path / "ds", BuildOptions(workers=1, split=shares, seed=4))
    made = pl.read_parquet(tmp_path / "ds" / "manifest.parquet")
    assert (
        made.height == 21
        and made.group_by("source_sha256", "group").agg(pl.col("split").n_unique())["split"].max() == 1
    )
    assert made["split"].to_list() == [split_of(group, shares, 4) for group in made["group"]]
    assert made.filter(pl.col("relpath") == "named.mp4")["group"].to_list() == ["a film"]
    assert sorted(made.filter(pl.col("relpath") == "1.mp4")["clip_start"]) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    lost = pl.read_parquet(tmp_path / "ds" / "rejected.parquet").row(0, named=True)
    assert (lost["clip_start"], lost["clip_end"], lost["group"]) == (1.0, None, "lost")


def test_javisdits_own_table_becomes_a_dataset_with_its_sounds(tmp_path: Path) -> None:
    """`javisc import --csv` and `javisc build jav`: one relpath in two folders, and one picture with two sounds."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "x.mp4", seconds=1.5, seed=ord(name))
        soundfile.write(tmp_path / name / "x.wav", media.sound(16000, 1.5, (0.25 if name == "a" else 0.75,)), 16000)
    soundfile.write(tmp_path / "other.wav", media.sound(16000, 1.5, (1.0,)), 16000)
    rows = ["path,relpath,audio_path,text"]
    rows += [f"{tmp_path}/{name}/x.mp4,x.mp4,{tmp_path}/{name}/x.wav,{name}" for name in ("a", "b")]
    rows += [f"{tmp_path}/a/x.mp4,x.mp4,{tmp_path}/other.wav,other"]
    (tmp_path / "train_jav.csv").write_text("\n".join(rows) + "\n")
    import_csv([str(tmp_path / "train_jav.csv")], str(tmp_path / "list.parquet"))
    build(from_raw([str(tmp_path / "list.parquet")]), RECIPES["jav"], tmp_path / "ds", BuildOptions(workers=1))
    made = {row["text"]: row for row in pl.read_parquet(tmp_path / "ds" / "manifest.parquet").iter_rows(named=True)}
    assert len(made) == 3 and len({row["key"] for row in made.values()}) == 3
    for text, beep in (("a", 0.25), ("b", 0.75), ("other", 1.0)):
        assert heard(tmp_path / "ds", made[text], (beep,)) == pytest.approx([beep], abs=1e-3)
        assert made[text]["audio_sha256"] == digest(Path(made[text]["audio_path"]))
    assert verify(tmp_path / "ds", workers=1).defects == []


def test_sounds_without_a_digest_are_told_and_made_anew(tmp_path: Path) -> None:
    """What `build audio` once left: no digest. A deleted sound goes with --prune all the same, and the others get theirs."""
    files = sources(tmp_path / "raw", "audio")
    run(tmp_path, RECIPES["audio"])
    for part in (tmp_path / "ds" / ".build" / "parts").glob("*.manifest.parquet"):
        frame = pl.read_parquet(part)
        frame.with_columns(source_sha256=pl.lit(None, pl.String), group=pl.lit(None, pl.String)).write_parquet(part)
    for part in (tmp_path / "ds" / ".build" / "parts").glob("*.json"):  # nor did commits know their tables
        commit = json.loads(part.read_text())
        part.write_text(json.dumps({name: value for name, value in commit.items() if name != "tables"}))
    files[0].unlink()
    done = command("build", "audio", tmp_path / "raw", "--out", tmp_path / "ds", "--workers", 1, "--shard-samples", 1)
    assert done.returncode == 0 and "2 samples have no digest of their source" in done.stderr, done.stderr
    defects = verify(tmp_path / "ds", workers=1).defects
    assert any("3 rows have no source_sha256" in defect and "--prune" in defect for defect in defects)
    rows = run(tmp_path, RECIPES["audio"], prune=True)
    assert dict(rows.select("path", "source_sha256").iter_rows()) == {str(path): digest(path) for path in files[1:]}
