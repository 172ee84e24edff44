"""The invariants of a build: same bytes however it ran, nothing lost, raw media untouched, published or absent."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.build import BuildOptions, BuildResult, build
from javisc.compiler.check.dataset import verify
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.inputs.table import table
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.manifests.schema import MANIFEST_SCHEMA, REJECTED_SCHEMA, SHARDS_SCHEMA
from support.processes import workers_of
from support.raw import AWKWARD, broken_folder, raw_folder, write_clip

RECIPE = PRESETS["jav"].replace(short_side=32, encoder_preset="ultrafast")
TESTS = Path(__file__).resolve().parents[1]


def run(raw: Path | list[Path], out: Path, **options: object) -> BuildResult:
    roots = [str(root) for root in (raw if isinstance(raw, list) else [raw])]
    chosen = BuildOptions(**{"workers": 2, "shard_samples": 5, **options})  # type: ignore[arg-type]
    return build(from_raw(roots, out=str(out)), RECIPE, out, chosen)


def digests(folder: Path) -> dict[str, str]:
    """Digest of every regular file below a folder, or None-like marks for what is no file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def published(out: Path) -> dict[str, str]:
    """What a dataset is made of, but for what only later builds need."""
    return {name: digest for name, digest in digests(out).items() if not name.startswith(".build")}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_folder(tmp_path_factory.mktemp("raw"), 14, seconds=0.5)


