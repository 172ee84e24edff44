"""A clip's crops and its rating: the definitions, against what the fast path makes."""

from __future__ import annotations

import io
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from javisc.compiler.media.clock import Hold, nearest_tick
from javisc.manifests.io import Dataset
from javisc.trainer.data.bytes.decode import frames, samples
from javisc.trainer.data.bytes.reader import Reader
from javisc.trainer.data.index.catalog import Member
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import FixedOffset, SyncTransforms, apply, plan
from javisc.trainer.transforms.sync_video import normalise
from javisc.trainer.transforms.sync_window import Lengths
from javisc.trainer.use.rating import rating
from javisc.trainer.use.score_clip import NEEDED, CropOptions, NoScore, _wave, crops_of, shown, spaced
from javisc.trainer.use.score_worker import WorkerOptions, score_rows
from javisc.trainer.use.selector import load_selector
from support import compiled, selector

Row = dict[str, Any]
TRANSFORMS = SyncTransforms(crop_len_sec=1.0, max_off_sec=0.4, classes=5, input_size=32)
OPTIONS = CropOptions(crops=3, fps=25, short_side=32)


def rows_of(folder: Path) -> list[Row]:
    return Dataset.open(folder).located().select(NEEDED).collect().to_dicts()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Clips of the selector's own rate and size: 1.6, 1, 0.8 and 4 s."""
    folder = tmp_path_factory.mktemp("clips") / "ds"
    return rows_of(compiled.write(folder, [40, 25, 20, 100], fps=25, size=(32, 48), hiss=True))


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return selector.write_best(tmp_path_factory.mktemp("run") / "best")


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 12))
def test_crops_are_spread_over_the_clip_and_overlap_by_half_at_most(ticks: int, wanted: int, at_most: int) -> None:
    if ticks < wanted:
        with pytest.raises(NoScore):
            spaced(ticks, wanted, at_most)
        return
    firsts = spaced(ticks, wanted, at_most)
    assert 1 <= len(firsts) <= at_most
    steps = np.diff(firsts)
    assert all(steps >= wanted // 2) and (len(steps) == 0 or max(steps) - min(steps) <= 1)
    if len(firsts) == 1:
        assert abs((ticks - wanted) - 2 * firsts[0]) <= 1
    else:
        assert (firsts[0], firsts[-1]) == (0, ticks - wanted)
    if len(firsts) < at_most:  # one more would have overlapped too much
        assert (ticks - wanted) / len(firsts) < wanted / 2


@given(
    st.sampled_from([12, 24, 25, 30, Fraction(30000, 1001), 50, 60]), st.integers(1, 90), st.sampled_from([24, 25, 30])
)
def test_frames_at_another_rate_are_those_the_compiler_would_hold(clip: Fraction, count: int, fps: int) -> None:
    hold: Hold[int] = Hold(Fraction(fps))
    held = [item for i in range(count) for item in hold.push(i, Fraction(i) / clip)]
    held += hold.finish(Fraction(count) / clip)
    ticks = nearest_tick(count / Fraction(clip), Fraction(fps))
    assert ticks <= len(held) <= ticks + 1  # a last frame that lasts less than half a tick is given one
    if ticks:
        assert list(enumerate(shown(0, ticks, Fraction(clip), fps))) == held[:ticks]
        assert shown(ticks - 1, 1, Fraction(clip), fps)[0] < count


def test_crops_are_what_evaluation_takes(rows: list[Row]) -> None:
    """At the selector's rate and size: the windows and transforms of evaluation, at offset 0."""
    for row, firsts in zip((rows[0], rows[1], rows[3]), ([0, 15], [0], [0, 38, 75]), strict=True):
        made = crops_of(row, Reader(), TRANSFORMS, OPTIONS)
        data = Reader().read(*place(row))
        assert len(made) == len(firsts)
        for (vis, aud), first in zip(made, firsts, strict=True):
            lengths = Lengths(row["num_frames"], row["num_samples"], 25.0, 16000)
            none = SeededDraws(0)
            # Half a frame more than needed: the published arithmetic truncates.
            window = plan(TRANSFORMS, lengths, none, train=False, fixed=FixedOffset(0.0, first / 25 + 1e-9))
            picture = torch.from_numpy(frames(data["mp4"], window.v_first, window.v_len, fps=Fraction(25)))
            wave = torch.from_numpy(samples(data["flac"], first * 640, 16000).mean(1))
            expected = apply(TRANSFORMS, picture.permute(0, 3, 1, 2), wave, window, 16000, none, train=False)
            assert window.v_first == first and vis.dtype == torch.uint8
            assert torch.equal(normalise(vis), expected.vis) and torch.equal(aud, expected.aud)


def place(row: Row) -> tuple[str, list[Member]]:
    members = [Member(ext, row[f"{ext}_offset"], row[f"{ext}_size"]) for ext in ("flac", "mp4")]
    return f"{row['dataset']}/shards/{row['shard']:06d}.tar", members


def test_other_rates_and_sizes_are_brought_to_the_selectors(tmp_path: Path) -> None:
    (row,) = rows_of(compiled.write(tmp_path / "ds", [96], fps=24, size=(96, 128), hiss=True))
    made = crops_of(row, Reader(), TRANSFORMS, OPTIONS)
    data = Reader().read(*place(row))
    assert len(made) == 3
    for (vis, aud), first in zip(made, (0, 38, 75), strict=True):
        assert vis.shape == (25, 3, 32, 32)
        # The right half shows the plain grey that says which frame it is; limited range, so 16 is 0.
        grey = vis[:, 0, :, 20:].float().mean((1, 2))
        wanted = [(compiled.level(0, int(i)) - 16) * 255 / 219 for i in shown(first, 25, Fraction(24), 25)]
        assert (grey - torch.tensor(wanted)).abs().max() < 2.5
        wave = samples(data["flac"], first * 640, 16000).mean(1)
        from javisc.trainer.transforms.sync_chain import spectrogram

        none = SeededDraws(0)
        assert torch.equal(aud, spectrogram(torch.from_numpy(wave), none, 0, 0, 0)[0][None])


@pytest.mark.parametrize("first", [0, 1, 30])
@pytest.mark.parametrize("rate", [48000, 44100])
def test_sound_of_another_rate_is_heard_at_the_same_moment(first: int, rate: int) -> None:
    def tones(at: int, seconds: float) -> np.ndarray:
        time = np.arange(round(seconds * at)) / at
        return 0.3 * np.sin(2 * np.pi * 440 * time) * np.sin(np.pi * time / seconds) ** 2

    out = io.BytesIO()
    soundfile.write(out, tones(rate, 3.0), rate, format="FLAC", subtype="PCM_24")
    heard = _wave(out.getvalue(), first, 25, rate, 25, 0)
    wanted = tones(16000, 3.0)[first * 640 :][:16000]
    assert len(heard) == 16000
    assert np.abs(heard.numpy() - wanted).max() < 0.01  # a sample too late would be 0.05


def edited(row: Row, **changes: object) -> Row:
    return {**row, **changes}


def test_reasons_why_a_clip_has_no_score(rows: list[Row]) -> None:
    row = rows[0]
    for changed, reason in [
        (edited(row, mp4_offset=None), "no picture"),
        (edited(row, flac_offset=None), "no sound"),
        (edited(row, num_samples=0), "no sound"),
        (edited(row, silent=True), "silent"),
        (rows[2], "too short"),
        (edited(row, num_samples=15000), "too short"),
        (edited(row, fps=None), "corrupt"),
        (edited(row, fps=float("nan")), "corrupt"),
        (edited(row, audio_fps=0), "corrupt"),
        (edited(row, mp4_crc32=1), "corrupt"),
        (edited(row, mp4_offset=-5), "corrupt"),
        (edited(row, shard=99), "unreadable"),
        (edited(row, mp4_size=100, mp4_crc32=None), "corrupt"),
    ]:
        with pytest.raises(NoScore) as failed:
            crops_of(changed, Reader(), TRANSFORMS, OPTIONS)
        assert failed.value.reason == reason, (reason, failed.value)


def test_crops_without_any_sound_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.zeros(4 * 16000, np.float32)
    wave[:9000] = 0.1
    monkeypatch.setattr(compiled, "sound", lambda frames, fps: wave)
    (row,) = rows_of(compiled.write(tmp_path / "ds", [100], fps=25, size=(32, 32)))
    assert len(crops_of(row, Reader(), TRANSFORMS, OPTIONS)) == 1
    wave[:] = 0
    (row,) = rows_of(compiled.write(tmp_path / "none", [100], fps=25, size=(32, 32)))
    with pytest.raises(NoScore) as failed:
        crops_of(row, Reader(), TRANSFORMS, OPTIONS)
    assert failed.value.reason == "silent"


def test_a_score_is_the_mean_over_crops(rows: list[Row], best: Path, tmp_path: Path) -> None:
    settings = WorkerOptions(str(best), "cpu", 2, 2, "fp32", 3, 25, 32, 0.0, "")
    told = score_rows(rows, asdict(settings))
    model, transforms = load_selector(str(best))
    for row, score in zip(rows, told, strict=True):
        if row["key"] == "00000002":
            assert score["reason"] == "too short" and score["sync_offset"] is None and score["crops"] == 0
            continue
        crops = crops_of(row, Reader(), transforms, OPTIONS)
        with torch.no_grad():
            chances = torch.cat([model(normalise(vis)[None], aud[None])[1].softmax(1) for vis, aud in crops]).mean(0)
        first, second = chances.topk(2).values.tolist()
        assert score["sync_offset"] == [-0.4, -0.2, 0.0, 0.2, 0.4][int(chances.argmax())]
        assert (score["sync_confidence"], score["sync_margin"]) == pytest.approx((first, first - second), abs=1e-4)
        assert score["crops"] == len(crops) and score["reason"] is None
    assert score_rows(rows, asdict(settings)) == told


def test_ratings() -> None:
    def of(*windows: list[float], **options: bool) -> Row:
        return rating([torch.tensor(one, dtype=torch.float64) for one in windows], grid, **options)

    grid = SyncTransforms(max_off_sec=0.2, classes=3)
    told = of([0.4, 0.4, 0.2])
    assert (told["sync_offset"], told["sync_confidence"], told["sync_margin"]) == (-0.2, 0.4, 0.0)
    assert told["desync"] == 0.2 and told["synchronizable"] is None and told["audio_advance_sec"] == 0.0
    told = of([0.1, 0.2, 0.7])
    assert told["sync_offset"] == 0.2 and told["sync_margin"] == pytest.approx(0.5)
    told = of([0.1, float("nan"), 0.7])
    assert told["reason"] == "not finite" and told["sync_offset"] is None and told["desync"] is None
    # The mean of sizes, not the size of the mean; the first and the last window, or all of them.
    windows = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    assert of(*windows)["desync"] == 0.2 and of(*windows, all_of_them=True)["desync"] == pytest.approx(0.1)
    assert of(*windows)["sync_offset"] == 0.0
