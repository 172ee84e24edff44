"""`javisc build prior masklets` on drawn videos: what is cut out is the object, its mask is exact, and others read it."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.inputs.masklets import read_geometry
from javisc.manifests.environment import Unavailable
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data.bytes import decode
from javisc.trainer.data.sources.pools import Pools
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.use.prior.masklets import Masklets
from javisc.trainer.use.prior.objects import crops, rle, sav
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.prior.stage import Part
from support.annotated import annotate, moving, write

SIZE = (240, 320)
#: Videos → (their objects, frames a second, frames from one annotation to the next).
BIG = moving(1, 41, *SIZE, side=44)
OTHER = moving(2, 41, *SIZE, side=34)
TINY = moving(5, 41, *SIZE, side=8)


def hidden(masks: np.ndarray, *spans: tuple[int, int]) -> np.ndarray:
    out = masks.copy()
    for first, last in spans:
        out[first:last] = False
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, all_here: None) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("masklets")
    raw = root / "raw"
    write(raw / "a/v.mp4", [BIG, OTHER, TINY])
    write(raw / "b/v.mp4", [hidden(BIG, (0, 9), (16, 21), (33, 41))])
    write(raw / "fast.mp4", [moving(3, 50, 480, 640, side=170)], fps=30, every=5)
    write(raw / "auto.mkv", [BIG], kind="auto")
    write(raw / "many.mp4", [BIG] * 10)
    write(raw / "brief.mp4", [hidden(BIG, (0, 8), (9, 41))])
    write(raw / "bare.mp4", [BIG]).with_name("bare_manual.json").unlink()
    write(raw / "broken.mp4", [BIG]).with_name("broken_manual.json").write_text(
        '{"masklet": [[{"size": [9], "counts": 3}]]}'
    )
    write(raw / "zero.mp4", [BIG[:9]]).with_name("zero_manual.json").write_text('{"masklet": [[], [], []]}')
    write(raw / "other.mp4", [BIG])
    annotate(raw / "other.mp4", [moving(1, 41, side=40)])
    (raw / "noise.mp4").write_bytes(b"no film")
    annotate(raw / "noise.mp4", [BIG])
    for number in range(3):  # none of the last is lost
        write(raw / f"last_{number}.mp4", [BIG[:9]])
    words = [
        "build",
        "prior",
        "masklets",
        raw,
        "--out",
        root / "pool",
        "--part-size",
        4,
        "--export",
        root / "out",
    ]
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    return {"raw": raw, "pool": root / "pool", "export": root / "out"}


def sample(pool: Path, name: str) -> tuple[dict, dict[str, bytes]]:
    row = pl.read_parquet(pool / "manifest.parquet").row(by_predicate=pl.col("relpath") == name, named=True)
    return row, Dataset.open(pool).read(row["key"])


def test_every_video_is_accounted_for(made: dict[str, Path]) -> None:
    manifest = pl.read_parquet(made["pool"] / "manifest.parquet")
    assert sorted(manifest["relpath"]) == [
        "a/v_masklet_000.mp4", "a/v_masklet_001.mp4", "auto_masklet_000.mp4", "b/v_masklet_000.mp4", "fast_masklet_000.mp4",
        "last_0_masklet_000.mp4", "last_1_masklet_000.mp4", "last_2_masklet_000.mp4",
    ]  # fmt: skip
    rejected = pl.read_parquet(made["pool"] / "rejected.parquet")
    told = {row["relpath"]: f"{row['reason']}: {row['message']}" for row in rejected.iter_rows(named=True)}
    for name, why in {
        "many.mp4": "filtered: 10 objects of like size",
        "brief.mp4": "too_short: no object is seen for 5 frames",
        "bare.mp4": "filtered: no _manual.json or _auto.json beside it",
        "zero.mp4": "filtered: its annotation holds no object",
        "broken.mp4": "filtered: its annotation holds a mask that is none: a mask's size is [9]",
        "other.mp4": "filtered: its masks are of 160x120 pixels, its pictures of 320x240",
        "noise.mp4": "not_media",
    }.items():
        assert told.pop(name).startswith(why)
    assert not told
    header = json.loads((made["pool"] / "dataset.json").read_text())["prior"]
    assert header["baseline"] == "interpolation" and header["weights"] is None
    assert CliRunner().invoke(cli, ["verify", str(made["pool"]), "--workers", "1"]).exit_code == 0


def test_masks_are_true_where_annotated_and_near_elsewhere(made: dict[str, Path]) -> None:
    for number, truth in enumerate((BIG, OTHER)):
        row, content = sample(made["pool"], f"a/v_masklet_{number:03d}.mp4")
        told = json.loads(content["json"])["masks"]
        assert told["annotated"] == list(range(0, 41, 4)) and told["first_tick"] == 0
        for tick, counts in enumerate(told["counts"]):
            found = rle.decode({"size": told["size"], "counts": counts})
            assert tick % 4 or np.array_equal(found, truth[tick])
            assert (found & truth[tick]).sum() > 0.8 * (found | truth[tick]).sum()
        boxes = read_geometry(row["label"]).boxes
        masks = decode.masks_of(content["mkv"], row)
        picture = decode.frames_of(content["mp4"], row)[..., 1].astype(int)
        grey = 220 if number == 0 else 140
        for tick, box in enumerate(boxes):
            assert box is not None
            full = rle.decode({"size": told["size"], "counts": told["counts"][tick]})
            part = crops.Part(*map(int, box))
            assert np.array_equal(masks[tick], crops.cut(full, part, (row["width"], row["height"])))
            x, y, w, h = rle.tight(full) or (0, 0, 0, 0)
            assert (
                part.left <= x and part.top <= y and x + w <= part.left + part.width and y + h <= part.top + part.height
            )
            if tick % 4 == 0 and not (number == 1 and (BIG[tick] & OTHER[tick]).any()):
                assert abs(np.median(picture[tick][masks[tick]]) - grey) < 8
                assert (abs(picture[tick][masks[tick]] - grey) < 30).mean() > 0.9, (
                    "the picture is cut where the mask is"
                )
        shapes = {round(box[2] / box[3], 1) for box in boxes if box}
        assert max(shapes) - min(shapes) <= 0.11 and abs(row["width"] / row["height"] - np.mean(list(shapes))) < 0.1


def test_what_is_not_seen_is_cut_at_the_ends_and_marked_within(made: dict[str, Path]) -> None:
    row, content = sample(made["pool"], "b/v_masklet_000.mp4")
    told = json.loads(content["json"])["masks"]
    assert told["first_tick"] == 10 and row["num_frames"] == 24 and row["clip_start"] == 10 / 24
    seen = [box is not None for box in read_geometry(row["label"]).boxes]
    assert seen == [counts is not None for counts in told["counts"]]
    # Annotated as seen at tick 12, as gone at 16 and 20, as seen from 24 to 32: it goes and comes half way.
    assert seen == [True] * 4 + [False] * 8 + [True] * 12
    masks = decode.masks_of(content["mkv"], row)
    assert [bool(mask.any()) for mask in masks] == seen


def test_another_rate_of_frames_keeps_the_clock(made: dict[str, Path]) -> None:
    row, content = sample(made["pool"], "fast_masklet_000.mp4")
    truth = moving(3, 50, 480, 640, side=170)
    told = json.loads(content["json"])["masks"]
    assert row["num_frames"] == 37 and row["fps"] == 24 and max(row["width"], row["height"]) <= 256
    for frame in range(0, 50, 5):  # annotated six times a second of thirty frames: every fourth tick
        tick = frame * 24 // 30
        assert np.array_equal(rle.decode({"size": told["size"], "counts": told["counts"][tick]}), truth[frame])


def test_the_loader_reads_the_exact_mask(made: dict[str, Path]) -> None:
    with Pools(masklets=made["pool"]) as pools:
        assert pools.masklets is not None and len(pools.masklets.rows) == 8
        for seed in range(4):
            found = pools.masklets.masklet(SeededDraws(seed), 14)
            assert found is not None and found.mask.any() and found.content.shape[2:] == found.mask.shape[1:]
        exact = pools.masklets.shelf
        row_number = exact.names.index("a/v_masklet_000.mp4")
        found = pools.masklets._read(row_number, SeededDraws(0), 41)
        row, content = sample(made["pool"], "a/v_masklet_000.mp4")
        assert np.array_equal(found.mask.numpy(), decode.masks_of(content["mkv"], row))


def test_the_export_is_what_the_reference_reads(made: dict[str, Path], tmp_path: Path) -> None:
    listed = (made["export"] / "pool_list.txt").read_text().splitlines()
    assert len(listed) == 8 and all(Path(line).parent.is_relative_to(made["export"] / "crops") for line in listed)
    for line in listed:
        meta = json.loads(Path(line).read_text())
        mask_file, content_file = (line.replace("json", "mp4").replace("meta", part) for part in ("mask", "masklet"))
        row, content = sample(made["pool"], str(Path(content_file).relative_to(made["export"] / "crops")))
        with av.open(mask_file) as film:
            pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        truth = decode.masks_of(content["mkv"], row)
        assert len(pictures) == len(meta["visible"]) == len(meta["crop_bbox"]) == row["num_frames"]
        assert all(
            np.array_equal(picture, np.repeat(mask[..., None] * np.uint8(255), 3, -1))
            for picture, mask in zip(pictures, truth)
        )
        assert Path(content_file).read_bytes() == content["mp4"]
    words = ["build", "masklets", made["export"] / "crops", "--out", tmp_path / "pool", "--workers", "1"]
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0 and pl.read_parquet(tmp_path / "pool/manifest.parquet").height == 16, result.output
    with pytest.raises(UserError, match="holds other files than an export"):
        from javisc.trainer.use.prior.objects.export import check_folder

        check_folder(str(made["raw"]))


def test_rules() -> None:
    def each(area: int, number: int) -> sav.Annotated:
        mask = np.zeros((100, 100), bool)
        mask.ravel()[:area] = True
        return sav.Annotated("manual", number, [0, 4], [rle.encode(mask), rle.encode(mask & False)])

    objects = [each(area, number) for number, area in enumerate((6000, 1900, 2000, 1023))]
    assert [one.number for one in sav.kept(objects)] == [0, 2]


@pytest.mark.usefixtures("here")
def test_a_changed_annotation_alone_is_made_again(made: dict[str, Path], tmp_path: Path) -> None:
    raw, said = tmp_path / "raw", []
    for number in range(2):
        write(raw / f"{number}.mp4", [BIG[:9]])
    options = RunOptions(part_size=1, workers=1)
    run("masklets", {"raw": [str(raw)]}, str(tmp_path / "pool"), options, said.append)
    annotate(raw / "1.mp4", [OTHER[:9]])
    run("masklets", {"raw": [str(raw)]}, str(tmp_path / "pool"), options, said.append)
    assert said[-1] == "2 parts, 1 of them were there already"


@pytest.mark.usefixtures("here")
def test_videos_whose_disk_is_away_are_not_refused(tmp_path: Path) -> None:
    raw, pool = tmp_path / "raw", str(tmp_path / "pool")
    write(raw / "v.mp4", [BIG[:9]])
    stage = Masklets([str(raw)])
    items = list(stage.items(tmp_path))
    raw.rename(tmp_path / "away")
    with pytest.raises(Unavailable, match=r"v\.mp4 is gone, .*nothing is held against any file"):
        stage.work(Part(0, items, {}), None, tmp_path)
    (tmp_path / "away").rename(raw)
    assert run("masklets", {"raw": [str(raw)]}, pool, RunOptions(workers=1)).samples == 1


def test_masks_survive_their_film() -> None:
    masks = np.random.default_rng(0).random((7, 30, 46)) < 0.5
    film = crops.lossless(masks, Fraction(24))
    assert film == crops.lossless(masks, Fraction(24))
    with av.open(io.BytesIO(film)) as read:  # to the last level, not only on either side of the middle
        levels = [frame.to_ndarray(format="gray") for frame in read.decode(video=0)]
    assert np.array_equal(np.stack(levels), masks * np.uint8(255))
    assert np.array_equal(decode.masks(film, 0, 7), masks) and np.array_equal(decode.masks(film, 3, 2), masks[3:5])
    with pytest.raises(decode.DecodeError, match="ends before frame 8"):
        decode.masks(film, 0, 8)
    with pytest.raises(decode.DecodeError):
        decode.masks(film[:100], 0, 1)
