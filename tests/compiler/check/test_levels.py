"""`verify` by levels, draws and parts: what each finds, what it reads, how an interrupted one goes on."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.cli import cli
from javisc.compiler.build import BuildOptions, build
from javisc.compiler.check import dataset
from javisc.compiler.check.dataset import Checks, verify
from javisc.compiler.check.kept import Kept
from javisc.compiler.check.sampling import at_most, drawn
from javisc.compiler.check.shard import LEVELS
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError
from support.raw import raw_folder

RECIPE = PRESETS["jav"].replace(short_side=32, encoder_preset="ultrafast")
LIGHT = str(Path(__file__).parents[2] / "support" / "light")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    raw_folder(folder / "raw", 4)
    build(from_raw([str(folder / "raw")]), RECIPE, folder / "ds", BuildOptions(workers=2, shard_samples=1))
    return folder / "ds"


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", LIGHT, prepend=":")  # no DALI, whose import takes seconds


def first(ds: Path) -> dict[str, object]:
    return pl.read_parquet(ds / "manifest.parquet").sort("shard").row(0, named=True)


def rewrite(ds: Path, change: Callable[[bytearray], None], *, agree: bool) -> None:
    """Change shard 0's bytes; agree: also every digest that is written down of them, as one who means it would."""
    tar = ds / "shards" / "000000.tar"
    content = bytearray(tar.read_bytes())
    change(content)
    tar.write_bytes(content)
    if not agree:
        return
    import hashlib
    import zlib

    from javisc.compiler.store.tables import digest_of

    row = first(ds)
    start, size = int(row["mp4_offset"]), int(row["mp4_size"])  # type: ignore[call-overload]
    crc = zlib.crc32(content[start : start + size])
    manifest = pl.read_parquet(ds / "manifest.parquet")
    at = pl.col("key") == row["key"]
    manifest.with_columns(mp4_crc32=pl.when(at).then(crc).otherwise("mp4_crc32")).write_parquet(ds / "manifest.parquet")
    shards = pl.read_parquet(ds / "shards.parquet")
    digest = hashlib.sha256(content).hexdigest()
    shards = shards.with_columns(sha256=pl.when(pl.col("shard") == 0).then(pl.lit(digest)).otherwise("sha256"))
    shards.write_parquet(ds / "shards.parquet")
    header = json.loads((ds / "dataset.json").read_text())
    (ds / "dataset.json").write_text(json.dumps({**header, "digest": digest_of(shards)}))


def spoil_picture(ds: Path, *, agree: bool) -> None:
    row = first(ds)

    def change(content: bytearray) -> None:
        # The last quarter is coded pictures: what stands there decodes to something else, or not at all.
        start, size = int(row["mp4_offset"]), int(row["mp4_size"])  # type: ignore[call-overload]
        content[start + size * 3 // 4 : start + size - 8] = bytes(size - 8 - size * 3 // 4)

    rewrite(ds, change, agree=agree)


#: Damage, and the first level that finds it.
FOUND_AT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard without its end": (
        lambda ds: (ds / "shards/000000.tar").write_bytes((ds / "shards/000000.tar").read_bytes()[:-1024]),
        "sizes",
    ),
    "other bytes of the same size": (lambda ds: spoil_picture(ds, agree=False), "digests"),
    "another source in the manifest": (
        lambda ds: (
            pl.read_parquet(ds / "manifest.parquet")
            .with_columns(source_sha256=pl.lit("0" * 64))
            .write_parquet(ds / "manifest.parquet")
        ),
        "structure",
    ),
    "pictures that do not decode, with digests to match": (lambda ds: spoil_picture(ds, agree=True), "frames"),
}


@pytest.mark.parametrize("damage", FOUND_AT)
def test_each_level_finds_its_damage_and_those_before_it_do_not(sound: Path, tmp_path: Path, damage: str) -> None:
    spoil, least = FOUND_AT[damage]
    shutil.copytree(sound, tmp_path / "ds")
    spoil(tmp_path / "ds")
    at = LEVELS.index(least)
    for level in LEVELS[max(0, at - 1) : at + 1]:
        found = verify(tmp_path / "ds", checks=Checks(level, workers=2)).defects
        assert bool(found) == (level == least), (level, found)
    # A draw of all is all there is, read member by member.
    every = verify(tmp_path / "ds", checks=Checks("frames", sample=1.0, workers=2))
    assert every.drawn == 4 and every.bad == (
        4 if least == "structure" else 1 if damage != "a shard without its end" else 0
    )


