"""A dataset that javisc built before it had groups, windows and digests of sounds, and wrote "None" into: read, told, added to.

tests/data/first_format.tar.xz is a real one: two captioned clips and a third, with the raw files, built by
`javisc build jav raw --captions captions.csv --split train=0.5,val=0.5 --short-side 32 --encoder-preset ultrafast`, two samples
a shard.
"""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

import polars as pl
import pytest
from command.test_build import SMALL, run

from javisc.compiler.check.dataset import verify
from javisc.compiler.dedupe.repeats import dedupe
from javisc.manifests.filters import filter_table
from javisc.manifests.io import Dataset, scan_many
from javisc.manifests.javisdit import export_csv
from javisc.manifests.schema import LATER, MANIFEST_SCHEMA
from javisc.manifests.splits import assign, split_of
from javisc.trainer.data.index.catalog import Catalog
from support.raw import write_clip

DATA = Path(__file__).parents[1] / "data" / "first_format.tar.xz"
SHARES = {"train": 0.5, "val": 0.5}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_it_is_read_by_every_table_command(old: Path, tmp_path: Path) -> None:
    ds = str(old / "ds")
    assert not LATER & set(Dataset.open(ds).manifest().collect_schema())
    frame = scan_many([ds])[1]
    rows = frame.collect()
    assert set(MANIFEST_SCHEMA) <= set(rows.columns) and rows.height == 3 and rows["group"].null_count() == 3
    assert filter_table(ds, str(tmp_path / "f"), ["num_frames >= 12"]).kept == 3
    assert dedupe([ds, ds], None).kept == 3
    assert export_csv(frame, str(tmp_path / "t.csv"), "jav").rows == 2
    with (tmp_path / "t.csv").open() as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["text of c1", "text of c0"]
    split = dict(assign(frame, SHARES).select("source_sha256", "split").collect().iter_rows())
    assert split == {digest: split_of(digest, SHARES) for digest in rows["source_sha256"]}
    assert len(Catalog.open([ds])) == 3


def test_verify_names_the_words_and_nothing_else(old: Path) -> None:
    defects = verify(old / "ds", workers=1).defects
    columns = ("audio_text", "unpaired_audio_path", "corpus", "split", "label", "lang")
    expected = {f"manifest.parquet: 2 rows hold the text 'None' as {name}, where nothing is known" for name in columns}
    assert {defect.partition(";")[0] for defect in defects} == expected
    assert all(f"`javisc repair {old / 'ds'}` mends it" in defect for defect in defects)


def test_a_clip_is_added_and_the_old_rows_stay(old: Path) -> None:
    write_clip(old / "raw" / "new.mp4", size=(32, 32), seed=9)
    before = pl.read_parquet(old / "ds" / "manifest.parquet")
    command = (
        "build",
        "jav",
        old / "raw",
        "--out",
        old / "ds",
        "--split",
        "train=0.5,val=0.5",
        *SMALL,
        "--shard-samples",
        2,
    )
    # The captions name the files where they lay; without them the rows have changed, and stay without --prune.
    done = run(*command, "--captions", old / "captions.csv")
    assert done.returncode == 2 and "none of its 2 rows belongs to an input" in done.stderr
    done = run(*command)
    assert done.returncode == 0 and "1 inputs are new, 3 are in the plan already" in done.stderr, done.stderr
    rows = pl.read_parquet(old / "ds" / "manifest.parquet")
    assert rows.schema == MANIFEST_SCHEMA and rows.height == 4
    assert rows.filter(pl.col("shard") < 2).select(before.columns).equals(before)
    new = rows.filter(pl.col("shard") == 2).row(0, named=True)
    assert new["relpath"] == "new.mp4" and new["split"] == split_of(new["group"], SHARES)
    assert not [defect for defect in verify(old / "ds", workers=1).defects if "'None'" not in defect]
