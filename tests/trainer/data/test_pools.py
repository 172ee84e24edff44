"""Pools in real shards: what is drawn is a function of the seed, is what was compiled, and damage is said."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.inputs.masklets import read_geometry
from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.index.assign import single_bucket
from javisc.trainer.data.index.catalog import STRINGS, Catalog
from javisc.trainer.data.index.sampler import Sampler
from javisc.trainer.data.sources import pools as pools_module
from javisc.trainer.data.sources.negatives import batch_negatives
from javisc.trainer.data.sources.pools import NAMES, Pools, look_up
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.javisdit_negatives import NegativeClips, NegativesConfig
from support import compiled

RATE = 16000
#: Frames of each object; the second one is out of sight in frames 3 to 5.
OBJECTS = {"a_b_000": 14, "a_b_001": 30, "sub/c_007": 22}


def build(kind: str, raw: Path, out: Path, *more: str) -> Path:
    result = CliRunner().invoke(cli, ["build", kind, str(raw), "--out", str(out), "--workers", "1", *more])
    assert result.exit_code == 0, result.output
    return out


def write_video(path: Path, pictures: np.ndarray) -> None:
    """Grey pictures (L, h, w) at 24 frames a second, in the codec that get_masklets writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *pictures.shape[1:], "yuv420p", 4_000_000
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(picture[..., None], 3, -1), "rgb24")))
        out.mux(stream.encode(None))