@settings(deadline=None, max_examples=20)
@given(
    keys=st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=60),
    share=st.floats(0.001, 1.0),
    seed=st.integers(0, 9),
    count=st.integers(1, 4),
)
def test_parts_draw_what_the_whole_draws(keys: set[str], share: float, seed: int, count: int) -> None:
    whole = drawn(keys, share, seed)
    assert whole <= keys and whole
    ordered = sorted(keys)
    parts = [drawn(ordered[part::count], share, seed) for part in range(count) if ordered[part::count]]
    assert whole <= set().union(*parts)
    assert all(drawn(keys, 1.0, seed) == keys for _ in range(1))
    # Beyond the whole's draw a part takes one at most, so that it is not empty.
    assert len(set().union(*parts) - whole) <= count


@settings(deadline=None, max_examples=30)
@given(seen=st.integers(1, 400), bad=st.integers(0, 5))
def test_the_bound_is_clopper_and_pearsons(seen: int, bad: int) -> None:
    share = at_most(bad, seen)
    if bad >= seen:
        assert share == 1.0
        return
    few = sum(math.comb(seen, i) * share**i * (1 - share) ** (seen - i) for i in range(bad + 1))
    assert few == pytest.approx(0.05, abs=1e-6)
    if bad == 0:
        assert share == pytest.approx(1 - 0.05 ** (1 / seen))


def test_a_draw_reads_its_own_samples_only_and_says_what_it_may_miss(sound: Path, tmp_path: Path) -> None:
    ds = shutil.copytree(sound, tmp_path / "ds")
    keys = pl.read_parquet(ds / "manifest.parquet").select("shard", "key")
    (chosen,) = drawn(keys["key"], 0.001, 7)
    other = next(shard for shard, key in keys.iter_rows() if key != chosen)
    (ds / "shards" / f"{other:06d}.tar").chmod(0)
    content = bytearray((sound / "shards" / f"{other:06d}.tar").read_bytes())
    (ds / "shards" / f"{other:06d}.tar").unlink()
    (ds / "shards" / f"{other:06d}.tar").write_bytes(bytes(len(content)))
    done = CliRunner().invoke(cli, ["verify", str(ds), "--sample", "0.001", "--seed", "7", "--workers", "1"])
    assert done.return_value is None or done.exit_code == 0, done.output
    assert "1 of 4 samples were read, 0 are damaged: with 95 % confidence at most 3 (75.00%) of all are" in done.output
    kept = json.loads((ds / ".verify" / "frames-sample0.001-seed7.json").read_text())
    assert kept["count"] == 0 and kept["drawn"] == 1 and kept["damaged_at_most"] == 3 and kept["finished"]
    assert verify(ds, checks=Checks("digests", sample=1.0, workers=1)).bad == 1
    with pytest.raises(UserError, match="--sample: at --level sizes all sizes are compared anyway"):
        verify(ds, checks=Checks("sizes", sample=0.5))
    with pytest.raises(UserError, match="--sample 1.5: a share above 0 and up to 1"):
        verify(ds, checks=Checks(sample=1.5))


def test_parts_see_every_shard_once_and_the_tables_once(sound: Path, tmp_path: Path) -> None:
    ds = shutil.copytree(sound, tmp_path / "ds")
    for shard in range(4):
        (ds / "shards" / f"{shard:06d}.idx").write_text("no index")
    (ds / "shards" / "000007.tar").touch()
    frame = pl.read_parquet(ds / "rejected.parquet")
    header = json.loads((ds / "dataset.json").read_text())
    (ds / "dataset.json").write_text(json.dumps({**header, "digest": "0"}))
    assert frame.is_empty()
    whole = verify(ds, checks=Checks("digests", workers=2)).defects
    parts = [verify(ds, checks=Checks("digests", part=(part, 3), workers=2)).defects for part in range(3)]
    assert sorted(defect for part in parts for defect in part) == sorted(whole) and len(whole) == 6


