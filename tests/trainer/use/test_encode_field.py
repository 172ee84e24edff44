"""`javisc encode` without --out: the members and the batches of a dataset of latents, as fields of the dataset of clips."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.check import fields as check_fields
from javisc.compiler.check.dataset import Checks
from javisc.compiler.fields.annotate import take_back
from javisc.compiler.repair.dataset import repair
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError
from javisc.manifests.filters import filter_table
from javisc.manifests.io import Dataset
from javisc.trainer.data.sources.encoded import Encoded, EncodedSource
from javisc.trainer.tasks.latents import source
from javisc.trainer.tasks.registry import load
from javisc.trainer.use import encode_field
from javisc.trainer.use.encode import EncodeOptions, encode
from javisc.trainer.use.encode_field import encode_fields
from javisc.trainer.use.encode_part import everywhere, make
from support import compiled, inline
from support.films import Films
from support.sane import sane

BUCKETS = ["data.buckets.48x64.17=[1.0,2]", "data.buckets.32x32.9=[1.0,3]"]
LENGTHS = [20, 25, 17, 9, 5, 26, 19]
TWICE = EncodeOptions(passes=2, batches=1)


def clips(folder: Path, lengths: list[int]) -> Path:
    """Clips that sound different, two to a shard, the second and the sixth held out."""
    compiled.write(folder, lengths, per_shard=2, hiss=True)
    path = folder / "manifest.parquet"
    split = ["val" if clip in (1, 5) else "train" for clip in range(len(lengths))]
    pl.read_parquet(path).with_columns(split=pl.Series(split)).write_parquet(path)
    return folder


def fields(folder: Path, recipe: str = "prior-tiny", options: EncodeOptions = TWICE, **more: Any) -> list[Any]:
    """Encode into fields; what was said is judged by who wants it."""
    return encode_fields(
        recipe, more.get("overrides", BUCKETS), [str(folder)], more.get("name"), options, more.get("say", print)
    )


def digests(folder: Path) -> dict[str, str]:
    """Of the shards and indices below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".tar", ".idx") and "stage" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def about_fields(folder: Path) -> list[str]:
    """What verify says of fields, down to every tensor."""
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setattr(check_fields, "spread", inline.spread)
        check_fields.verify_fields(Store(str(folder), Path(scratch)), Path(scratch), Checks(), told.append)
    return told


def _interrupted(ds: Path) -> None:
    """Encoding that ends when a part waits for others: with JAVISC_TEST_KILLS a process that is killed, else an exception."""
    if "JAVISC_TEST_KILLS" not in os.environ:
        made = encode_field.Work.made

        def ends(self: Any, *given: Any) -> Iterator[int]:
            yield next(made(self, *given))
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(encode_field.Work, "made", ends)
            fields(ds)
        return
    words = f"-P -m javisc encode {ds} --recipe prior-tiny --passes 2 --batches 1".split()
    command = [sys.executable, *words, *(word for one in BUCKETS for word in ("--set", one))]
    running = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while not (ds / "fields/latents/.build/stage/.build/parts/000000.json").exists() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, all_here: None) -> tuple[Path, Path]:
    """A dataset with two passes as fields, interrupted while a part waited and gone on with, and what --out makes of the same."""
    root = tmp_path_factory.mktemp("fields")
    ds, out = clips(root / "DS", LENGTHS), root / "DS2"
    before = digests(ds)
    assert encode("prior-tiny", [f"data.paths=[{ds}]", *BUCKETS], str(out), TWICE) == 4 + 4 + 2
    _interrupted(ds)
    assert not (ds / "fields/latents/field.json").exists()
    assert next(iter(about_fields(ds)), "").startswith("fields/latents: begun and not finished")
    said: list[str] = []
    told = fields(ds, say=said.append)
    assert "part 0" not in said[: said.index("shard 000000 of field latents")] and "part 3" in said, said
    assert [(one.name, one.samples, one.of) for one in told] == [("latents", 6, 7), ("latents_p1", 4, 7)]
    assert {name: digest for name, digest in digests(ds).items() if name in before} == before
    return ds, out


