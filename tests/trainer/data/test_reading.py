"""Every setting of reading and framing reaches the loader, from the command line's own words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.colour import ColourJitter
from javisc.trainer.data.bytes.reader import ReaderOptions
from javisc.trainer.data.sources.clips import ClipSource
from javisc.trainer.data.sources.sync import SyncBatches
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.tasks.dit_recipe import DiTRecipe
from javisc.trainer.tasks.selector import SelectorTask
from javisc.trainer.tasks.sync import SyncRecipe
from support import compiled

#: Each setting of data.reader, in the words of the command line, and what the reader is to be told.
READER = {
    "mode=whole": ("mode", "whole"),
    "cache=/tmp/shards": ("cache", Path("/tmp/shards")),
    "cache_gb=1.5": ("cache_bytes", 1_500_000_000),
    "retries=7": ("retries", 7),
    "backoff=0.5": ("backoff", 0.5),
    "threads=3": ("threads", 3),
    "open_files=5": ("open_files", 5),
    "verify=false": ("verify", False),
    "storage_options={endpoint_url: 'http://127.0.0.1:9', anon: true}": (
        "storage_options",
        {"endpoint_url": "http://127.0.0.1:9", "anon": True},
    ),
}
PICTURE = [
    "crop=random", "resize=none", "antialias=true", "mirror=0.5", "brightness=0.1", "contrast=0.2", "saturation=0.3",
    "hue=0.04", "colour_share=0.9",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.write(tmp_path_factory.mktemp("data") / "ds", [60] * 4)


def said(*more: str) -> list[str]:
    return [*(f"data.reader.{words}" for words in READER), "data.threads=3", "data.ahead=4", "data.ready=5", *more]


def check(options: Any) -> None:
    assert {field.name for field in dataclasses.fields(ReaderOptions)} == {name for name, _ in READER.values()}
    for name, value in READER.values():
        assert getattr(options.reader, name) == value, name
    assert (options.threads, options.ahead, options.ready) == (3, 4, 5)


def test_all_of_it_reaches_the_loader_of_clips(dataset: Path) -> None:
    words = said(f"data.paths=[{dataset}]", *(f"data.picture.{words}" for words in PICTURE))
    words.append("data.buckets={32x48: {'17': [1.0, 2]}}")
    data = load_recipe("jav-tiny", DiTRecipe, words).data
    source, held = (ClipSource(data, None, seed=1, train=train) for train in (True, False))
    try:
        for made in (source, held):
            check(made.loader.options)
            assert (made.loader.options.resize, made.loader.options.graph.antialias) == ("none", True)
        options = source.loader.options
        assert (options.crop, options.graph.colour) == ("random", ColourJitter(0.1, 0.2, 0.3, 0.04, 0.9))
        assert source.loader.sampler.options.mirror == 0.5
        # What is held out is looked at as it is.
        assert (held.loader.options.crop, held.loader.options.graph.colour) == ("centre", None)
        assert held.loader.sampler.options.mirror == 0.0
    finally:
        source.close()
        held.close()


def test_all_of_it_reaches_the_sync_models(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("sync-demo", SyncRecipe, said(f"data.paths=[{dataset}]", "run.validate_every=0"))
    seen: list[Any] = []
    monkeypatch.setattr(SyncBatches, "__init__", lambda self, paths, transforms, options, **_: seen.append(options))
    SelectorTask(recipe, 21).source(0, 1)
    check(seen[0])


def test_defaults_change_nothing() -> None:
    data = load_recipe("jav-tiny", DiTRecipe).data
    assert data.reader.options() == ReaderOptions()
    assert data.picture.colour() is None and data.picture.mirror == 0 and data.picture.crop == "centre"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data.reader.mode=whole", "add data.reader.cache=FOLDER"),
        ("data.reader.mode=half", "data.reader.mode"),
        ("data.picture.crop=left", "data.picture.crop"),
        ("data.picture.mirror=1.5", "data.picture.mirror"),
    ],
)
def test_what_is_not_allowed_is_said_by_its_name(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("jav-tiny", DiTRecipe, [words]).data.reader.options()


def test_whole_shards_are_kept_where_the_recipe_says(dataset: Path, tmp_path: Path) -> None:
    words = [
        f"data.paths=[{dataset}]", "data.reader.mode=whole", f"data.reader.cache={tmp_path / 'kept'}",
        "data.buckets={32x48: {'17': [1.0, 2]}}", "data.mel_padding=silence",
    ]  # fmt: skip
    source = ClipSource(load_recipe("jav-tiny", DiTRecipe, words).data, None, seed=1)
    try:
        next(iter(source))
    finally:
        source.close()
    kept = [path for path in (tmp_path / "kept").rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    assert len(kept) == 1
