"""`javisc build prior unpaired` without weights: who sounds like whom, what is published, and what stage 2 reads of it."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data.index.catalog import STRINGS, Catalog
from javisc.trainer.data.sources.pools import NAMES, Pools
from javisc.trainer.use.prior.donors import deranged
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.prior.unpaired import random_phases
from support import compiled
from support.killing import tree

RATE = 16000


def go(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    return result.output


def wave(pool: Path, key: str) -> np.ndarray:
    return soundfile.read(io.BytesIO(Dataset.open(pool).read(key)["flac"]), dtype="float64")[0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips that hiss, each another way: two files of one name in two folders, two windows of one film, one clip without a
    caption."""
    folder = compiled.write(tmp_path_factory.mktemp("clips") / "ds", [40, 50, 36, 45, 60, 52], hiss=True)
    path = folder / "manifest.parquet"
    names = ["a/1.mp4", "b/1.mp4", "2.mp4", "film.mp4", "film.mp4", "3.mp4"]
    texts = ["rain", "Rain ", "a dog", "wind", "a cat", None]
    frame = pl.read_parquet(path).with_columns(relpath=pl.Series(names), text=pl.Series(texts))
    frame.with_columns(texts=pl.concat_list("text")).write_parquet(path)
    return folder


def one_by_one(clips: Sequence[tuple[str, str]], seed: int) -> list[int | None]:
    """The rule of `donors.deranged`, clip by clip."""

    def mark(what: str, text: str) -> bytes:
        return hashlib.sha256(f"other\0{seed}\0{what}\0{text}".encode()).digest()

    def plain(text: str) -> str:
        return " ".join(text.casefold().split())

    said = [plain(text) for _, text in clips]
    order = sorted(range(len(clips)), key=lambda place: (mark("caption", said[place]), mark("clip", clips[place][0])))
    counts: dict[str, int] = {}
    for text in said:
        counts[text] = counts.get(text, 0) + 1
    if len(counts) < 2:
        return [None] * len(clips)
    most = max(counts, key=lambda text: (counts[text], text))
    donors: list[int | None] = [None] * len(clips)
    for at, place in enumerate(order):
        donors[place] = order[(at + counts[most]) % len(order)]
    if 2 * counts[most] > len(order):
        others = [place for place in order if said[place] != most]
        for number, place in enumerate(place for place in order if said[place] == most):
            donors[place] = others[number % len(others)]
        many = [place for place in order if said[place] == most]
        for number, place in enumerate(others):
            donors[place] = many[number % len(many)]
    return donors


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "A ", "\tb"]), max_size=30), st.integers(0, 3))
def test_nobody_gets_a_sound_of_his_own_caption(texts: list[str], seed: int) -> None:
    clips = [(str(number), text) for number, text in enumerate(texts)]
    donors = [None if donor < 0 else donor for donor in deranged(clips, seed).tolist()]
    assert donors == one_by_one(clips, seed)
    texts = [text.casefold().strip() for text in texts]
    if len(set(texts)) < 2:
        assert donors == [None] * len(texts)
        return
    assert all(donor is not None and texts[donor] != text for donor, text in zip(donors, texts, strict=True))
    if 2 * Counter(texts).most_common(1)[0][1] <= len(texts):
        assert sorted(donors) == list(range(len(texts)))  # type: ignore[type-var]


def test_another_seed_is_another_exchange() -> None:
    clips = [(str(number), f"clip {number}") for number in range(20)]
    assert deranged(clips, 0).tolist() != deranged(clips, 1).tolist()