@pytest.fixture(scope="module")
def calm(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `raw`, built undisturbed by one worker."""
    out = tmp_path_factory.mktemp("calm") / "ds"
    before = digests(raw)
    result = run(raw, out, workers=1)
    assert result.samples == 14 and not result.rejected and result.shards == 3
    assert digests(raw) == before
    return out


def test_the_dataset_is_whole_and_verifies(calm: Path, raw: Path) -> None:
    defects: list[str] = []
    found = verify(calm, workers=2, report=defects.append)
    assert defects == [] and found.samples == 14
    manifest = pl.read_parquet(calm / "manifest.parquet")
    assert manifest.schema == MANIFEST_SCHEMA
    assert pl.read_parquet(calm / "rejected.parquet").schema == REJECTED_SCHEMA
    shards = pl.read_parquet(calm / "shards.parquet")
    assert shards.schema == SHARDS_SCHEMA and shards["samples"].sum() == 14
    assert manifest.select("shard", "key").rows() == sorted(manifest.select("shard", "key").rows())
    assert (manifest["num_samples"] == (manifest["num_frames"] * 16000 / 24).round()).all()
    assert set(manifest["path"]) == {str(path) for path in raw.rglob("clip *") if path.suffix not in (".txt", ".json")}
    one = manifest.filter(pl.col("id") == "clip 000").row(0, named=True)
    assert one["text"] == "clip number 0" and one["texts"] == ["clip number 0", "and in other words"]
    two = manifest.filter(pl.col("id") == "clip 001").row(0, named=True)
    assert two["texts"] == ["clip 1 in JSON"]
    assert manifest.filter(pl.col("id") == "clip 002")["text"][0] is None
    header = json.loads((calm / "dataset.json").read_text())
    assert header["recipe"] == RECIPE.to_json() and header["counts"]["samples"] == 14
    assert set(os.listdir(calm)) == {
        ".build",
        "dataset.json",
        "manifest.parquet",
        "rejected.parquet",
        "shards.parquet",
        "shards",
    }


def test_two_workers_another_place_and_another_order_give_the_same_bytes(calm: Path, raw: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another mount"
    shutil.copytree(raw, elsewhere)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    # A list in shuffled order, with relative paths, of the same files.
    names = [
        str(path.relative_to(elsewhere)) for path in elsewhere.rglob("clip *") if path.suffix not in (".txt", ".json")
    ]
    random.Random(4).shuffle(names)
    (elsewhere / "list.txt").write_text("\n".join(names) + "\n")
    run(elsewhere / "list.txt", tmp_path / "ds", workers=2, scratch=tmp_path)
    assert digests(tmp_path / "ds" / "shards") == digests(calm / "shards")
    ours, theirs = (
        pl.read_parquet(out / "manifest.parquet").drop("path", "audio_path") for out in (calm, tmp_path / "ds")
    )
    assert ours.equals(theirs)
    assert (tmp_path / "ds" / "dataset.json").read_bytes() == (calm / "dataset.json").read_bytes()


@pytest.mark.slow
def test_kills_of_workers_and_of_the_build_change_nothing(calm: Path, raw: Path, tmp_path: Path) -> None:
    """Seven kills at random moments, four of the whole build and three of a worker, then a resume."""
    out = tmp_path / "ds"
    command = [sys.executable, "-P", "-m", "javisc", "build", "jav", str(raw), "--out", str(out), "--workers", "2"]
    command += ["--shard-samples", "5", "--short-side", "32", "--encoder-preset", "ultrafast"]
    dice = random.Random(11)
    killed = 0
    for attempt in range(60):
        build_process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        victims = "worker" if attempt % 2 else "build"
        until = time.monotonic() + 60
        while build_process.poll() is None and not workers_of(build_process.pid) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 1.2))
        if victims == "build" and build_process.poll() is None:
            build_process.kill()
            killed += 1
        elif workers := [pid for pid, retry in workers_of(build_process.pid) if not retry]:
            os.kill(
                dice.choice(workers), signal.SIGKILL
            )  # its file is tried again, alone; that attempt is left in peace
            killed += 1
            time.sleep(0.3)
            build_process.kill()
        build_process.kill()
        build_process.wait()
        if killed >= 7:
            break
        if (out / "dataset.json").exists():
            shutil.rmtree(out)
    assert killed >= 7
    subprocess.run(command, check=True, capture_output=True)
    assert published(out) == published(calm)


def test_shard_ranges_merge_to_the_same_dataset(calm: Path, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "ds"
    assert run(raw, out, shard_range=(1, 2)).shards_left == 2
    with pytest.raises(UserError, match=r"2 of 3 shards are not built yet \(the first is 0\)"):
        run(raw, out, finish=True)
    run(raw, out, shard_range=(0, 1))
    assert not (out / "manifest.parquet").exists()
    run(raw, out, shard_range=(2, None))
    build(None, RECIPE, out, BuildOptions(finish=True))
    assert published(out) == published(calm)


def test_ranges_run_side_by_side(calm: Path, raw: Path, tmp_path: Path) -> None:
    """As a Slurm array: three processes at once on a dataset that none of them has planned yet."""
    out = tmp_path / "ds"
    command = [sys.executable, "-P", "-m", "javisc", "build", "jav", str(raw), "--out", str(out), "--workers", "1"]
    command += ["--shard-samples", "5", "--short-side", "32", "--encoder-preset", "ultrafast"]
    ranges = ("0:1", "1:2", "2:")
    running = [subprocess.Popen([*command, "--shard-range", part], stderr=subprocess.DEVNULL) for part in ranges]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert sorted(os.listdir(out)) == [".build", "shards"]
    subprocess.run([*command, "--finish"], check=True, capture_output=True)
    assert published(out) == published(calm)


def test_more_inputs_append_and_published_shards_stay(raw: Path, tmp_path: Path) -> None:
    some, out = tmp_path / "some", tmp_path / "ds"
    shutil.copytree(raw / "part 0", some / "part 0")
    run(some, out)
    first = digests(out / "shards")
    shutil.copytree(raw / "part 1", some / "part 1")
    result = run(some, out)
    second = digests(out / "shards")
    assert second.items() >= first.items() and len(second) > len(first)
    assert result.samples == 10 and verify(out, workers=2).defects == []
    assert run(some, out).samples == 10 and digests(out / "shards") == second


def test_changed_and_deleted_inputs_are_told_and_pruned(raw: Path, tmp_path: Path) -> None:
    some, out = tmp_path / "some", tmp_path / "ds"
    shutil.copytree(raw / "part 0", some)
    run(some, out, shard_samples=1)
    first = digests(out / "shards")
    clips = sorted(path for path in some.iterdir() if path.suffix not in (".txt", ".json"))
    clips[0].unlink()
    write_clip(clips[1], seconds=0.6, seed=77)
    os.utime(clips[2])  # a new time alone is no change
    (some / "new.txt").write_text("no clip of that name")
    result = run(some, out, shard_samples=1)
    assert any("1 inputs are changed" in note and repr(str(clips[1])) in note for note in result.notes), result.notes
    assert any("1 inputs are no longer given" in note for note in result.notes)
    assert digests(out / "shards") == first and result.samples == 5
    result = run(some, out, shard_samples=1, prune=True)
    assert result.samples == 4
    manifest = pl.read_parquet(out / "manifest.parquet")
    assert manifest.filter(pl.col("path") == str(clips[1]))["num_frames"].to_list() == [14]
    after = digests(out / "shards")
    assert len(after) == len(first) - 2
    assert sum(first.get(name) != digest for name, digest in after.items()) == 2  # the tar and idx of the changed one
    assert verify(out, workers=2).defects == []
    assert not any("changed" in note for note in run(some, out, shard_samples=1).notes)


def test_a_mended_reject_becomes_a_sample_and_leaves_the_rejects(raw: Path, tmp_path: Path) -> None:
    some, out = tmp_path / "some", tmp_path / "ds"
    shutil.copytree(raw / "part 0", some)
    (some / "broken.mp4").write_bytes(b"not yet")
    assert sum(run(some, out).rejected.values()) == 1
    shards = digests(out / "shards")
    write_clip(some / "broken.mp4", seed=5)
    result = run(some, out)
    assert result.rejected == {} and result.samples == 6
    assert digests(out / "shards").items() >= shards.items()


def test_everything_broken_ends_in_one_table(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    count = broken_folder(folder, next((raw / "part 0").glob("*.mp4")))
    before = digests(folder)
    result = run(folder, tmp_path / "ds", shard_samples=50)
    assert digests(folder) == before
    manifest, rejected = (pl.read_parquet(tmp_path / "ds" / f"{name}.parquet") for name in ("manifest", "rejected"))
    assert manifest.height + rejected.height == count == result.samples + sum(result.rejected.values())
    assert not set(manifest["relpath"]) & set(rejected["relpath"])
    reasons = dict(zip(rejected["relpath"], rejected["reason"], strict=True))
    assert reasons["empty.mp4"] == "empty" and reasons["text.mp4"] == "not_media"
    for name in ("folder.mp4", "dangling.mp4", "self.mp4", "pipe.mp4"):
        assert reasons[name] == "unreadable", name
    good = set(manifest["relpath"])
    assert {*AWKWARD, "folder.mp4/inside.mp4"} - {".mp4"} <= good
    assert any("undecodable" in name for name in good)
    assert all(rejected["message"].is_not_null()) and verify(tmp_path / "ds", workers=2).defects == []


def test_two_roots_with_the_same_names_are_told_apart(raw: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root, seed in ((one, 1), (two, 2)):
        write_clip(root / "a.mp4", seed=seed)
    out = tmp_path / "ds"
    result = run([one, two], out)
    assert result.samples == 2 and any("same" in note or "told apart" in note for note in result.notes)
    again = run([two, one, one / "a.mp4"], tmp_path / "swapped")
    assert again.samples == 2 and digests(out / "shards") == digests(tmp_path / "swapped" / "shards")
    # The folders moved together: nothing is new, nothing is gone.
    (tmp_path / "moved").mkdir()
    one.rename(tmp_path / "moved" / "one")
    two.rename(tmp_path / "moved" / "two")
    shards = digests(out / "shards")
    result = run([tmp_path / "moved" / "one", tmp_path / "moved" / "two"], out)
    assert result.samples == 2 and digests(out / "shards") == shards


def test_the_dataset_inside_the_raw_folder_is_not_scanned(raw: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    out = tmp_path / "deep" / "ds"
    assert run(tmp_path, out).samples == 1
    write_clip(out / "shards" / "trap.mp4")
    assert run(tmp_path, out).samples == 1
    with pytest.raises(UserError, match="is the dataset itself"):
        run(out, out)


def test_another_recipe_or_split_is_refused_in_one_line(calm: Path, raw: Path) -> None:
    other = RECIPE.replace(crf=30)
    with pytest.raises(
        UserError, match=r"another recipe \(crf [0-9.]+ → 30.0\): give the settings it had, or another --out"
    ):
        build(from_raw([str(raw)]), other, calm)
    with pytest.raises(UserError, match="--split"):
        build(from_raw([str(raw)]), RECIPE, calm, BuildOptions(split={"train": 1.0}))


def test_two_builds_of_one_dataset_are_refused_and_a_stale_lock_is_not(calm: Path, raw: Path, tmp_path: Path) -> None:
    from javisc.compiler.store.files import Store
    from javisc.compiler.store.lock import locked

    out = tmp_path / "ds"
    with locked(Store(str(out), tmp_path)), pytest.raises(UserError, match=r"is being built by process \d+ on"):
        run(raw, out)
    (out / ".build" / "lock").write_text("process 1 on nowhere\n")  # left by a process that is gone
    assert run(raw, out, shard_range=(0, 1)).shards_left == 2


def test_windows_of_one_file_are_samples_of_their_own(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "long.mp4", seconds=1.5)
    rows = [
        {"path": str(clip), "relpath": "long.mp4", "window_start": start, "window_end": start + 0.5}
        for start in (0.0, 0.5, 1.0)
    ]
    result = build(table(rows), RECIPE, tmp_path / "ds", BuildOptions(workers=1, split={"train": 0.5, "val": 0.5}))
    manifest = pl.read_parquet(tmp_path / "ds" / "manifest.parquet")
    assert result.samples == 3 and manifest["key"].n_unique() == 3 and manifest["split"].n_unique() == 1
    assert (manifest["num_frames"] == 12).all()


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_cleanly_and_says_how_to_resume(
    raw: Path, tmp_path: Path, number: int, planned: bool
) -> None:
    """From the first worker on, which begins before anything is looked at."""
    out = tmp_path / "ds"
    command = [sys.executable, "-P", "-m", "javisc", "build", "jav", str(raw), "--out", str(out), "--short-side", "32"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (workers := workers_of(process.pid)) or (planned and not (out / ".build" / "plan.parquet").exists()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1].strip().splitlines()[-1]
    how = "run the same command again, it resumes" if planned else "nothing is published: run the same command again"
    assert process.returncode == 130 and how in said, said
    assert not (out / ".work").exists()
    until = time.monotonic() + 5  # what is killed takes a moment to go on a busy machine
    while any(Path(f"/proc/{pid}").exists() for pid, _ in workers):
        assert time.monotonic() < until, "workers outlive their build"
        time.sleep(0.01)


def test_an_output_that_cannot_be_written_is_one_line(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        run(raw, tmp_path / "file" / "ds")
