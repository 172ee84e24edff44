"""A shard of `--allow-silent` in which some clips have sound and some have none: the document's readers open it as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from support.documents import blocks
from support.media import Spec, write

LOOK = """
assert len(heard) == 8 and sum(flac is None for flac in heard) == 4, heard
assert len(rows_read) == 8 and sum(row["flac"] is None for row in rows_read) == 4
assert all(row["mp4"][4:8] == b"ftyp" and row["json"]["num_frames"] for row in rows_read)
pipeline = shards()
pipeline.build()
flac, mp4 = pipeline.run()
assert sum(flac.at(i).size == 0 for i in range(8)) == 4 and all(mp4.at(i).size for i in range(8))
"""


@pytest.mark.parametrize("first", ["silent", "sounding"])
def test_the_documents_readers_open_a_mixed_shard(tmp_path: Path, first: str) -> None:
    pytest.importorskip("nvidia.dali")
    (tmp_path / "raw").mkdir()
    for number in range(8):
        silent = (number % 2 == 0) == (first == "silent")
        spec = Spec(seconds=0.5 + number / 25, audio=None if silent else "aac")
        write(spec, tmp_path / "raw" / f"{number}.mp4")
    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast", allow_silent=True)
    build(from_raw([str(tmp_path / "raw")]), recipe, tmp_path / "DS", BuildOptions(workers=1))
    assert pl.read_parquet(tmp_path / "DS" / "manifest.parquet")["flac_size"].null_count() == 4
    code = next(block.text for block in blocks("docs/dataset.md") if block.text.startswith("import webdataset"))
    code = code.replace("    sample[", "    heard.append(sample.get('flac')); sample[")
    code = code.replace("    row[", "    rows_read.append(row); row[")
    ran = subprocess.run(
        [sys.executable, "-P", "-c", "heard, rows_read = [], []\n" + code + LOOK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
