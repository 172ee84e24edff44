"""`javisc export --energon`: Megatron-Energon's own loaders open the folder, and give each split's samples with their bytes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from support.films import Films


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_energon_reads_pictures_sound_and_words_of_each_split(films: Films, tmp_path: Path) -> None:
    energon = pytest.importorskip("megatron.energon")
    ds = films.copy(tmp_path / "films").dataset
    splits = ["train", "train", "val", "train", None, "val"]
    rows = pl.read_parquet(ds / "manifest.parquet").with_columns(split=pl.Series(splits))
    rows.write_parquet(ds / "manifest.parquet")
    said = run("export", ds, "--energon", tmp_path / "OUT")
    assert "4 train, 2 val →" in said
    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)

    @energon.stateless
    def cook(sample: dict[str, object]) -> dict[str, object]:
        return sample

    class Task(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(cook),)
        decoder = None

    told: dict[str, object] = {"worker_config": worker, "task_encoder": Task(), "batch_size": None}
    train = energon.get_train_dataset(
        tmp_path / "OUT",
        split_part="train",
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
        **told,
    )
    val = energon.get_val_dataset(tmp_path / "OUT", split_part="val", **told)
    for loaded, names in ((train, {"train", None}), (val, {"val"})):
        found = {sample["__key__"].split("/")[-1]: sample for sample in energon.get_loader(loaded)}
        wanted = rows.filter(pl.col("split").fill_null("-").is_in([name or "-" for name in names]))
        assert set(found) == set(wanted["key"])
        for row in wanted.iter_rows(named=True):
            members, sample = Dataset.open(ds).read(row["key"]), found[row["key"]]
            assert (sample["mp4"], sample["flac"]) == (members["mp4"], members["flac"])
            assert sample.get("txt", b"") == (row["text"] or "").encode()


def test_a_folder_that_is_there_is_left_alone(films: Films, tmp_path: Path) -> None:
    from javisc.manifests.energon import export_energon

    (tmp_path / "OUT").mkdir()
    with pytest.raises(UserError, match="is there: give a local folder that is not"):
        export_energon(Dataset.open(films.dataset).located(), str(tmp_path / "OUT"))
    odd = Dataset.open(films.dataset).located().with_columns(split=pl.lit("../x"))
    with pytest.raises(UserError, match="letters, digits and _ are allowed"):
        export_energon(odd, str(tmp_path / "NEW"))
    assert not (tmp_path / "NEW").exists()