@pytest.mark.parametrize("length", [1, 2, 333, 16000])
def test_random_phases_keep_the_magnitudes_and_spread_the_events(length: int) -> None:
    click = np.zeros(length)
    click[length // 3] = 0.8
    made = random_phases(click, 7)
    assert np.allclose(np.abs(np.fft.rfft(made)), np.abs(np.fft.rfft(click)), atol=1e-9)
    assert length < 300 or np.abs(made).max() < 0.2
    loud = random_phases(np.sign(np.sin(np.arange(4000) * 0.3)), 1)
    assert np.abs(loud).max() <= 0.999 + 1e-9


@pytest.mark.usefixtures("here")
def test_each_captioned_clip_gets_the_sound_of_another_one(dataset: Path, tmp_path: Path) -> None:
    pool, view = tmp_path / "pool", tmp_path / "view"
    said = go(
        "build", "prior", "unpaired", dataset, "--out", pool, "--baseline", "other", "--view", view, "--part-size", 2
    )
    assert "5 samples" in said and "1 refused: no_caption" in said and "5 clips of" in said
    found = {row["key"]: row for row in pl.read_parquet(pool / "manifest.parquet").iter_rows(named=True)}
    texts = dict(pl.read_parquet(dataset / "manifest.parquet").select("key", "text").iter_rows())
    waves = {key: wave(dataset, key) for key in texts}
    for key, row in found.items():
        made = wave(pool, key)
        donor = next(
            other for other, sound in waves.items() if len(sound) == len(made) and np.allclose(sound, made, atol=1e-4)
        )
        assert texts[donor].strip().lower() != texts[key].strip().lower()
        assert row["clip_key"] == key and row["unpaired_seconds"] == row["duration"] == len(made) / RATE
    # Names do not collide: neither those of two folders, nor those of two windows.
    assert len({row["relpath"] for row in found.values()}) == 5
    header = json.loads((pool / "dataset.json").read_text())["prior"]
    assert header == {"stage": "unpaired", "baseline": "other", "seed": 0, "match_duration": False, "weights": None}
    named = dict(pl.read_parquet(view / "manifest.parquet").select("key", "unpaired_audio_path").iter_rows())
    assert {key for key, path in named.items() if path is None} == {"00000005"}, "only where there is a sound"
    go("verify", pool, "--workers", 1)

    catalog = Catalog.open([dataset], strings=(*STRINGS, *NAMES))
    for source in (catalog, Catalog.open([view], strings=(*STRINGS, *NAMES))):
        with Pools(unpaired=pool) as pools:
            pools.check(source)
            assert pools.unpaired is not None
            for label in source.labels(range(6)):
                sound = pools.unpaired.sound(pools.unpaired_name(label))
                key = str(label["key"])
                assert (sound is None) == (key == "00000005")
                assert sound is None or np.allclose(sound.numpy(), wave(pool, key), atol=1e-6)


@pytest.mark.usefixtures("here")
def test_only_what_changed_is_made_again(dataset: Path, tmp_path: Path) -> None:
    pool, said = tmp_path / "pool", []
    settings = {"dataset": str(dataset), "baseline": "phase"}
    options = RunOptions(part_size=2, workers=1)
    run("unpaired", settings, str(pool), options, said.append)
    before = {path.name: path.stat().st_mtime_ns for path in (pool / "shards").iterdir()}
    run("unpaired", settings, str(pool), options, said.append)
    assert [line for line in said if "of them" in line] == [
        "3 parts, 0 of them were there already",
        "3 parts, 3 of them were there already",
    ]
    assert before == {path.name: path.stat().st_mtime_ns for path in (pool / "shards").iterdir()}

    path = tmp_path / "ds/manifest.parquet"  # another caption of one clip: its part alone is made again
    copied = pl.read_parquet(dataset / "manifest.parquet").with_columns(
        text=pl.when(pl.col("key") == "00000003").then(pl.lit("a storm")).otherwise("text")
    )
    path.parent.mkdir()
    for name in ("shards", "shards.parquet", "rejected.parquet", "dataset.json"):
        (path.parent / name).symlink_to(dataset / name)
    copied.write_parquet(path)
    run("unpaired", {**settings, "dataset": str(path.parent)}, str(pool), options, said.append)
    assert said[-1] == "3 parts, 2 of them were there already"
    run("unpaired", {**settings, "seed": 1}, str(pool), options, said.append)
    assert said[-1] == "3 parts, 0 of them were there already"
    fresh = tmp_path / "fresh"
    run("unpaired", {**settings, "seed": 1}, str(fresh), options)
    assert tree(pool) == tree(fresh), "what lay there before leaves no trace"


@pytest.mark.usefixtures("here")
def test_a_damaged_sound_costs_its_clip_alone(dataset: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(dataset / "manifest.parquet")
    offsets = pl.when(pl.col("key") == "00000002").then(pl.col("flac_offset") + 64).otherwise("flac_offset")
    copy = tmp_path / "ds"
    copy.mkdir()
    for name in ("shards", "shards.parquet", "rejected.parquet", "dataset.json"):
        (copy / name).symlink_to(dataset / name)
    frame.with_columns(flac_offset=offsets).write_parquet(copy / "manifest.parquet")
    made = run("unpaired", {"dataset": str(copy), "baseline": "phase"}, str(tmp_path / "pool"), RunOptions(workers=1))
    assert (made.samples, dict(made.rejected)) == (5, {"corrupt": 1})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "give one of --generator PATH, --baseline other and --baseline phase"),
        ("--baseline phase --generator x", "give one of --generator PATH"),
        ("--baseline phase --view {pool}/", "is --out, where the pool goes: give the view another folder"),
    ],
)
def test_mistakes_are_told_in_a_line(dataset: Path, tmp_path: Path, words: str, said: str) -> None:
    pool = tmp_path / "pool"
    line = ["build", "prior", "unpaired", str(dataset), "--out", str(pool), *words.format(pool=pool).split()]
    result = CliRunner().invoke(cli, line)
    assert isinstance(result.exception, UserError) and said in str(result.exception)
    assert not pool.exists(), "nothing is made before"


