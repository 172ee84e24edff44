"""Storage that fails: retried, then the build stops; no file pays for it, and the bytes are the undisturbed build's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.run.engine import COMPILERS
from javisc.manifests.environment import Unavailable, is_away, patiently
from javisc.manifests.errors import UserError
from support.faulty_store import FaultyProxy, s3_server
from support.raw import raw_folder, write_clip
from support.sane import sane
from support.soak import ENVIRONMENT, build, local_digests, soak_folder, soak_s3

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_builds_beside_failing_storage_end_in_the_undisturbed_bytes(kind: str, tmp_path: Path) -> None:
    """A slice; support.soak runs fifty."""
    if kind == "s3":
        pytest.importorskip("moto")
        runs = soak_s3(tmp_path, 2, seed=3)
    else:
        runs = soak_folder(tmp_path, 2, kind, seed=3)
    assert [run.wrong for run in runs] == [None, None]
    assert all(run.faults for run in runs)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultyProxy, Path]]:
    """A proxy before an S3 server whose bucket `box` holds three clips, and what an undisturbed build makes of them."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    folder = tmp_path_factory.mktemp("stored")
    raw = raw_folder(folder / "raw", 3)
    with s3_server() as address, FaultyProxy(address) as proxy:
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        fs.mkdir("box")
        fs.put(f"{raw}/", "box/raw/", recursive=True)
        assert build("s3://box/raw", str(folder / "calm"))[0] == 0
        yield proxy, folder / "calm"


@pytest.mark.parametrize("fault", ["403", "503", "cut"])
def test_a_store_that_always_fails_stops_the_build_in_one_line(
    fault: str, stored: tuple[FaultyProxy, Path], tmp_path: Path
) -> None:
    """From the listing on, and only while sources are read; then the same command gives what an undisturbed build gives."""
    (store, calm), out = stored, tmp_path / "ds"
    where = {"AWS_ENDPOINT_URL": store.address, "JAVISC_PATIENCE": "0.3"}
    store.faults, store.share = (fault,), 1.0
    code, said = build("s3://box/raw", str(out), **where)
    assert code == 1 and said.startswith("javisc: ") and "s3://box/raw" in said, said
    assert not list(out.rglob("*.parquet"))
    store.only, store.share = "part%20", 1.0
    code, said = build("s3://box/raw", str(out), **where)
    assert code == 1 and said.startswith("javisc: ") and "run the same command again" in said, said
    assert not list(out.rglob("*.rejected.parquet"))
    store.only, store.share = "", 0.0
    assert build("s3://box/raw", str(out), **where)[0] == 0
    assert local_digests(out) == local_digests(calm)


def test_an_object_that_is_deleted_is_the_input_s_fault(stored: tuple[FaultyProxy, Path], tmp_path: Path) -> None:
    """Its neighbours are there, so the store answers and the object is gone."""
    import s3fs

    listing = tmp_path / "list.csv"
    names = sorted(s3fs.S3FileSystem(use_listings_cache=False).find("box/raw"))
    media = [name for name in names if not name.endswith((".txt", ".json"))]
    listing.write_text("path\n" + "".join(f"s3://{name}\n" for name in media))
    command = [sys.executable, "-P", "-c", GONE, str(listing), media[0], str(tmp_path / "ds")]
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT | {"AWS_ENDPOINT_URL": stored[0].address})
    rejected = pl.read_parquet(tmp_path / "ds" / "rejected.parquet")
    assert rejected.select("path", "reason").rows() == [(f"s3://{media[0]}", "vanished")]
    sane(tmp_path / "ds", inputs=len(media), split=())


GONE = """
import sys, s3fs
from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
def inputs(folder):
    table = from_raw([sys.argv[1]])(folder).collect()
    s3fs.S3FileSystem().rm_file(sys.argv[2])
    return table.lazy()
build(inputs, PRESETS["jav"].replace(short_side=32), sys.argv[3], BuildOptions(workers=1))
"""