def grey(name: str, frame: int) -> int:
    return 60 + (frame * 7 + list(OBJECTS).index(name) * 50) % 150


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of six clips and its three pools."""
    root = tmp_path_factory.mktemp("pools")
    for name, frames in OBJECTS.items():
        video, number = name.rsplit("_", 1)
        mask = np.full((frames, 32, 48), 12, np.uint8)  # as black as a lossy codec leaves it
        mask[:, :, :24] = 255
        content = np.stack([np.full((32, 48), grey(name, frame), np.uint8) for frame in range(frames)])
        write_video(root / f"crops/{video}_masklet_{number}.mp4", content)
        write_video(root / f"crops/{video}_mask_{number}.mp4", mask)
        meta = {
            "video_frame_height": 120,
            "video_frame_width": 160,
            "visible": [not (number == "001" and 3 <= frame < 6) for frame in range(frames)],
            "crop_bbox": [[frame, 10, 24, 16] for frame in range(frames)],
        }
        (root / f"crops/{video}_meta_{number}.json").write_text(json.dumps(meta))
    write_video(root / "crops/stranger.mp4", np.zeros((10, 32, 48), np.uint8))
    write_video(root / "crops/lost_masklet_000.mp4", np.zeros((10, 32, 48), np.uint8))
    for folder in ("separated", "unpaired"):
        (root / folder).mkdir()
    second = np.sin(np.arange(RATE) * 0.2).astype(np.float32) * 0.5
    for clip in range(3):
        for track in range(2):
            wave = np.concatenate([second, 0 * second, second * (track + 1) / 2, 0 * second])
            soundfile.write(root / f"separated/{clip}.wav__sep__000_{track:03d}_a dog.wav", wave, RATE, "FLOAT")
    for clip in (0, 4):
        soundfile.write(root / f"unpaired/{clip}.wav", np.full(RATE, 0.1 + clip / 10, np.float32), RATE, "FLOAT")
    return {
        "dataset": compiled.write(root / "ds", [40, 50, 36, 45, 60, 52]),
        "masklets": build("masklets", root / "crops", root / "masklets"),
        "sources": build("audio", root / "separated", root / "sources"),
        "unpaired": build("audio", root / "unpaired", root / "apart"),
    }


def opened(folders: dict[str, Path], **options: object) -> Pools:
    return Pools(folders["masklets"], folders["sources"], folders["unpaired"], **options)  # type: ignore[arg-type]


def test_what_is_no_masklet_is_listed(folders: dict[str, Path]) -> None:
    rejected = pl.read_parquet(folders["masklets"] / "rejected.parquet")
    assert sorted(rejected["relpath"]) == ["lost_masklet_000.mp4", "stranger.mp4"]
    assert "lost_meta_000.json" in rejected.filter(pl.col("relpath") == "lost_masklet_000.mp4")["message"][0]
    assert pl.read_parquet(folders["masklets"] / "manifest.parquet").height == 2 * len(OBJECTS)


def test_a_stretch_of_a_masklet_is_the_object_where_it_was(folders: dict[str, Path]) -> None:
    seen = set()
    left: set[tuple[int, int]] = set()
    with opened(folders) as pools:
        assert pools.masklets is not None
        for seed in range(24):
            for wanted in (12, 20, 40):
                found = pools.masklets.masklet(SeededDraws(seed), wanted)
                assert found is not None and found.source == (120, 160)
                first = int(found.boxes[found.visible][0, 0]) - int(found.visible.int().argmax())
                level = int(found.content[0].float().mean())
                name = min(OBJECTS, key=lambda name: abs(grey(name, first) - level))
                seen.add((wanted, name))
                frames = min(wanted, OBJECTS[name])
                left |= {(first, OBJECTS[name] - first - frames)} if frames < OBJECTS[name] else set()
                assert found.content.shape[0] == found.mask.shape[0] == len(found.boxes) == frames
                for frame in range(frames):
                    assert abs(float(found.content[frame].float().mean()) - grey(name, first + frame)) < 3
                    hidden = name == "a_b_001" and 3 <= first + frame < 6
                    assert bool(found.visible[frame]) != hidden
                    expected = [0, 0, 0, 0] if hidden else [first + frame, 10, 24, 16]
                    assert found.boxes[frame].tolist() == expected
                assert found.mask[..., :22].all() and not found.mask[..., 26:].any()
    assert min(before for before, _ in left) == 0 == min(behind for _, behind in left), (
        "it may be the film's first or last"
    )
    with opened(folders, rule="reference") as pools:  # what is not quite black is the object, too
        assert pools.masklets is not None and pools.masklets.masklet(SeededDraws(0), 12).mask.all()  # type: ignore[union-attr]
    # Those that are long enough, each of them; else the longest alone.
    assert {name for wanted, name in seen if wanted == 12} == set(OBJECTS)
    assert {name for wanted, name in seen if wanted == 20} == {"a_b_001", "sub/c_007"}
    assert {name for wanted, name in seen if wanted == 40} == {"a_b_001"}


def test_sounds_are_other_clips_or_ones_own_tracks(folders: dict[str, Path]) -> None:
    with opened(folders) as pools:
        assert pools.sounds is not None
        heard = set()
        for seed in range(40):
            found = pools.sounds.source(SeededDraws(seed), "raw/0")
            assert found is not None and len(found[0]) == 4 * RATE
            heard.add(found[1][-1])
            assert float(found[0].abs().max()) <= 0.5
        # Whole seconds that are active; the third is at half the level, still above the threshold.
        assert heard == {(2 * RATE, 3 * RATE)}
        tracks = pools.sounds.separated("somewhere/1")
        assert [spans for _, spans in tracks] == [[(0, RATE), (2 * RATE, 3 * RATE)]] * 2
        assert not torch.equal(tracks[0][0], tracks[1][0])
        assert pools.sounds.separated("5") == []
        rows = {pools.sounds.shelf.names[int(row)].split(".")[0] for row in pools.sounds.rows}
        assert rows == {"0", "1", "2"}


def test_own_tracks_are_never_added(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folders) as pools:
        assert pools.sounds is not None
        taken: list[str] = []
        monkeypatch.setattr(
            pools.sounds, "_active", lambda row: taken.append(pools.sounds.shelf.names[row]) or (torch.zeros(1), [])
        )
        for name in ("0", "1", "2", "elsewhere"):
            taken.clear()
            for seed in range(200):
                pools.sounds.source(SeededDraws(seed), name)
            origins = {track.split(".")[0] for track in taken}
            assert origins == {"0", "1", "2"} - {name} and len(set(taken)) == 2 * len(origins)
            assert max(Counter(taken).values()) < 1.5 * 200 / len(set(taken)), "none more often than others"


def test_unpaired_sounds_are_found_by_their_row_or_their_name(folders: dict[str, Path], tmp_path: Path) -> None:
    with opened(folders) as pools:
        assert pools.unpaired is not None
        for name, level in (("0", 0.1), ("/old/place/4", 0.5), ("3", None)):
            sound = pools.unpaired.sound(name)
            assert (sound is None) == (level is None)
            assert sound is None or abs(float(sound.mean()) - float(level or 0)) < 1e-3
        pools.check(Catalog.open([folders["dataset"]], strings=(*STRINGS, *NAMES)))


def batches(folders: dict[str, Path], state: dict | None, count: int) -> tuple[list[Loaded], dict]:
    catalog = Catalog.open([folders["dataset"]], strings=(*STRINGS, *NAMES))
    with Loader(Sampler(catalog, single_bucket(26, 32, 48, 2)), LoaderOptions(whole_sound=True)) as loader:
        if state is not None:
            loader.load_state_dict(state)
        out = []
        for loaded in loader:
            out.append(loaded)
            if len(out) == count:
                break
        return out, loader.state_dict()


def wrong(loaded: Loaded, pools: Pools, threads: int = 0) -> NegativeClips:
    config = NegativesConfig(video_spatial=("add_masklet",), repetitions=2)
    if not threads:
        return batch_negatives(loaded, pools, config)
    with ThreadPoolExecutor(threads) as executor:
        return batch_negatives(loaded, pools, config, executor=executor)


def test_a_batch_has_the_same_negatives_after_a_kill(folders: dict[str, Path]) -> None:
    whole, _ = batches(folders, None, 3)
    with opened(folders) as pools:
        before = [wrong(loaded, pools) for loaded in whole]
        mark = pools.fingerprint()
    _, state = batches(folders, None, 1)
    rest, _ = batches(folders, json.loads(json.dumps(state)), 2)
    with opened(folders) as pools:
        assert pools.fingerprint() == mark
        after = [wrong(loaded, pools, threads=3) for loaded in rest]
    for loaded, first, second in zip(rest, before[1:], after, strict=True):
        for kind in ("video", "audio"):
            for aspect, made in getattr(first, kind).items():
                assert torch.equal(made, getattr(second, kind)[aspect])
        assert second.video["spatial"].shape == (2, 2, 3, 26, 32, 48)
        assert second.audio["temporal"].shape == (2, 2, loaded.batch.clips[0].window.audio_count)
        # An object covers a part of some frames, and of those alone.
        changed = (second.video["spatial"] - loaded.video[:, None]).abs().amax(2) > 0.02
        assert (changed.flatten(3).any(-1).sum(-1) >= 12).all() and not changed.all()


def test_other_pools_are_told_apart(folders: dict[str, Path]) -> None:
    marks = set()
    for used in ((), ("masklets",), ("sources",), ("unpaired",), ("masklets", "unpaired")):
        with Pools(**{name: folders[name] for name in used}) as pools:
            marks.add(pools.fingerprint())
    assert len(marks) == 5


def test_a_damaged_entry_is_reported_and_another_is_drawn(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "sources"
    shutil.copytree(folders["sources"], copy)
    manifest = pl.read_parquet(copy / "manifest.parquet")
    row = manifest.filter(pl.col("relpath").str.starts_with("1.wav")).row(0, named=True)
    with (copy / f"shards/{row['shard']:06d}.tar").open("r+b") as shard:
        shard.seek(row["flac_offset"] + 200)
        shard.write(b"\xff\x00\xff")
    reports: list[tuple[str, str, str]] = []
    with Pools(sources=copy, report=lambda *said: reports.append(said)) as pools:
        assert pools.sounds is not None
        assert all(pools.sounds.source(SeededDraws(seed), "0") is not None for seed in range(20))
        assert len(pools.sounds.separated("1")) == 1
    assert {(pool, name) for pool, name, _ in reports} == {(str(copy), row["relpath"])}
    assert all("checksum" in message for _, _, message in reports)
    (copy / "shards/000000.tar").write_bytes(b"")
    with Pools(sources=copy) as pools, pytest.raises(UserError, match=r"sources: 8 entries .*javisc verify"):
        assert pools.sounds is not None
        pools.sounds.source(SeededDraws(0), "0")


def test_little_is_kept(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools_module, "CACHE_BYTES", 40_000)
    with opened(folders) as pools:
        assert pools.masklets is not None and pools.sounds is not None
        first = [pools.masklets.masklet(SeededDraws(seed), 14) for seed in range(30)]
        again = [pools.masklets.masklet(SeededDraws(seed), 14) for seed in range(30)]
        for a, b in zip(first, again, strict=True):
            assert a is not None and b is not None and torch.equal(a.content, b.content)
        for shelf in pools.shelves:
            assert shelf.held == sum(len(data) for kept in shelf.kept.values() for data in kept.values()) <= 40_000
        assert pools.shelves[0].kept


def test_pools_of_another_kind_or_rate_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no masklet with its mask; build it with `javisc build masklets`"):
        Pools(masklets=folders["sources"])
    with pytest.raises(UserError, match=r"sources: .* 16000 samples a second, the dataset 24000.*--sample-rate 24000"):
        Pools(sources=folders["sources"], rate=24000)
    catalog = Catalog.open([folders["dataset"]], strings=(*STRINGS, *NAMES))
    catalog = Catalog(
        catalog.numbers, catalog.reals, catalog.strings.with_columns(relpath=pl.lit("x.mp4")), *list(vars(catalog).values())[3:]
    )  # fmt: skip
    with opened(folders) as pools, pytest.raises(UserError, match="nothing for any of 6 clips"):
        pools.check(catalog)


def test_a_pool_may_be_a_view_and_is_a_dataset_like_others(folders: dict[str, Path], tmp_path: Path) -> None:
    for arguments in (
        ["merge", folders["sources"], folders["unpaired"], "--out", tmp_path / "view"],
        ["verify", folders["masklets"]],
    ):
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    with Pools(sources=tmp_path / "view") as pools:
        assert pools.sounds is not None and len(pools.sounds.rows) == 8
        # The unpaired sounds of 0 and 4 can be added to others; they are nobody's separated tracks.
        assert len(pools.sounds.separated("0")) == 2 and pools.sounds.separated("4") == []
        levels = {float(found[0][0]) for seed in range(60) if (found := pools.sounds.source(SeededDraws(seed), "1"))}
        assert len(levels) == 3


@pytest.mark.parametrize(
    "damage", [{"num_frames": -5}, {"num_frames": 29}, {"fps": 0.0}, {"fps": float("inf")}], ids=str
)
def test_a_hostile_row_costs_itself_alone(folders: dict[str, Path], tmp_path: Path, damage: dict[str, float]) -> None:
    copy = tmp_path / "masklets"
    shutil.copytree(folders["masklets"], copy)
    manifest = pl.read_parquet(copy / "manifest.parquet")
    wrong_row = pl.col("relpath") == "a_b_masklet_001.mp4"
    manifest.with_columns(
        pl.when(wrong_row).then(pl.lit(value).cast(manifest.schema[name])).otherwise(name).alias(name)
        for name, value in damage.items()
    ).write_parquet(copy / "manifest.parquet")
    reports: list[tuple[str, str, str]] = []
    with Pools(copy, report=lambda *said: reports.append(said)) as pools:
        assert pools.masklets is not None
        for seed in range(12):
            found = pools.masklets.masklet(SeededDraws(seed), 20)
            assert found is not None and len(found.visible) == 20 and found.visible.all()
    # A length that no masklet has is passed over when drawn; all else is found when the one is read, and told.
    assert {name for _, name, _ in reports} == (set() if damage == {"num_frames": -5} else {"a_b_masklet_001.mp4"})


def test_names_are_found_by_their_longest_tail() -> None:
    index = {"a/x": 1, "x": 2, "y": 3}
    assert [look_up(name, index) for name in ("/r/a/x", "b/x", "x", "c/y", "z", "")] == [1, 2, 2, 3, None, None]


@pytest.mark.parametrize(
    "text",
    [
        "[1]", "nothing", "{}", "[" * 100_000, '{"height":1,"width":1,"boxes":[]}', '{"height":1e9,"width":1,"boxes":[null]}',
        '{"height":4,"width":true,"boxes":[null]}', '{"height":4,"width":4,"boxes":[[1,2,3]]}',
        '{"height":4,"width":4,"boxes":[[0,0,NaN,1]]}', '{"height":4,"width":4,"boxes":[[0,0,1e300,1]]}',
        '{"height":4,"width":4,"boxes":[[0,0,0,1]]}', '{"crop_bbox":[[0,0,1,1]],"visible":[],"height":4,"width":4}',
    ],
)  # fmt: skip
def test_hostile_geometry_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_geometry(text)
