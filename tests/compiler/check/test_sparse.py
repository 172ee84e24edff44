"""Members that are huge on paper: `verify` says what is wrong in little memory, and judges a long but sound member to its end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from javisc.compiler.check import shard as checking
from javisc.compiler.check.clip import flac_defects, mp4_defects
from javisc.compiler.check.part import Part, stream_of
from javisc.compiler.check.shard import packed, verify_shard
from javisc.compiler.recipe import PRESETS
from javisc.compiler.store.shard import header
from javisc.manifests.schema import MANIFEST_SCHEMA
from support.films import Films
from support.processes import before_others

HUGE = 600_000_000  # above what is tried with readers that take a member whole


def sparse(folder: Path, extension: str) -> dict[str, object]:
    """A shard of one member of 600 MB that takes 8 KiB of disk, and a manifest that agrees. Returns its row."""
    (folder / "shards").mkdir(parents=True)
    tar = folder / "shards/000000.tar"
    with tar.open("wb") as out:
        out.write(header(f"k.{extension}", HUGE))
        out.seek(512 + HUGE + -HUGE % 512)
        out.write(bytes(1024))
    (folder / "shards/000000.idx").write_text("v1.2 1\n")
    row = {"key": "k", "shard": 0, "num_frames": 24, "num_samples": 1 << 40, "audio_fps": 16000, "channels": 1}
    row |= {f"{extension}_offset": 512, f"{extension}_size": HUGE, f"{extension}_crc32": 0}
    columns = {**MANIFEST_SCHEMA, **{name: pl.Int64() for name in row if name not in MANIFEST_SCHEMA}}
    pl.DataFrame([row], columns).write_parquet(folder / "manifest.parquet")
    assert tar.stat().st_blocks * 512 < 100_000
    return {"shard": 0, "samples": 1, "bytes": tar.stat().st_size, "sha256": "0" * 64, "idx_sha256": "0" * 64}


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["flac", "mp4", "json", "safetensors"])
def test_a_sparse_member_takes_no_memory(tmp_path: Path, extension: str) -> None:
    row = sparse(tmp_path, extension)
    code = (
        "import json, sys\n"
        "import polars as pl\n"
        "from support.peak import peak\n"
        "from javisc.compiler.check.shard import packed, verify_shard\n"
        "row, recipe, folder = json.loads(sys.argv[1])\n"
        "before = peak()\n"
        "rows = packed(pl.read_parquet(folder + '/manifest.parquet'))\n"
        "found = verify_shard(folder, row, rows, recipe, 'frames', False, None)['defects']\n"
        "grown = peak() - before\n"
        "print(json.dumps([found, grown]))\n"
    )
    given = json.dumps([row, PRESETS["jav"].to_json(), str(tmp_path)])
    place = {**os.environ, "PYTHONPATH": before_others(Path(__file__).parents[2])}
    command = [sys.executable, "-P", "-c", code, given]
    done = subprocess.run(command, capture_output=True, text=True, env=place, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    defects, grown = json.loads(done.stdout)
    assert grown < 200_000, f"{grown} kB"
    assert any(f"k.{extension}" in defect for defect in defects), defects


def test_a_part_is_the_bytes_of_the_file(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "f").write_bytes(content)
    part = Part(tmp_path / "f", 777, 50_000)
    assert stream_of(part).read() == content[777:50_777] == stream_of(part).read() and len(part) == 50_000
    part.seek(-10, io.SEEK_END)
    assert part.read(100) == content[50_767:50_777] and part.read(1) == b""
    with pytest.raises(OSError, match="before"):
        part.seek(-1)


def test_long_members_are_judged_as_short_ones(films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit below every clip, a sound shard has no defect and a damaged one the same as ever."""
    monkeypatch.setattr(checking, "WHOLE", 100)
    monkeypatch.setattr(checking, "_readers", lambda *found: iter(()))
    copy = films.copy(tmp_path / "films").dataset
    header_row = pl.read_parquet(copy / "shards.parquet").row(0, named=True)
    recipe = json.loads((copy / "dataset.json").read_text())["recipe"]

    def found() -> list[str]:
        rows = packed(pl.read_parquet(copy / "manifest.parquet").filter(pl.col("shard") == 0))
        defects: list[str] = verify_shard(str(copy), header_row, rows, recipe, "frames", False, None)["defects"]
        return defects

    assert found() == []
    row = pl.read_parquet(copy / "manifest.parquet").filter(pl.col("shard") == 0).row(0, named=True)
    tar = bytearray((copy / "shards/000000.tar").read_bytes())
    tar[row["mp4_offset"] + row["mp4_size"] // 2] ^= 0x5A
    (copy / "shards/000000.tar").write_bytes(tar)
    assert any(f"{row['key']}.mp4: offset, size or CRC-32" in defect for defect in found())


def test_streams_and_bytes_are_judged_alike(films: Films) -> None:
    rows = pl.read_parquet(films.dataset / "manifest.parquet")
    row = rows.row(0, named=True)
    recipe = PRESETS["jav"]
    path = films.dataset / f"shards/{row['shard']:06d}.tar"
    for end, judge in (("mp4", mp4_defects), ("flac", flac_defects)):
        part = Part(path, row[f"{end}_offset"], row[f"{end}_size"])
        wrong = {**row, "num_frames": 3, "num_samples": 5}
        assert list(judge(part, row, recipe)) == [] and part.crc32() == row[f"{end}_crc32"]
        assert (
            list(judge(part, wrong, recipe))
            == list(judge(path.read_bytes()[part._offset :][: len(part)], wrong, recipe))
            != []
        )


def test_a_reader_is_tried_without_torch_and_whole_for_who_comes_later(films: Films) -> None:
    """A check costs no import of torch; loaders of the same process get webdataset's as they are."""
    code = (
        "import sys, polars as pl\n"
        "from javisc.compiler.check.shard import packed, verify_shard\n"
        "row = pl.read_parquet(sys.argv[1] + '/shards.parquet').row(0, named=True)\n"
        "rows = packed(pl.read_parquet(sys.argv[1] + '/manifest.parquet').filter(pl.col('shard') == 0))\n"
        "for level in ('structure', 'frames'):\n"
        "    assert not verify_shard(sys.argv[1], row, rows, None, level, False, None)['defects']\n"
        "assert 'torch' not in sys.modules\n"
        "import webdataset, torch.utils.data as data\n"
        "tar = [f'{sys.argv[1]}/shards/000000.tar']\n"
        "found = data.DataLoader(webdataset.WebDataset(tar, shardshuffle=False), batch_size=None, num_workers=1)\n"
        "print(sum(1 for _ in found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(films.dataset)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "4", done.stderr