def test_members_are_those_of_a_dataset_of_latents_and_the_tables_say_of_what(both: tuple[Path, Path]) -> None:
    ds, out = both
    there, rows = Dataset.open(out), pl.read_parquet(ds / "manifest.parquet")
    for row in there.manifest().collect().iter_rows(named=True):
        name = "latents" if row["encoded_pass"] == 0 else "latents_p1"
        assert Dataset.open(ds).field(name).read(row["clip_key"]) == there.read(row["key"])["safetensors"], row["key"]
        shown = rows.filter(key=row["clip_key"]).row(0, named=True)
        for column in ("num_frames", "height", "width", "fps", "num_samples", "clip_first", "clip_seed"):
            assert shown[f"{name}_{column}"] == row[column], (row["key"], column)
        assert shown["num_frames"] == LENGTHS[int(row["clip_key"])] and shown["height"] == 48, "the clip's own stay"
    assert rows["latents_num_frames"].to_list() == [17, 17, 17, 9, None, 17, 17]
    assert rows["latents_p1_height"].to_list() == [48, None, 48, 32, None, None, 48]
    refused = pl.read_parquet(ds / "fields/latents/rejected.parquet").select("key", "reason").rows()
    assert refused == [("00000004", "filtered")]
    assert refused == pl.read_parquet(out / "rejected.parquet").select("key", "reason").rows()
    told = json.loads((ds / "fields/latents_p1/field.json").read_text())
    made, apart = told["settings"]["encoded"], json.loads((out / "dataset.json").read_text())["encoded"]
    assert [made[name] for name in ("networks", "seed")] == [apart[name] for name in ("networks", "seed")]
    assert made["data"]["buckets"] == apart["data"]["buckets"] and made["pass"] == 1
    assert "paths" not in made["data"] and told["made_by"]["set"] == BUCKETS and "torch" in told["made_by"]
    shards = Dataset.open(ds).shards().select(pl.format("{}", "shard").str.zfill(6), "sha256").collect()
    assert told["parents"] == {name: digest for name, digest in shards.iter_rows() if name != "000002"}
    assert about_fields(ds) == [] and not (ds / "fields/latents/.build/stage").exists()


def epochs(settings: list[str], count: int, split: str, *, train: bool) -> Iterator[Any]:
    """Batches of epochs as training takes them, and the sampler's state after each."""
    _, task = load("prior-tiny", settings)
    data = task.recipe.data  # type: ignore[attr-defined]
    found: EncodedSource[Encoded] = EncodedSource(data, split, lambda batch: batch, needs=(), seed=3, train=train)
    try:
        for _ in range(count):
            yield from ((batch, found.state_dict()) for batch in found)
    finally:
        found.close()


def test_training_has_the_batches_of_a_dataset_of_latents_bit_for_bit(both: tuple[Path, Path], tmp_path: Path) -> None:
    ds, out = both
    view = tmp_path / "view.parquet"
    filter_table(str(ds), str(view), ["num_frames > 5"])
    for count, split, train in ((3, "train", True), (1, "val", False)):
        apart = list(epochs([f"data.paths=[{out}]", *BUCKETS], count, split, train=train))
        assert len(apart) == (9 if train else 1)
        for path in (ds, view):
            ours = list(epochs([f"data.paths=[{path}]", "data.latents=latents", *BUCKETS], count, split, train=train))
            for (one, state), (other, wanted) in zip(ours, apart, strict=True):
                assert all(
                    getattr(one, name) == getattr(other, name) for name in ("keys", "seeds", "drawn_from", "fps")
                )
                assert state == wanted and one.tensors.keys() == other.tensors.keys()
                assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_a_run_trains_from_the_field_without_the_networks(both: tuple[Path, Path], tmp_path: Path) -> None:
    words = (
        f"train prior-tiny --data {both[0]} --run {tmp_path / 'run'} data.latents=latents encoders.tiny=false".split()
    )
    words += ["run.steps=2", "run.log_every=1", "run.validate_every=2", "run.checkpoint_every=0"]
    CliRunner().invoke(cli, [*words, *BUCKETS], catch_exceptions=False, standalone_mode=False)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert kinds.count("train") == 2 and "validate" in kinds


@pytest.mark.usefixtures("here")
def test_clips_that_came_later_are_encoded_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds, later = clips(tmp_path / "DS", LENGTHS[:4]), clips(tmp_path / "LATER", LENGTHS)
    fields(ds, "audio-tiny", EncodeOptions())
    before = digests(ds / "fields")
    assert len(before) == 4
    shutil.copytree(later, ds, dirs_exist_ok=True)  # as a build would add them: the first shards are the same
    asked: list[int] = []
    wanted = encode_field.Work.made

    def made(self: Any, parts: Any, *given: Any) -> Iterator[int]:
        asked.extend(place for places in given[-1].values() for place in places)
        return wanted(self, parts, *given)

    monkeypatch.setattr(encode_field.Work, "made", made)
    (told,) = fields(ds, "audio-tiny", EncodeOptions())
    assert (told.samples, told.of, len(asked)) == (6, 7, 2), "of three new clips no bucket takes one"
    after = digests(ds / "fields")
    assert {name: after[name] for name in before} == before and len(after) == 8 and about_fields(ds) == []


