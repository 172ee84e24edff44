"""What the offline tools that `javisc build prior` replaces do wrong, line by line, and the test that shows each gone.

Unpaired sounds (gen_unpaired_audios):
    the table names files before they exist, and those that failed → test_each_captioned_clip_gets_the_sound_of_another_one
    stems of two folders collide → test_each_captioned_clip_gets_the_sound_of_another_one
    a rate that is a float makes every write fail
        → test_rates_are_integers_and_a_table_of_others_is_refused_before_anything_is_made
    no resampling where the rate is not 16 kHz → test_durations_fall_into_few_classes_and_are_capped
    zeros after a sound that is shorter than its clip → test_the_pool_says_what_made_it_and_how_long_it_is
    shares of what is left when a process starts, so that restarts overlap → test_processes_share_the_parts_and_none_is_made_twice
    the devices counted, not the processes → test_processes_share_the_parts_and_none_is_made_twice
Masklets (get_masklets):
    the code that it imports is to be cloned elsewhere than documented → test_processes_share_the_parts_and_none_is_made_twice
    the last n mod world videos are never processed → test_processes_share_the_parts_and_none_is_made_twice
    pictures are BGR, the statistics RGB → test_a_segmenter_sees_red_as_red
    masks are stored with losses → test_masks_survive_their_film
    masks are stored with losses in the exported files, too → test_the_export_is_what_the_reference_reads
    crops are squashed → test_masks_are_true_where_annotated_and_near_elsewhere
    annotations are taken to be six a second → test_the_rate_of_annotations_is_their_own
    a video of which some objects are written counts as complete → test_what_is_half_written_is_made_again
    one bare except hides all errors → test_a_mistake_of_ours_ends_the_run_and_is_seen
    a broken video leaves no trace → test_every_video_is_accounted_for
    whole videos in memory → test_memory_does_not_grow_with_the_video
    whole videos in memory of the segmenter → test_a_segmenter_is_given_windows
    videos of more than 1920 x 1080 pixels are skipped → test_videos_of_any_size_are_cut
    the documented folder is not the configured one, its list lies elsewhere → test_the_export_is_what_the_reference_reads
Separated sounds (sep_audios):
    an empty sound ends the run → test_an_empty_sound_costs_itself
    the order of descriptions is a set's, so that names change → test_phrases_come_in_the_order_of_the_text
    files without a result leave none and are done again each time → test_what_gives_nothing_is_told_once
    "/" in a description loses it → test_a_slash_in_a_description_is_kept_and_leads_nowhere
    only the first ten seconds → test_a_long_sound_is_taken_apart_to_its_end
    nothing makes the descriptions → test_sources_and_the_rest_are_the_clip
    active is what has an RMS of 0.1, whatever the level → test_activity_goes_by_the_sources_own_level
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import pytest

from javisc.compiler.run import parts
from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.store.commits import BUILD
from javisc.manifests.errors import UserError
from javisc.trainer.use.prior.masklets import Masklets
from javisc.trainer.use.prior.objects import rle
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.prior.segmenters import Film, Segmenter
from javisc.trainer.use.prior.separate import Separate
from javisc.trainer.use.prior.stage import Part
from support import compiled
from support.annotated import annotate, moving, write
from support.killing import tree

HERE = Path(__file__).parent


def test_every_line_of_the_table_names_a_test() -> None:
    named = set(re.findall(r"→ (test_\w+)", __doc__ or ""))
    there = {name for file in HERE.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    assert len(named) >= 20 and named <= there, named - there
    assert len(re.findall(r"^    \w|^    \"", __doc__ or "", re.M)) == len(re.findall(r"→ test_", __doc__ or ""))


def test_rates_are_integers_and_a_table_of_others_is_refused_before_anything_is_made(
    demo: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ds"
    copy.mkdir()
    for name in ("shards", "shards.parquet", "rejected.parquet", "dataset.json"):
        (copy / name).symlink_to(demo / "dataset" / name)
    frame = pl.read_parquet(demo / "dataset/manifest.parquet")
    assert frame["audio_fps"].dtype == pl.Int32 and frame["audio_fps"].to_list() == [16000] * frame.height
    frame.with_columns(pl.col("audio_fps").cast(pl.Float64)).write_parquet(copy / "manifest.parquet")
    with pytest.raises(UserError, match="column audio_fps is Float64, Int32 is expected"):
        run("unpaired", {"dataset": str(copy), "baseline": "phase"}, str(tmp_path / "pool"), RunOptions(workers=1))
    assert not list((tmp_path / "pool").rglob("*.tar"))


def test_processes_share_the_parts_and_none_is_made_twice(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Four videos, three processes: none is left over, and the parts are those of one process. They are started in another
    folder, with nothing on the path: there is no clone to be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    raw = os.path.relpath(demo / "raw")
    assert run("masklets", {"raw": [raw]}, "three", RunOptions(part_size=1, workers=3)).samples == 4
    request.getfixturevalue("here")
    assert run("masklets", {"raw": [str(demo / "raw")]}, str(tmp_path / "one"), RunOptions(part_size=1)).samples == 4
    assert tree(tmp_path / "three") == tree(tmp_path / "one")


def test_a_segmenter_sees_red_as_red(tmp_path: Path) -> None:
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        picture = np.full((64, 96, 3), (220, 30, 40), np.uint8)
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    film = Film.of(path, tmp_path)
    assert film.total == 8 and film.upright == (64, 96)
    assert np.abs(film.pictures(0, 4).astype(int).mean((0, 1, 2)) - (220, 30, 40)).max() < 8


@pytest.mark.usefixtures("here")
def test_what_is_half_written_is_made_again(demo: Path, tmp_path: Path) -> None:
    settings, pool = {"raw": [str(demo / "raw")]}, tmp_path / "pool"
    options, said = RunOptions(part_size=2, workers=1), []  # type: tuple[RunOptions, list[str]]
    run("masklets", settings, str(pool), options)
    before = tree(pool)
    shard = pool / "shards/000001.tar"
    shard.write_bytes(shard.read_bytes()[:1000])  # one object of several, and no commit that says it is whole
    commits = [path for path in (pool / BUILD).rglob("*000001*") if path.suffix == ".json"]
    assert commits
    for path in commits:
        path.unlink()
    run("masklets", settings, str(pool), options, said.append)
    assert said[-1] == "2 parts, 1 of them were there already" and tree(pool) == before


def test_a_mistake_of_ours_ends_the_run_and_is_seen(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spread(job: Any, calls: Any, **named: Any) -> Iterator[Outcome]:
        for tag, arguments, limit in calls:
            yield Outcome(Call(tag, job.function, arguments, limit), error="raised", message="KeyError: 'mask'")

    monkeypatch.setattr(parts, "spread", spread)
    with pytest.raises(UserError, match="part 0: KeyError: 'mask'; what is published stays"):
        run("masklets", {"raw": [str(demo / "raw")]}, str(tmp_path / "pool"))


def _peak() -> int:
    """Bytes of memory at most since the last call, above what is held."""
    status = Path("/proc/self/status").read_text()
    held, most = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) << 10 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    Path("/proc/self/clear_refs").write_text("5")
    return most - held


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """400 pictures of 640 x 360 are 276 MB; cutting an object out of them holds a few."""
    masks = np.zeros((400, 360, 640), bool)
    for number in range(400):
        masks[number, 100:180, number : number + 90] = True
    write(tmp_path / "raw/v.mp4", [masks])
    del masks
    stage = Masklets([str(tmp_path / "raw")])
    items = list(stage.items(tmp_path))
    try:
        _peak()
    except OSError:
        pytest.skip("this kernel lets nobody forget a peak of memory")
    made = stage.work(Part(0, items, {}), None, tmp_path)
    assert len(made.samples) == 1 and made.samples[0][0]["num_frames"] > 390
    assert _peak() < 100e6


def test_a_segmenter_is_given_windows(segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one annotation to the next, never more than the bytes allow, and each time from where the annotation stands."""
    masks = moving(1, 33, 240, 320, side=44)
    path = write(tmp_path / "v.mp4", [masks])
    follower = Segmenter(str(segmenter))
    asked: list[tuple[int, int]] = []

    def pictures(self: Film, first: int, count: int) -> np.ndarray:
        return np.broadcast_to(
            np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, 240, 320, 3)
        )

    def followed(self: Segmenter, model: Any, given: np.ndarray, shown: Any) -> dict[int, np.ndarray]:
        at = int(given[0, 0, 0, 0])
        assert np.array_equal(shown[0], masks[at]), "what is shown is what stands in the first picture"
        asked.append((at, len(given)))
        return {0: np.where(masks[given[:, 0, 0, 0]], 1.0, -1.0)}

    monkeypatch.setattr(Film, "pictures", pictures)
    monkeypatch.setattr(Segmenter, "_followed", followed)
    monkeypatch.setattr("javisc.trainer.use.prior.segmenters.MOST_BYTES", 8 * 240 * 320 * 3)
    [track] = follower.tracks(None, path, [{tick: rle.encode(masks[tick]) for tick in (0, 4, 20, 32)}], tmp_path)
    assert asked == [(0, 5), (4, 5), (4, 4), (20, 4), (20, 4), (32, 4)]
    gone = [tick for tick in range(33) if not track.at(tick).any()]
    assert gone == [*range(8, 17), *range(24, 29)], "too far from any annotation to be followed there"
    assert all(np.array_equal(track.at(tick), masks[tick]) for tick in range(33) if tick not in gone)


