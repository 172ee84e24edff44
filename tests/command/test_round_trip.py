"""Build → export → import → build: the same samples, to the byte."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import soundfile
from click.testing import CliRunner

from javisc.cli import cli
from support.raw import raw_folder


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rebuilt(raw: Path, folder: Path, kind: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The manifests of a build, and of a build from its exported table."""
    run("build", kind, raw, "--out", folder / "one", "--workers", "1")
    run("export", folder / "one", "--csv", folder / "t.csv", "--kind", kind)
    run("import", "--csv", folder / "t.csv", "--out", folder / "list.parquet")
    for sidecar in raw.rglob("*.txt"):
        sidecar.unlink()  # from now on captions come from the table
    run("build", kind, folder / "list.parquet", "--out", folder / "two", "--workers", "1")
    one, two = (pl.read_parquet(folder / name / "manifest.parquet") for name in ("one", "two"))
    return one, two


def test_an_exported_table_of_videos_builds_the_same_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw_folder(raw, 3)
    for sidecar in [*raw.rglob("*.txt"), *raw.rglob("*.json")]:
        sidecar.unlink()
    clips = sorted(path for path in raw.rglob("*") if path.is_file())
    (raw / "sub").mkdir()
    clips[0] = clips[0].rename(raw / f'sub/with, "odd" näme{clips[0].suffix}')
    for index, path in enumerate(clips):
        path.with_suffix(".txt").write_text(f'clip {index}, "quoted",\tand more')
    one, two = rebuilt(raw, tmp_path, "jav")
    given = dict(two.select("relpath", "text").iter_rows())
    assert given == {str(path.relative_to(raw)): f'clip {n}, "quoted",\tand more' for n, path in enumerate(clips)}
    assert one.height == 3 and one.equals(two)
    for path in (tmp_path / "one/shards").iterdir():
        assert path.read_bytes() == (tmp_path / "two/shards" / path.name).read_bytes()


def test_an_exported_table_of_sounds_builds_the_same_sounds(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for index in range(3):
        (raw / f"d{index}").mkdir(parents=True)
        tone = [0.3 * ((n * (3 + index)) % 64 - 32) / 32 for n in range(22050)]
        soundfile.write(raw / f"d{index}/tone.wav", tone, 22050)
        (raw / f"d{index}/tone.txt").write_text(f"tone number {index}")
    one, two = rebuilt(raw, tmp_path, "audio")
    same = ["key", "relpath", "path", "text", "shard", "flac_crc32", "num_samples", "loudness", "source_sha256"]
    assert sorted(two["text"]) == [f"tone number {index}" for index in range(3)]
    assert one.height == 3 and one.select(same).equals(two.select(same))
