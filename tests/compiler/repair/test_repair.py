"""Lost, damaged and half-written datasets: seen by a build, mended by `javisc repair` to the bytes they had."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.build import BuildOptions, BuildResult, build
from javisc.compiler.check.dataset import verify
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.inputs.table import table
from javisc.compiler.recipe import PRESETS
from javisc.compiler.repair.dataset import repair
from javisc.compiler.store.files import Store
from javisc.manifests.absent import found
from javisc.manifests.errors import UserError
from support.raw import raw_folder, write_clip
from support.soak import local_digests

RECIPE = PRESETS["jav"].replace(short_side=32, encoder_preset="ultrafast")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips and one that is no media."""
    folder = raw_folder(tmp_path_factory.mktemp("raw"), 6)
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    return folder


def run(raw: Path, out: Path, **options: object) -> BuildResult:
    chosen = {"workers": 2, "shard_samples": 2, "split": {"train": 0.5, "val": 0.5}, **options}
    return build(from_raw([str(raw)]), RECIPE, out, BuildOptions(**chosen))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def calm(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calm") / "ds"
    assert run(raw, out).shards == 3
    return out


def flip(path: Path, seed: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


PART = ".build/parts/000001"
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a shard is gone": ("shards/000001.tar", Path.unlink),
    "an index is gone": ("shards/000002.idx", Path.unlink),
    "a shard is cut": ("shards/000000.tar", cut),
    "an index is empty": ("shards/000001.idx", lambda path: path.write_bytes(b"")),
    "rows are gone": (f"{PART}.manifest.parquet", Path.unlink),
    "rejects are gone": (f"{PART}.rejected.parquet", Path.unlink),
    "a commit is gone": (f"{PART}.json", Path.unlink),
    "a commit is no JSON": (f"{PART}.json", lambda path: path.write_bytes(b"{")),
    "bytes flipped": ("shards/000001.tar", flip),
    "an index flipped": ("shards/000001.idx", flip),
    "rows flipped": (f"{PART}.manifest.parquet", flip),
    "the manifest is gone": ("manifest.parquet", Path.unlink),
    "the manifest is damaged": ("manifest.parquet", flip),
    "the header is gone": ("dataset.json", Path.unlink),
    "the header is no JSON": ("dataset.json", lambda path: path.write_bytes(b"{}")),
}
#: What only a comparison of digests sees.
SILENT = {"bytes flipped", "an index flipped", "rows flipped"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_gives_the_bytes_that_were_there(damage: str, calm: Path, tmp_path: Path) -> None:
    out = shutil.copytree(calm, tmp_path / "ds")
    name, spoil = DAMAGES[damage]
    spoil(out / name)
    said: list[str] = list(repair(out, workers=1).lines)
    assert said and local_digests(out) == local_digests(calm)
    assert (out / f"{PART}.json").exists()
    for path in (out / "shards").iterdir():  # what was sound was not written again
        if path.stem not in name:
            assert path.stat().st_mtime_ns == (calm / "shards" / path.name).stat().st_mtime_ns
    assert repair(out, workers=1).lines == ()


@pytest.mark.parametrize("damage", ["a shard is gone", "an index is empty", "rows are gone", "bytes flipped"])
def test_a_build_sees_what_is_lost(damage: str, raw: Path, calm: Path, tmp_path: Path) -> None:
    out = shutil.copytree(calm, tmp_path / "ds")
    name, spoil = DAMAGES[damage]
    spoil(out / name)
    notes = run(raw, out, check=damage in SILENT).notes
    assert any(f"1 published shards are lost or damaged and are made again: {name} " in note for note in notes), notes
    assert local_digests(out) == local_digests(calm)
    assert not any("lost" in note for note in run(raw, out, check=True).notes)


def test_a_shard_whose_sources_changed_is_not_passed_off_as_the_old_one(raw: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "raw", tmp_path / "ds"
    shutil.copytree(raw, mine)
    run(mine, out)
    victim = pl.read_parquet(out / "manifest.parquet").filter(pl.col("shard") == 1)["path"][0]
    kept = Path(victim).read_bytes()
    (out / "shards" / "000001.tar").unlink()
    before = local_digests(out)
    for spoil, why in (
        (lambda path: path.unlink(), "is refused now (vanished"),
        (lambda path: write_clip(path, seconds=0.7, seed=99), "its sources or the tools that encode them have changed"),
    ):
        spoil(Path(victim))
        for attempt in (lambda: repair(out, workers=1), lambda: run(mine, out)):
            with pytest.raises(UserError) as caught:
                attempt()
            assert (
                caught.value.exit_code == 1 and "shard 000001 is lost" in str(caught.value) and why in str(caught.value)
            )
            assert local_digests(out) == before
    assert run(mine, out, prune=True).samples == 6
    assert verify(out, workers=1).defects == []
    Path(victim).write_bytes(kept)


def test_a_refused_input_stays_refused(raw: Path, tmp_path: Path) -> None:
    """Were it mended meanwhile, the shard would have one sample more: a later build takes it, a repair does not."""
    mine, out = tmp_path / "raw", tmp_path / "ds"
    shutil.copytree(raw, mine)
    run(mine, out)
    before = local_digests(out)
    write_clip(mine / "text.mp4", seed=50)
    for name in before:
        if name.endswith(".tar"):
            (out / name).unlink()
    repair(out, workers=2)
    assert local_digests(out) == before


def test_shards_of_another_plan_or_of_other_samples_are_made_again(raw: Path, calm: Path, tmp_path: Path) -> None:
    """A commit says which plan it was made from; with its digest forged, its keys still tell."""
    other = tmp_path / "other"
    build(
        from_raw([str(raw)]),
        RECIPE,
        other,
        BuildOptions(workers=2, shard_samples=2, seed=7, split={"train": 0.5, "val": 0.5}),
    )
    for forged in (False, True):
        out = shutil.copytree(calm, tmp_path / f"ds-{forged}")
        for name in ("shards/000001.tar", "shards/000001.idx", f"{PART}.manifest.parquet", f"{PART}.rejected.parquet"):
            shutil.copyfile(other / name, out / name)
        commit = json.loads((other / f"{PART}.json").read_text())
        if forged:
            commit["plan"] = json.loads((calm / f"{PART}.json").read_text())["plan"]
        (out / f"{PART}.json").write_text(json.dumps(commit))
        if forged:
            with pytest.raises(UserError, match=r"shard 000001 .* run `javisc repair"):
                run(raw, out)
            repair(out, workers=1)
        else:
            assert any("made from another plan" in note for note in run(raw, out).notes)
        assert local_digests(out) == local_digests(calm)


def test_shards_of_two_encoders_do_not_meet_unasked(raw: Path, calm: Path, tmp_path: Path) -> None:
    out = shutil.copytree(calm, tmp_path / "ds")
    settings = json.loads((out / ".build" / "settings.json").read_text())
    settings["tools"]["av"] = "1.2.3"
    (out / ".build" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"built with other tools \(av 1.2.3 → .*--mix-tools"):
        run(raw, out)
    run(raw, out, mix_tools=True)
    assert len(json.loads((out / "dataset.json").read_text())["mixed_tools"]) == 1
    run(raw, out)  # asked once


def test_words_for_nothing_are_mended_without_encoding(raw: Path, tmp_path: Path) -> None:
    """As an older javisc wrote them: in the plan, the tables and KEY.json; the sources may be gone by now."""
    paths = sorted(path for path in raw.rglob("clip *") if path.suffix not in (".txt", ".json"))
    rows = [{"path": str(path), "relpath": path.name, "text": f"clip {i}"} for i, path in enumerate(paths)]
    options = BuildOptions(workers=2, shard_samples=2, split={"train": 0.5, "val": 0.5})
    build(table(rows), RECIPE, tmp_path / "right", options)
    worded = [{**row, **dict.fromkeys(("split", "corpus", "lang", "label", "audio_text"), "None")} for row in rows[:4]]
    out = tmp_path / "ds"
    table([*worded, *rows[4:]]).write_parquet(tmp_path / "inputs.parquet")
    subprocess.run([sys.executable, "-P", "-c", WORDED, str(tmp_path / "inputs.parquet"), str(out)], check=True)
    assert found(pl.scan_parquet(out / "manifest.parquet"))
    said = repair(out, workers=1, compiler="support.faults:none").lines
    assert any("packed anew, nothing encoded" in line for line in said), said
    assert local_digests(out) == local_digests(tmp_path / "right")
    assert verify(out, workers=1).defects == [] and repair(out, workers=1).lines == ()


#: A process of its own: here every dataset that is built is judged, and this one is wrong.
WORDED = """
import sys, polars
from javisc.compiler.build import BuildOptions, build
from javisc.compiler.recipe import PRESETS
from javisc.manifests import absent
absent.WORDS = ()  # what takes such cells for null today
recipe = PRESETS["jav"].replace(short_side=32, encoder_preset="ultrafast")
options = BuildOptions(workers=2, shard_samples=2, split={"train": 0.5, "val": 0.5})
build(polars.read_parquet(sys.argv[1]), recipe, sys.argv[2], options)
"""


def test_the_command(calm: Path, raw: Path, tmp_path: Path) -> None:
    out = shutil.copytree(calm, tmp_path / "ds")
    (out / "shards" / "000001.tar").unlink()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "javisc", "repair", str(out)], capture_output=True, text=True, check=True
    )
    assert "1 published shards are lost or damaged and are made again: shards/000001.tar is missing" in done.stdout
    assert "nothing to repair" in CliRunner().invoke(cli, ["repair", str(out)]).output
    shutil.rmtree(out / ".build")
    caught = CliRunner().invoke(cli, ["repair", str(out)], standalone_mode=False).exception
    assert isinstance(caught, UserError) and "cannot be repaired; build it again" in str(caught)
    half = tmp_path / "half"
    run(raw, half, shard_range=(0, 1))
    Store(str(half), tmp_path).remove("shards", "000000.tar")
    done = CliRunner().invoke(cli, ["repair", str(half)], standalone_mode=False)
    assert done.return_value == 1 and "shards were never built" in done.output
    assert (half / "shards" / "000000.tar").read_bytes() == (calm / "shards" / "000000.tar").read_bytes()
