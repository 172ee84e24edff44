"""The unpaired sound that a JavisDiT table names reaches the manifest of a build, and no shard depends on it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from support.media import Spec, write


@pytest.mark.parametrize("unpaired", ["/sounds/a.wav"])
def test_a_listed_unpaired_sound_reaches_the_manifest(tmp_path: Path, unpaired: str) -> None:
    clip = write(Spec(fps="24"), tmp_path / "clip.mp4")
    shards = []
    for name, columns in (("with", {"unpaired_audio_path": [unpaired]}), ("without", {})):
        pl.DataFrame({"path": [str(clip)], "text": ["a beep"], **columns}).write_csv(tmp_path / f"{name}.csv")
        out = tmp_path / name
        inputs = from_raw([str(tmp_path / f"{name}.csv")], captions=None)
        build(inputs, PRESETS["jav"], out, BuildOptions(workers=1))
        row = pl.read_parquet(out / "manifest.parquet").row(0, named=True)
        assert row["unpaired_audio_path"] == (unpaired if columns else None)
        shards.append((out / "shards" / "000000.tar").read_bytes())
    assert shards[0] == shards[1]