@pytest.mark.usefixtures("here")
def test_from_a_damaged_shard_back_to_the_bytes_it_had(films: Films, tmp_path: Path) -> None:
    ds = films.copy(tmp_path / "films").dataset
    plain = pl.read_parquet(ds / "manifest.parquet")
    asked = ["data.buckets.48x64.17=[1.0,2]", "data.train_split=null", "data.valid_split=null"]
    said: list[str] = []
    fields(ds, "jav-tiny", EncodeOptions(), overrides=asked, name="small", say=said.append)
    assert said[0] == "field small: 2 shards to make, of 1 parts" and said[-1] == "shard 000001 of field small"
    assert sane(ds, media=0)["small_safetensors_size"].null_count() == 0
    good = digests(ds / "fields")
    with (ds / "fields/small/000001.tar").open("r+b") as shard:
        shard.seek(2000)
        shard.write(b"\xff\xff")
    lines = [line for line in repair(ds, workers=1).lines if "small" in line]
    assert len(lines) == 1 and "1 shards were lost or damaged (000001) and are taken out" in lines[0]
    words = lines[0].partition("to make them again: ")[2]
    assert "--as=small" in words and "'--set=data.buckets.48x64.17=[1.0,2]'" in words
    assert about_fields(ds) == [] and sane(ds, media=0)["small_safetensors_size"].null_count() == 2
    done = CliRunner().invoke(cli, shlex.split(words)[1:], catch_exceptions=False, standalone_mode=False)
    assert f"field small of {ds}: latents of 6 of 6 clips" in done.output
    assert digests(ds / "fields") == good and about_fields(ds) == []
    with pytest.raises(
        UserError, match=r"field small of .* other settings \(seed: 42 → 7\): set them back, give anoth"
    ):
        fields(ds, "jav-tiny", EncodeOptions(), overrides=[*asked, "seed=7"], name="small")
    take_back(str(ds), "small")
    assert pl.read_parquet(ds / "manifest.parquet").equals(plain) and not (ds / "fields").exists()


def test_a_part_tells_which_of_its_clips_it_lost(both: tuple[Path, Path], tmp_path: Path) -> None:
    every = ["data.train_split=null", "data.valid_split=null"]
    recipe, _ = load("audio-tiny", [f"data.paths=[{both[0]}]", *BUCKETS, *every])
    part = {"number": 0, "split": None, "train": True, "turn": 0, "first": 0, "last": 4, "clips": 6}
    at = {"settings": everywhere(recipe), "part": part, "device": "cpu", "threads": 1}
    assert make(**at, out=str(tmp_path / "all"), items=[(n, n) for n in range(6)], whole=6, lost=[])
    order = pl.read_parquet(tmp_path / "all/.build/parts/000000.manifest.parquet")["clip_key"]
    assert make(**at, out=str(tmp_path / "some"), items=[(0, 3), (1, 5)], whole=2, lost=[(1, "crashed", "boom")])
    parts = tmp_path / "some/.build/parts"
    kept = pl.read_parquet(parts / "000000.manifest.parquet")["clip_key"].to_list()
    lost = pl.read_parquet(parts / "000000.rejected.parquet").select("key", "reason").rows()
    assert len(kept) == 1 and len(lost) == 1 and lost[0][1] == "crashed" and {kept[0], lost[0][0]} <= set(order)
    assert kept[0] != lost[0][0]


def test_mistakes_are_told(both: tuple[Path, Path], tmp_path: Path) -> None:
    ds, out = both
    filter_table(str(ds), str(tmp_path / "view.parquet"), ["num_frames > 5"])
    with pytest.raises(UserError, match="is a view or a table, and latents become a field of the dataset that"):
        fields(tmp_path / "view.parquet")
    with pytest.raises(UserError, match="data.train_split=null takes the clips of data.valid_split, too"):
        fields(ds, "audio-tiny", EncodeOptions(), overrides=[*BUCKETS, "data.train_split=null"], name="every")
    with pytest.raises(UserError, match="--as 'Latents': a field's name is a-z"):
        fields(ds, name="Latents")
    told = CliRunner().invoke(
        cli, ["encode", str(ds), "--recipe", "audio", "--out", "X", "--as", "y"], standalone_mode=False
    )
    assert "--as names a field of DS, and --out makes a dataset beside it" in str(told.exception)
    data = load("prior-tiny", [f"data.paths=[{ds}]", "data.latents=other", *BUCKETS])[0].data  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"data.latents=other: .* has no such field \(it has latents, latents_p1\)"):
        source(data, "train", seed=0)
    data.latents, data.paths = "latents", [str(out)]
    with pytest.raises(UserError, match="is a dataset of latents itself: leave data.latents out"):
        source(data, "train", seed=0)
