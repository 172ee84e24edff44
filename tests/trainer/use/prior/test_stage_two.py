"""From the demonstration to `javisc train prior-tiny`: stage 2 reads the three pools that `javisc build prior` made of it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.trainer.data.sources import pools


def go(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)
    return result.output


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_prior_training_draws_from_all_three_pools(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = demo / "dataset"
    go("build", "prior", "unpaired", dataset, "--out", tmp_path / "unpaired", "--baseline", "other")
    go("build", "prior", "separate", dataset, "--out", tmp_path / "sources", "--baseline", "hpss")
    go("build", "prior", "masklets", demo / "raw", "--out", tmp_path / "masklets")
    told = pl.read_parquet(tmp_path / "masklets/manifest.parquet").select("num_samples", "silent", "loudness")
    assert set(told.rows()) == {(0, True, None)}, "their films sound, they do not"

    read: dict[str, int] = {}
    whole = pools.Shelf.read

    def counted(self: pools.Shelf, row: int, exts: list[str]) -> dict[str, bytes]:
        name = Path(self.path).name
        read[name] = read.get(name, 0) + 1
        return whole(self, row, exts)

    monkeypatch.setattr(pools.Shelf, "read", counted)
    words = [f"pools.{name}={tmp_path / name}" for name in ("unpaired", "sources", "masklets")]
    words += ["data.buckets.48x64.17=[1.0,2]", "run.steps=3", "run.log_every=1", "run.validate_every=0"]
    words += ["negatives.video_spatial=[add_masklet]", "negatives.audio_spatial=[add_sound_source,del_sound_source]"]
    said = go("train", "prior-tiny", "--data", dataset, "--run", tmp_path / "run", *words)
    assert "done at step 3" in said and set(read) == {"unpaired", "sources", "masklets"}, (said, read)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] == row["loss"] for row in rows if "loss" in row)
