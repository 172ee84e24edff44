"""Which rows a run takes, and what is said where there are none: the remedy fits the fault."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl
import pytest

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.catalog import Catalog, split_of
from javisc.trainer.data.sources.sync import SyncBatches, SyncDataOptions
from javisc.trainer.transforms.sync_chain import SyncTransforms
from support import tables

SPLITS = ["train"] * 5 + ["val"] * 3 + [None] * 4


def written(folder: Path, **columns: object) -> Path:
    frame = tables.rows(len(SPLITS)).with_columns(
        split=pl.Series(SPLITS, dtype=pl.String), height=pl.lit(300, pl.Int32), width=pl.lit(300, pl.Int32)
    )
    changed = frame.with_columns(**{name: pl.lit(value) for name, value in columns.items()})
    return tables.dataset(folder, changed.cast(dict(frame.schema)))


def test_rows_without_a_split_are_training_rows_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = written(tmp_path / "ds")
    with caplog.at_level(logging.WARNING):
        assert len(Catalog.open([data], split=split_of("train", True, 0))) == 9
        assert len(Catalog.open([data], split=split_of("train", True, 1))) == 9
        assert len(Catalog.open([data], split=split_of("val", False, 0))) == 3
        assert len(Catalog.open([data])) == 12
    assert [record.getMessage() for record in caplog.records] == [
        "4 of the 9 training rows have no split: they count as 'train'"
    ]


def test_a_dataset_without_splits_trains_and_says_what_validation_lacks(tmp_path: Path) -> None:
    data = written(tmp_path / "ds", split=None)
    assert len(Catalog.open([data], split=split_of("train", True, 0))) == 12
    with pytest.raises(
        UserError, match=r"of 12: 12 not in the split 'val' \(there are without a split 12\); set data.valid_split"
    ):
        Catalog.open([data], split=split_of("val", False, 0))


def test_what_removed_the_rows_is_counted(tmp_path: Path) -> None:
    data = written(tmp_path / "ds")
    where = {"a sound": pl.col("key").str.ends_with("1"), "a picture": pl.col("height") > 300}
    with pytest.raises(
        UserError,
        match=r"no sample is left of 12: 10 without a sound, 2 without a picture; take a dataset whose rows have that$",
    ):
        Catalog.open([data], where, split=split_of("train", True, 0))
    with pytest.raises(
        UserError,
        match=r"of 12: 12 not in .* \(there are train 5, val 3, .* 4\); set data.valid_split \(`javisc eval`: --split, or all\)",
    ):
        Catalog.open([data], split=split_of("trian", False, 0))


@pytest.mark.parametrize(
    ("fps", "crop", "frames", "message"),
    [
        (24.0, 1.6, 200, r"24 frames per second: transforms.crop_len_sec=1.6 .* --fps 25.*crop_len_sec=1.5 or 1.625$"),
        (30.0, 1.25, 200, r"30 frames per second: .*crop_len_sec=1.2 or 1.3$"),
        (25.0, 1.61, 200, r"25 frames per second: .*crop_len_sec=1.6 or 1.64$"),
        (
            25.0,
            1.6,
            40,
            r"no clip of 9 is long enough: .*=1.6 .*=2 need 3.6 s of .* longest picture has 1.60 s",
        ),
    ],
)
def test_a_dataset_that_does_not_suit_a_recipe_is_no_rows_fault(
    fps: float, crop: float, frames: int, message: str, tmp_path: Path
) -> None:
    samples = round(frames * 16000 / fps)
    data = written(tmp_path / "ds", fps=fps, num_frames=frames, num_samples=samples)
    with pytest.raises(UserError, match=message) as caught:
        SyncBatches([data], SyncTransforms(crop_len_sec=crop), SyncDataOptions())
    assert "javisc filter" not in str(caught.value)
