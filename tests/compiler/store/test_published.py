"""Published or absent: every file of a dataset is flushed, renamed, and its folder flushed; commits come after what they name."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.compiler.run.packing import pack
from javisc.compiler.store.commits import Parts
from javisc.compiler.store.files import Store
from javisc.manifests.files import publish_many, published_folder
from javisc.manifests.files import published as publish
from javisc.manifests.io import write_header, write_table
from support.raw import write_clip
from support.recorded import published, recorded
from support.tables import dataset, rows


def test_a_file_is_flushed_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as steps:
        with publish(tmp_path / "new folder/file") as temporary:
            temporary.write_text("content")
        write_table(pl.DataFrame({"a": [1]}), tmp_path / "table.parquet")
        write_header(tmp_path / "dataset.json", {"kind": "view"})
        publish_many({tmp_path / name: name.encode() for name in ("one/a", "one/b", "two/c")})
    names = [Path(path).name for path in published(steps)]
    assert names == ["file", "table.parquet", "dataset.json", "a", "b", "c"]
    renamed = [number for number, (what, _) in enumerate(steps) if what == "rename"][-3:]
    assert [what for what, _ in steps[renamed[0] - 3 : renamed[-1] + 3]] == ["flush"] * 3 + ["rename"] * 3 + [
        "flush"
    ] * 2
    assert (tmp_path / "new folder/file").read_text() == "content"


def test_what_fails_leaves_neither_name_nor_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")
    with recorded(monkeypatch) as steps, pytest.raises(ZeroDivisionError), publish(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert published(steps) == [] and [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_shard_is_flushed_with_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/k.flac").write_bytes(b"sound")
    with recorded(monkeypatch) as steps:
        pack(
            str(tmp_path / "ds"),
            3,
            [{"key": "k", "json": "{}\n"}],
            str(tmp_path / "scratch"),
            str(tmp_path / "uploads"),
        )
    assert {Path(path).name for path in published(steps)} == {"000003.tar", "000003.idx"}


def test_a_build_publishes_its_tables_after_its_shards_and_its_header_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "raw/a.mp4", size=(32, 32))
    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast")
    with recorded(monkeypatch) as steps:
        build(from_raw([str(tmp_path / "raw")]), recipe, tmp_path / "ds", BuildOptions(workers=1))
    names = [str(Path(path).relative_to(tmp_path / "ds")) for path in published(steps)]
    order = [".build/plan.parquet", ".build/parts/000000.json", "manifest.parquet", "dataset.json"]
    assert sorted(order, key=names.index) == order and names[-1] == "dataset.json", names
    assert names.index(".build/parts/000000.manifest.parquet") < names.index(".build/parts/000000.json")


def test_a_folder_is_flushed_with_all_in_it_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as steps, published_folder(tmp_path / "best") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "weights").write_text("one")
        (temporary / "sub/more").write_text("two")
    assert published(steps) == [str(tmp_path / "best")]
    before = {path for what, path in steps[: [what for what, _ in steps].index("rename")] if what == "flush"}
    assert {str(temporary / name) for name in ("weights", "sub", "sub/more")} <= before


def test_a_shard_is_forgotten_by_its_commit_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in between leaves files that say nothing, and never a commit of files that are gone."""
    store = Store(str(dataset(tmp_path / "ds", rows(3))), tmp_path / "scratch")
    removed: list[str] = []
    real = Store.remove
    monkeypatch.setattr(Store, "remove", lambda self, *parts: (removed.append("/".join(parts)), real(self, *parts))[1])
    Parts(store).remove(0)
    assert removed[0] == ".build/parts/000000.json" and removed[-1] == "shards/000000.tar" and len(removed) == 5
    assert not any(
        path.is_file() for folder in ("shards", ".build/parts") for path in (tmp_path / "ds" / folder).iterdir()
    )