def test_a_killed_check_goes_on_and_does_not_trust_what_changed_since(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = shutil.copytree(sound, tmp_path / "ds")
    code = (
        "import sys; from javisc.compiler.check import kept; from javisc.compiler.check.dataset import Checks, verify\n"
        "kept._EVERY = 0.0\nadd = kept.Kept.add\n"
        "def slow(self, *rest):\n    add(self, *rest); print(len(self.shards), flush=True)\n"
        "    if len(self.shards) == 3: import time; time.sleep(60)\n"
        "kept.Kept.add = slow\nverify(sys.argv[1], checks=Checks('digests', workers=1, keep=True))"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", code, str(ds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(3)] == ["1", "2", "3"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    read: list[int] = []
    spread = dataset.spread

    def counted(*given: object, **named: object) -> object:
        for outcome in spread(*given, **named):  # type: ignore[arg-type]
            read.append(outcome.call.tag)
            yield outcome

    monkeypatch.setattr(dataset, "spread", counted)
    # One of those that were found sound is written again meanwhile.
    tar = ds / "shards" / "000001.tar"
    tar.write_bytes(bytes([1]) + tar.read_bytes()[1:])
    os.utime(tar, (time.time() + 5, time.time() + 5))
    found = verify(ds, checks=Checks("digests", workers=1, keep=True))
    assert found.resumed == 2 and sorted(read) == [1, 3]
    assert [defect.partition(":")[0] for defect in found.defects] == ["shards/000001.tar"]
    # It is finished now: the next one begins anew.
    read.clear()
    assert verify(ds, checks=Checks("digests", workers=1, keep=True)).resumed == 0 and sorted(read) == [0, 1, 2, 3]


def test_a_dataset_that_can_only_be_read_is_checked_all_the_same(sound: Path, tmp_path: Path) -> None:
    ds = shutil.copytree(sound, tmp_path / "ds")
    (ds / ".verify").write_text("in the way")
    done = CliRunner().invoke(cli, ["verify", str(ds), "--level", "sizes"])
    assert done.exit_code == 0 and "sound: 4 samples" in done.output and "the result is not kept" in done.output


def test_an_unfinished_check_is_of_its_settings_its_manifest_and_its_files(tmp_path: Path) -> None:
    (tmp_path / "ds/shards").mkdir(parents=True)
    for end in ("tar", "idx"):
        (tmp_path / f"ds/shards/000000.{end}").write_bytes(b"as it was")
    store = Store(str(tmp_path / "ds"), tmp_path / "scratch")
    begun = Kept(store, "one", {"level": "frames"}, "digest", keep=True)
    begun.add(0, [], 0)
    begun.add(1, ["torn"], 1)
    begun.write()
    assert set(Kept(store, "one", {"level": "frames"}, "digest", keep=True).shards) == {"000000"}
    for name, level, manifest, keep in (
        ("two", "frames", "digest", True), ("one", "digests", "digest", True), ("one", "frames", "other", True),
        ("one", "frames", "digest", False),
    ):  # fmt: skip
        assert Kept(store, name, {"level": level}, manifest, keep=keep).shards == {}
    (tmp_path / "ds/shards/000000.idx").write_bytes(b"not as it was")
    assert Kept(store, "one", {"level": "frames"}, "digest", keep=True).shards == {}


def test_another_seed_draws_others_and_a_larger_share_draws_those_of_a_smaller_and_more() -> None:
    keys = [f"k{number}" for number in range(400)]
    small, other, large = drawn(keys, 0.1, 1), drawn(keys, 0.1, 2), drawn(keys, 0.3, 1)
    assert small < large and 20 <= len(small) <= 60 and 90 <= len(large) <= 150 and drawn(keys, 1.0, 1) == set(keys)
    assert len(small & other) < len(small) / 2
    assert len(drawn(keys, 1e-9, 1)) == len(drawn(keys[:1], 1e-9, 1)) == 1 and drawn([], 0.5, 1) == set()
