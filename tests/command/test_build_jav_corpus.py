"""`javisc build jav --corpus`: real videos' way with a corpus' captions."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from click.testing import CliRunner

from javisc.cli import cli
from support.raw import write_clip


def test_tavgbench_clips_get_their_captions(tmp_path: Path) -> None:
    root = tmp_path / "raw/TAVGBench"
    for number, name in enumerate(("AAAAAAAAAAA_0_10000", "BBBBBBBBBBB_5000_15000", "CCCCCCCCCCC_0_10000")):
        write_clip(root / f"videos/{name}.mp4", seconds=0.5, seed=number)
    (root / "release_captions_clean.txt").write_text(
        "AAAAAAAAAAA_0_10000.mp4 A <b>noise</b> hums.\nBBBBBBBBBBB_5000_15000.mp4 Another one.\nDDDDDDDDDDD_0_10000.mp4 Gone.\n"
    )
    out = tmp_path / "ds"
    arguments = ["build", "jav", str(tmp_path / "raw"), "--corpus", "tavgbench", "--workers", "2", "--out", str(out)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    manifest = pl.read_parquet(out / "manifest.parquet")
    assert dict(manifest.select("id", "text").iter_rows()) == {
        "AAAAAAAAAAA_0_10000": "A <b>noise</b> hums.",
        "BBBBBBBBBBB_5000_15000": "Another one.",
    }
    assert set(manifest["corpus"]) == {"tavgbench"} and set(manifest["num_frames"]) == {12}
    rejected = pl.read_parquet(out / "rejected.parquet").select("relpath", "reason").rows()
    assert rejected == [("TAVGBench/videos/CCCCCCCCCCC_0_10000.mp4", "no_caption")]
    assert pl.read_parquet(out / "unmatched.parquet")["identity"].to_list() == ["DDDDDDDDDDD_0_10000"]