def test_a_folder_that_went_away_does_not_change_the_plan(tmp_path: Path) -> None:
    """Half the inputs lie on a mount that is lost between a build's two halves; --prune says that they were deleted."""
    raw = tmp_path / "raw"
    for index in range(4):
        write_clip(raw / f"vol{index % 2}" / f"{index}.mp4", seed=index)
    out, away = tmp_path / "ds", tmp_path / "away"
    command = ["build", "jav", str(raw), "--out", str(out), "--shard-samples", "1", "--short-side", "32"]
    assert CliRunner().invoke(cli, [*command, "--shard-range", "0:1"], standalone_mode=False).return_value == 0
    (built,) = pl.read_parquet(out / ".build/parts/000000.manifest.parquet")["relpath"]
    lost = 1 if built.startswith("vol1") else 2
    (raw / "vol1").rename(away)
    for empty in (False, True):
        if empty:
            (raw / "vol1").mkdir()
        caught = CliRunner().invoke(cli, command, standalone_mode=False).exception
        assert isinstance(caught, UserError) and caught.exit_code == 1, caught
        assert f"{lost} inputs of the plan are gone" in str(caught)
    (raw / "vol1").rmdir()
    away.rename(raw / "vol1")
    assert CliRunner().invoke(cli, command, standalone_mode=False).return_value == 0
    calm = [word if word != str(out) else str(tmp_path / "calm") for word in command]
    assert CliRunner().invoke(cli, calm, standalone_mode=False).return_value == 0
    assert local_digests(out) == local_digests(tmp_path / "calm")
    for folder in (raw / "vol0", raw / "vol1"):  # everything is gone: what stands is not touched, even by --prune
        folder.rename(tmp_path / folder.name)
    caught = CliRunner().invoke(cli, [*command, "--prune"], standalone_mode=False).exception
    assert isinstance(caught, UserError) and caught.exit_code == 1 and "no input was found" in str(caught)
    assert local_digests(out) == local_digests(tmp_path / "calm")


@pytest.mark.parametrize(("count", "code"), [(5, 0), (6, 1)])
def test_more_than_a_handful_of_our_own_faults_are_an_exit_code(
    count: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    monkeypatch.setitem(COMPILERS, "jav", "support.faults:faulty")
    for index in range(count):
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / f"{index}.mp4").write_text("bug")
    (tmp_path / "raw" / "good.mp4").write_text("fine")
    command = ["build", "jav", str(tmp_path / "raw"), "--out", str(tmp_path / "ds"), "--workers", "1"]
    done = CliRunner().invoke(cli, command, standalone_mode=False)
    assert done.exception is None and done.return_value == code
    assert ("fault of javisc itself" in done.stderr) == bool(code)


def test_what_counts_as_storage_that_is_away() -> None:
    for number in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN):
        assert is_away(OSError(number, "x"), remote=False)
    for number in (errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EISDIR, errno.ELOOP):
        assert not is_away(OSError(number, "x"), remote=False)
    assert is_away(PermissionError(13, "Forbidden"), remote=True) and is_away(
        RuntimeError("a driver's own"), remote=True
    )
    for error in (FileNotFoundError(2, "x"), OSError(errno.ENOSPC, "x"), TypeError("x"), UserError("x")):
        assert not is_away(error, remote=True)


def test_patience_ends_and_other_errors_pass_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVISC_PATIENCE", "0.5")
    asked = []

    def fail() -> None:
        asked.append(1)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(Unavailable, match="Input/output error") as caught:
        patiently(fail, "/mnt/x", remote=False)
    assert caught.value.waited and len(asked) > 1
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 // 0, "/mnt/x", remote=False)
    monkeypatch.setenv("JAVISC_PATIENCE", "long")
    with pytest.raises(UserError, match="JAVISC_PATIENCE 'long': a number of seconds"):
        patiently(fail, "/mnt/x", remote=False)
