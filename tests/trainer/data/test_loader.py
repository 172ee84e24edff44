"""Batches as tensors: the right frames, exactly the matching samples, the same after a kill, and honest about damage."""

from __future__ import annotations

import io
import json
import resource
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.decode import DecodeError, frames, samples
from javisc.trainer.data.bytes.framing import cover, framing
from javisc.trainer.data.bytes.graph import ClipInput, Graph, GraphOptions
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.bytes.reader import Reader, ReaderOptions
from javisc.trainer.data.index.assign import BucketTable, Length, Resolution, single_bucket
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.sampler import Sampler, SamplerOptions
from javisc.trainer.data.sources.sync import SyncWindow
from javisc.trainer.transforms.sync_chain import SyncTransforms
from support import compiled
from support.shared import PARITY, need

LENGTHS = [30, 45, 60, 33, 80, 51, 40, 37, 64, 28]
TABLE = BucketTable(
    [Resolution("small", 32 * 48, {"0.67": (32, 48), "1.00": (40, 40)}, (Length(17, 2), Length(34, 2)))]
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.write(tmp_path_factory.mktemp("data") / "ds", LENGTHS)


def greys(loaded: Loaded, index: int) -> np.ndarray:
    """The luma level of each frame of one clip, read at the bottom right, where a compiled test clip is flat."""
    pixels = loaded.video[index, :, :, -3:, -3:] * 127.5 + 127.5
    return (pixels.mean(dim=(0, 2, 3)).numpy() * 219 / 255 + 16).round()


def check(loaded: Loaded) -> None:
    assert loaded.audio is not None
    for index, clip in enumerate(loaded.batch.clips):
        number, window = clip.row, clip.window
        if not clip.mirror:
            expected = [compiled.level(number, window.first + frame) for frame in range(window.count)]
            assert np.abs(greys(loaded, index) - expected).max() <= 2
        ramp = loaded.audio[index, :, 0].numpy() * 2**20
        assert np.abs(ramp - (window.audio_first + np.arange(window.audio_count))).max() < 0.2
        # The sound's cut and the picture's are the same moment, to half a sample.
        assert abs(window.audio_first / 16000 - window.first / 24) <= 0.5 / 16000 + 1e-9
        assert loaded.labels[index]["key"] == f"{number:08d}"


def test_frames_and_samples_match_the_clock(dataset: Path) -> None:
    sampler = Sampler(Catalog.open([dataset]), TABLE, SamplerOptions(mirror=0.3))
    with Loader(sampler) as loader:
        for _ in range(3):
            rows = []
            for loaded in loader:
                bucket = loaded.batch.bucket
                assert loaded.video.shape[1:] == (3, bucket.frames, bucket.height, bucket.width)
                check(loaded)
                rows += [clip.row for clip in loaded.batch.clips]
            assert sorted(rows) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_a_clip_is_mirrored_when_and_only_when_it_says_so(dataset: Path, share: float | None) -> None:
    """Every picture has a bright corner at the top left: plain clips keep it there, mirrored ones have it at the right."""
    options = SamplerOptions() if share is None else SamplerOptions(mirror=share)
    said = []
    with Loader(Sampler(Catalog.open([dataset]), TABLE, options)) as loader:
        for loaded in loader:
            top = loaded.video[:, :, :, : loaded.video.shape[3] // 4].mean(dim=(1, 2, 3))
            third = top.shape[1] // 3
            for index, clip in enumerate(loaded.batch.clips):
                left, right = float(top[index, :third].mean()), float(top[index, -third:].mean())
                assert abs(left - right) > 0.1 and (right > left) == clip.mirror, (clip, left, right)
                said.append(clip.mirror)
    assert len(said) == len(LENGTHS)
    assert set(said) == {None: {False}, 0.0: {False}, 0.5: {False, True}, 1.0: {True}}[share]


def test_bytes_frames_first_and_other_scales_are_the_same_pictures(dataset: Path) -> None:
    def pictures(**options: object) -> torch.Tensor:
        """Of the first batch, in 0..255, (B, F, 3, H, W)."""
        graph = GraphOptions(with_audio=False, **options)  # type: ignore[arg-type]
        with Loader(Sampler(Catalog.open([dataset]), TABLE), LoaderOptions(graph=graph)) as loader:
            video = next(iter(loader)).video
        assert video.dtype == getattr(torch, graph.dtype)
        video = video.float() if graph.layout == "FCHW" else video.float().transpose(1, 2)
        if graph.dtype == "uint8":
            return video
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (graph.mean, graph.std))
        return video * std + mean

    plain = pictures()
    assert plain.std() > 10 and (pictures(mean=(9.0, 99.0, 199.0), std=(50.0, 60.0, 70.0)) - plain).abs().max() < 0.01
    assert (pictures(dtype="uint8", layout="FCHW") - plain).abs().max() < 0.51


def test_the_whole_sound_comes_beside_its_window(dataset: Path) -> None:
    sampler = Sampler(Catalog.open([dataset]), TABLE)
    with Loader(sampler, LoaderOptions(whole_sound=True)) as loader:
        for loaded in loader:
            check(loaded)
            assert loaded.audio is not None
            for whole, part, clip in zip(loaded.sounds, loaded.audio, loaded.batch.clips, strict=True):
                first, count = clip.window.audio_first, clip.window.audio_count
                assert len(whole) == round(LENGTHS[clip.row] * 16000 / 24)
                assert torch.equal(whole[first : first + count], part)


def test_offsets_asked_for_are_the_offsets_got(tmp_path: Path) -> None:
    compiled.write(tmp_path / "ds", [80, 90, 100], fps=25)
    windows = SyncWindow(SyncTransforms(crop_len_sec=1.2, max_off_sec=0.8, classes=9, audio_jitter_sec=0.0))
    sampler = Sampler(Catalog.open([tmp_path / "ds"]), single_bucket(30, 32, 32, 3), SamplerOptions(windows=windows))
    options = LoaderOptions(resize="none", crop="random", fps=Fraction(25))
    with Loader(sampler, options) as loader:
        for _ in range(4):
            for loaded in loader:
                assert loaded.audio is not None
                for index, clip in enumerate(loaded.batch.clips):
                    first = round(float(loaded.audio[index, 0, 0]) * 2**20)
                    assert abs(first / 16000 - clip.window.first / 25 - clip.window.offset) < 0.005
                    expected = [compiled.level(clip.row, clip.window.first + i) for i in range(30)]
                    assert np.abs(greys(loaded, index) - expected).max() <= 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_kill_changes_no_byte(dataset: Path, world: int) -> None:
    """Batches after a resume are bitwise those of the uninterrupted run, with other numbers of threads and batches ahead."""
    catalog = Catalog.open([dataset])

    def run(state: dict | None, steps: int, threads: int) -> tuple[list[torch.Tensor], dict]:
        sampler = Sampler(catalog, TABLE, SamplerOptions(mirror=0.5), rank=world - 1, world=world)
        out: list[torch.Tensor] = []
        with Loader(sampler, LoaderOptions(threads=threads, ahead=threads)) as loader:
            if state is not None:
                loader.load_state_dict(state)
            while len(out) < 2 * steps:
                for loaded in loader:
                    assert loaded.audio is not None
                    out += [loaded.video, loaded.audio]
                    if len(out) == 2 * steps:
                        break
            return out, json.loads(json.dumps(loader.state_dict()))

    whole, _ = run(None, 7, 2)
    for kill in (1, 3, 5):
        head, state = run(None, kill, 1)
        tail, _ = run(state, 7 - kill, 3)
        for got, expected in zip(head + tail, whole, strict=True):
            assert torch.equal(got, expected)


def test_a_corrupt_sample_is_replaced_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = compiled.write(tmp_path / "ds", LENGTHS)
    catalog = Catalog.open([folder])
    shard = folder / "shards" / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[int(catalog.numbers["mp4_offset"][5]) + 900] ^= 0xFF
    shard.write_bytes(content)
    reports: list[tuple[int, str, str]] = []
    with Loader(Sampler(catalog, TABLE), report=lambda *args: reports.append(args)) as loader:
        batches = list(loader)
    assert [report[:2] for report in reports] == [(5, "00000005")]
    assert "checksum" in reports[0][2]
    rows = [clip.row for loaded in batches for clip in loaded.batch.clips]
    assert len(rows) == len(LENGTHS) and 5 not in rows
    for loaded in batches:
        check(loaded)
    assert sum(len(loaded.replaced) for loaded in batches) == 1
    with caplog.at_level("WARNING"), Loader(Sampler(catalog, TABLE)) as loader:
        assert len(list(loader)) == len(batches)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and told[0].startswith("sample 00000005 (row 5) was replaced") and "checksum" in told[0]


def test_a_damaged_sound_costs_its_sample_where_nothing_is_verified(tmp_path: Path) -> None:
    """DALI's decoder had ended the run: its graph is of no use after an error."""
    folder = compiled.write(tmp_path / "ds", LENGTHS[:4])
    numbers = Catalog.open([folder]).numbers
    content = bytearray((folder / "shards" / "000000.tar").read_bytes())
    content[int(numbers["flac_offset"][1] + numbers["flac_size"][1]) - 3] ^= 1
    (folder / "shards" / "000000.tar").write_bytes(content)
    reports: list[tuple[int, str, str]] = []
    options = LoaderOptions(reader=ReaderOptions(verify=False))
    with Loader(Sampler(Catalog.open([folder]), TABLE), options, report=lambda *args: reports.append(args)) as loader:
        rows = [clip.row for loaded in loader for clip in loaded.batch.clips]
    assert [report[0] for report in reports] == [1] and "sound cannot be decoded" in reports[0][2]
    assert len(rows) == 4 and 1 not in rows


def test_a_corrupt_sample_without_another_that_fits_is_told_with_its_cause(tmp_path: Path) -> None:
    folder = compiled.write(tmp_path / "ds", LENGTHS[:1])
    shard = folder / "shards" / "000000.tar"
    content = bytearray(shard.read_bytes())
    content[int(Catalog.open([folder]).numbers["mp4_offset"][0]) + 900] ^= 0xFF
    shard.write_bytes(content)
    with Loader(Sampler(Catalog.open([folder]), TABLE)) as loader, pytest.raises(UserError) as told:
        list(loader)
    assert "00000000 cannot be used" in str(told.value) and "its checksum differs" in str(told.value)


def test_a_dataset_that_is_broken_throughout_stops(tmp_path: Path) -> None:
    folder = compiled.write(tmp_path / "ds", LENGTHS[:4])
    (folder / "shards" / "000000.tar").write_bytes(b"")
    with Loader(Sampler(Catalog.open([folder]), TABLE)) as loader, pytest.raises(UserError, match="javisc verify"):
        list(loader)


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_are_read_ahead_so_many_at_a_time(dataset: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Reads had waited for a thread to decode, however many `data.reader.threads` there were."""
    now: list[int] = []
    most: list[int] = []
    real = Reader.read

    def slowly(reader: Reader, *arguments: Any) -> dict[str, bytes]:
        now.append(0)
        most.append(len(now))
        time.sleep(0.05)
        now.pop()
        return real(reader, *arguments)

    monkeypatch.setattr(Reader, "read", slowly)
    sampler = Sampler(Catalog.open([dataset]), TABLE, SamplerOptions())
    with Loader(sampler, LoaderOptions(threads=1, ahead=2, reader=ReaderOptions(threads=threads))) as loader:
        list(loader)
    assert max(most) == threads


def test_a_consumer_that_stops_early_leaves_no_thread(dataset: Path) -> None:
    import threading

    with Loader(Sampler(Catalog.open([dataset]), TABLE)) as loader:
        next(iter(loader))
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("javisc-")]


def test_decode_starts_at_any_frame(dataset: Path) -> None:
    mp4 = compiled.video(3, 40, 32, 48, 24)
    whole = frames(mp4, 0, 40)
    assert whole.shape == (40, 32, 48, 3)
    for start, count, stride in [(0, 1, 1), (11, 2, 1), (12, 5, 1), (13, 20, 1), (39, 1, 1), (5, 7, 5)]:
        assert np.array_equal(frames(mp4, start, count, stride=stride), whole[start : start + count * stride : stride])
    with pytest.raises(DecodeError, match="ends before frame 40"):
        frames(mp4, 38, 3)
    with pytest.raises(DecodeError, match="cannot be decoded"):
        frames(b"no mp4 at all", 0, 1)


def test_sound_starts_at_any_sample() -> None:
    wave, flac = compiled.sound(40, 24), io.BytesIO()
    soundfile.write(flac, wave, compiled.RATE, format="FLAC", subtype="PCM_24")
    for first, count in [(0, 5), (1, 1), (9000, 4000), (len(wave) - 3, 3), (len(wave) - 3, 9), (len(wave) + 4, 2)]:
        wanted = np.pad(wave[first : first + count], (0, count - len(wave[first : first + count])))
        assert np.array_equal(samples(flac.getvalue(), first, count)[:, 0], wanted), (first, count)


def test_pictures_are_converted_on_the_thread_that_decodes_them() -> None:
    """swscale started a thread for every core, for every frame: whoever waits for one gives up the processor."""
    mp4 = compiled.video(1, 48, 48, 64, 24)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    made = frames(mp4, 0, 48, short_side=32)
    waited = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
    size = {"width": 42, "height": 32, "interpolation": "BICUBIC"}
    with av.open(io.BytesIO(mp4)) as container:
        assert all(
            np.array_equal(one, frame.to_ndarray(format="rgb24", **size))
            for one, frame in zip(made, container.decode(video=0), strict=True)
        )
    assert waited < 48, "twice a frame with two cores"


def test_resizing_is_bilinear_without_antialias(dataset: Path) -> None:
    """The graph against torch's interpolation, the definition that the reference uses."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (2, 90, 131, 3), dtype=np.uint8)
    size = cover(90, 131, (40, 52))
    video = (
        Graph(GraphOptions(with_audio=False, max_batch_size=1))
        .run([ClipInput(picture, 0, 2, 1, size, (40, 52), (0.0, 1 / 3), False)])
        .video
    )
    left = round((size[1] - 52) / 3)
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(0, 3, 1, 2).float(), size=size, mode="bilinear", align_corners=False
    )[:, :, :40, left : left + 52]
    assert (video[0].permute(1, 0, 2, 3) * 127.5 + 127.5 - reference).abs().max() < 0.01


def test_resize_and_crop_are_javisdits() -> None:
    """Fixture resize_crop: scale to cover, crop the centre, normalise."""
    path = need(PARITY / "javisdit" / "resize_crop.safetensors")
    with safe_open(path, "pt") as file:
        cases = json.loads(file.metadata()["meta"])["cases"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    for name, case in cases.items():
        picture = tensors[f"{name}/in/frames"].permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()
        target = tuple(case["size"])
        size, anchor = framing(*picture.shape[1:3], target, "cover", "centre", seed=0)
        video = (
            Graph(GraphOptions(with_audio=False, max_batch_size=1))
            .run([ClipInput(picture, 0, len(picture), 1, size, target, anchor, False)])
            .video
        )
        expected = tensors[f"{name}/out/y"]
        error = (video[0].permute(1, 0, 2, 3) - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_crop_is_taken_where_it_says(mirror: bool) -> None:
    """Red tells the row and green the column, so a crop says where it came from."""
    picture = np.zeros((1, 40, 60, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 4 * np.arange(40)[:, None], 4 * np.arange(60)
    graph = Graph(GraphOptions(with_audio=False, max_batch_size=1, dtype="uint8"))
    made = graph.run([ClipInput(picture, 0, 1, 1, (40, 60), (16, 20), (0.25, 0.75), mirror)]).video[0, :, 0].numpy()
    crop = picture[0, 6:22, 30:50].transpose(2, 0, 1)
    assert np.array_equal(made, crop[:, :, ::-1] if mirror else crop)
    assert framing(40, 60, (16, 20), "none", "centre", 0) == ((40, 60), (0.5, 0.5))
    assert cover(40, 60, (20, 20)) == (20, 30) and cover(60, 40, (20, 20)) == (30, 20)
    # A random corner may be any, and its row says nothing about its column.
    corners = 10 * np.asarray([framing(26, 26, (16, 16), "none", "random", seed)[1] for seed in range(300)])
    assert [set(np.rint(side).astype(int)) for side in corners.T] == [set(range(11))] * 2
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.2