def test_videos_of_any_size_are_cut(tmp_path: Path) -> None:
    masks = np.zeros((6, 1440, 2560), bool)
    masks[:, 300:900, 500:1500] = True
    write(tmp_path / "raw/large.mp4", [masks])
    stage = Masklets([str(tmp_path / "raw")])
    made = stage.work(Part(0, list(stage.items(tmp_path)), {}), None, tmp_path)
    [(row, _)] = made.samples
    assert row["masks"]["size"] == [1440, 2560] and max(row["width"], row["height"]) <= 256
    assert np.array_equal(rle.decode({"size": [1440, 2560], "counts": row["masks"]["counts"][0]}), masks[0])


def test_an_empty_sound_costs_itself(tmp_path: Path) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50, 36], hiss=True)
    stage = Separate(str(dataset), baseline="hpss")
    items = list(stage.items(tmp_path))
    items[1]["flac_crc32"] = None
    items[1]["place"] |= {"flac_size": 0}
    made = stage.work(Part(0, items, {}), None, tmp_path)
    assert len(made.samples) == 6 and [row["reason"] for row in made.rejects] == ["corrupt"]


@pytest.mark.usefixtures("here")
def test_what_gives_nothing_is_told_once(separator: Path, tmp_path: Path) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50], hiss=True)
    path = dataset / "manifest.parquet"
    pl.read_parquet(path).with_columns(text=pl.Series(["None", "(music)"])).write_parquet(path)
    settings, said = {"dataset": str(dataset), "separator": str(separator)}, []  # type: tuple[Any, list[str]]
    for _ in range(2):
        done = run("separate", settings, str(tmp_path / "pool"), RunOptions(workers=1), said.append)
        assert (done.samples, dict(done.rejected)) == (0, {"no_caption": 2})
    told = [line for line in said if "of them" in line]  # others tell the time on a busy machine
    assert told == ["1 parts, 0 of them were there already", "1 parts, 1 of them were there already"]


def test_annotations_of_two_kinds_are_both_read(tmp_path: Path) -> None:
    path = write(tmp_path / "raw/v.mp4", [moving(1, 9, 240, 320, side=44)])
    annotate(path, [moving(2, 9, 240, 320, side=44)], kind="auto")
    stage = Masklets([str(tmp_path / "raw")], annotated="both")
    made = stage.work(Part(0, list(stage.items(tmp_path)), {}), None, tmp_path)
    assert len(made.samples) == 2