def test_the_folder_of_something_else_is_left_alone(dataset: Path, tmp_path: Path) -> None:
    settings = {"dataset": str(dataset), "baseline": "phase"}
    with pytest.raises(UserError, match="is a dataset that something else made"):
        run("unpaired", settings, str(dataset))


def test_a_table_without_clips_is_refused(dataset: Path, tmp_path: Path) -> None:
    table = tmp_path / "two.parquet"
    pl.read_parquet(dataset / "manifest.parquet").select("key", "relpath").write_parquet(table)
    for stage, baseline in (("unpaired", "phase"), ("separate", "hpss")):
        with pytest.raises(UserError, match=r"two\.parquet holds no clips: give a dataset of `javisc build jav`"):
            run(stage, {"dataset": str(table), "baseline": baseline}, str(tmp_path / "pool"))


@pytest.mark.usefixtures("here")
def test_shards_that_are_away_are_held_against_no_clip(dataset: Path, tmp_path: Path) -> None:
    copy, view = tmp_path / "ds", tmp_path / "view"
    copy.mkdir()
    for name in ("manifest.parquet", "shards.parquet", "rejected.parquet", "dataset.json"):
        (copy / name).symlink_to(dataset / name)
    for stage, baseline, samples in (("unpaired", "phase", 6), ("separate", "hpss", 18)):
        settings, pool = {"dataset": str(copy), "baseline": baseline}, str(tmp_path / stage)
        with pytest.raises(UserError, match=r"000000\.tar is not there: the manifest's shards were moved or deleted"):
            run(stage, settings, pool)
        (copy / "shards").symlink_to(dataset / "shards")
        assert run(stage, settings, pool).samples == samples, "the same command goes on"
        (copy / "shards").unlink()
    bare = tmp_path / "bare.parquet"  # nobody has a caption: a view of an empty pool names nothing
    pl.read_parquet(dataset / "manifest.parquet").with_columns(text=pl.lit(None, pl.String)).write_parquet(bare)
    said = go("build", "prior", "unpaired", bare, "--out", tmp_path / "none", "--baseline", "other", "--view", view)
    assert "0 samples" in said and "6 refused: no_caption" in said and " 0 clips of" in said


@pytest.mark.usefixtures("here")
def test_a_pool_is_of_one_stage_from_its_first_part_on(dataset: Path, tmp_path: Path) -> None:
    pool = str(tmp_path / "pool")
    with pytest.raises(UserError, match="is not a folder"):
        run("unpaired", {"dataset": str(tmp_path / "mistyped"), "baseline": "phase"}, pool)
    assert run("separate", {"dataset": str(dataset), "baseline": "hpss"}, pool).samples == 18
    before = tree(Path(pool))
    with pytest.raises(UserError, match="was begun by `javisc build prior separate`: give another folder"):
        run("unpaired", {"dataset": str(dataset), "baseline": "phase"}, pool)
    assert tree(Path(pool)) == before


@pytest.mark.usefixtures("here")
def test_a_row_that_names_a_sound_of_elsewhere_is_found_by_its_clip(dataset: Path, tmp_path: Path) -> None:
    pool = str(tmp_path / "pool")
    run("unpaired", {"dataset": str(dataset), "baseline": "phase"}, pool)
    with Pools(unpaired=pool) as pools:
        assert pools.unpaired is not None
        for key, clip in zip(pools.unpaired.shelf.catalog.strings["key"], pools.unpaired.shelf.clips, strict=True):
            label = {"key": clip, "relpath": "v.mp4", "unpaired_audio_path": "/old/unpaired/9.wav"}
            row = pools.unpaired.row(pools.unpaired_name(label))
            assert row is not None and pools.unpaired.shelf.catalog.strings["key"][row] == key
        told = {"key": "00000000", "relpath": "v.mp4", "unpaired_audio_path": f"{pool}/b/1.flac"}
        row = pools.unpaired.row(pools.unpaired_name(told))
        assert row is not None and pools.unpaired.shelf.clips[row] == "00000001", "what the row says comes first"
