"""Batches of clips, and the latents that frozen networks make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.aspects import image_size
from javisc.trainer.data.sources.clips import ClipData, Clips, ClipSource
from javisc.trainer.models import tiny
from javisc.trainer.models.encoders import Encoders, EncodersConfig, recorded
from javisc.trainer.tasks.latents import encode, latents_of, source
from javisc.trainer.transforms.javisdit_mel import mel_input
from support import compiled

BUCKETS = {"48x64": {"34": [[1.0, 0.5], 2], "17": [1.0, 3]}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = compiled.write(tmp_path_factory.mktemp("clips") / "ds", [40, 50, 36, 20, 60, 38, 40, 41], fps=24)
    path = folder / "manifest.parquet"
    rows = pl.read_parquet(path)
    heard = pl.Series([f"sound {i}" if i % 2 else None for i in range(len(rows))], dtype=pl.String)
    rows.with_columns(split=pl.Series(["train"] * 6 + ["val"] * 2), audio_text=heard).write_parquet(path)
    return folder


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return Encoders(EncodersConfig(tiny=True, precision="fp32"), CPU, caption_length=24)


def clips(dataset: Path, **options: object) -> list[Clips]:
    made = ClipSource(ClipData(paths=[str(dataset)], buckets=BUCKETS), "train", seed=3, **options)  # type: ignore[arg-type]
    try:
        return list(made)
    finally:
        made.close()


def test_clips_are_rectangular_and_sound_is_the_pictures(dataset: Path) -> None:
    batches = clips(dataset)
    assert sorted(key for batch in batches for key in batch.keys) == [f"{i:08d}" for i in range(6)]
    assert {batch.frames for batch in batches} == {17, 34}
    for batch in batches:
        rows, samples = len(batch.keys), round(batch.frames * 16000 / 24)
        assert batch.video is not None and batch.video.shape == (rows, 3, batch.frames, 48, 64)
        assert batch.sound.shape == (rows, samples) and batch.mel.shape[:2] == (rows, 1) and batch.mel.shape[3] == 64
        assert batch.captions == [f"clip {int(key)}" for key in batch.keys]
        # A frame's grey tells its number, the sound's ramp where it was cut: both must tell the same start.
        first = (batch.sound[:, 0] * 2**20 / 16000 * 24).round().int().tolist()
        for row, (key, start) in enumerate(zip(batch.keys, first, strict=True)):
            grey = (batch.video[row, :, 0, -8:, -8:].mean() + 1) * 127.5
            assert abs(float(grey) - (compiled.level(int(key), start) - 16) * 255 / 219) < 4


def test_sound_alone_reads_no_pictures_and_other_captions(dataset: Path) -> None:
    batches = clips(dataset, with_video=False)
    assert all(batch.video is None for batch in batches)
    heard = {key: text for batch in batches for key, text in zip(batch.keys, batch.captions, strict=True)}
    assert heard == {f"{i:08d}": f"sound {i}" if i % 2 else f"clip {i}" for i in range(6)}
    for batch in batches:
        assert torch.allclose(batch.mel, mel_input(batch.sound, seconds=batch.sound.shape[1] / 16000), atol=1e-5)


def test_both_paths_to_a_mel_agree(dataset: Path) -> None:
    for padding in ("zero", "silence"):
        data = ClipData(paths=[str(dataset)], buckets={"48x64": {"17": [1.0, 6]}}, mel_padding=padding)
        seen, heard = (ClipSource(data, "train", seed=3, with_video=with_video) for with_video in (True, False))
        a, b = next(iter(seen)), next(iter(heard))
        seen.close(), heard.close()
        assert a.mel.shape == b.mel.shape == (6, 1, 96, 64)
        order = [b.keys.index(key) for key in a.keys]
        assert torch.allclose(a.mel[:, :, 71:], b.mel[order][:, :, 71:])
        assert float(a.mel[0, 0, -1, 0]) == pytest.approx(0.0 if padding == "zero" else np.log(1e-5))


def test_a_source_continues_where_another_stood(dataset: Path) -> None:
    data = ClipData(paths=[str(dataset)], buckets=BUCKETS)
    whole, first, second = (ClipSource(data, "train", seed=3) for _ in range(3))
    every = list(whole)
    begun = iter(first)
    next(begun)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert [b.keys for b in rest] == [b.keys for b in every[1:]] and [b.seeds for b in rest] == [
        b.seeds for b in every[1:]
    ]
    assert all(torch.equal(a.mel, b.mel) for a, b in zip(rest, every[1:], strict=True))
    for one in (whole, first, second):
        one.close()


def test_held_out_ranks_take_the_same_steps_and_each_has_clips(dataset: Path) -> None:
    data = ClipData(paths=[str(dataset)], buckets={"48x64": {"17": [1.0, 3]}})
    for world, lost in ((1, 0), (2, 0), (4, 2), (6, 0)):  # six clips in batches of three
        every = []
        for rank in range(world):
            held_out = ClipSource(data, "train", seed=3, rank=rank, world=world, train=False)
            every.append([batch.keys for batch in held_out])
            held_out.close()
        assert len({len(own) for own in every}) == 1 and all(keys for own in every for keys in own)
        seen = [key for own in every for keys in own for key in keys]
        assert len(set(seen)) == len(seen) >= 6 - lost
    with pytest.raises(UserError, match="2 clips of split 'val' do not give each of 3 processes a batch"):
        ClipSource(data, "val", seed=3, world=3, train=False)


def test_a_rows_latents_do_not_depend_on_its_batch(dataset: Path, encoders: Encoders) -> None:
    import dataclasses

    batch = next(batch for batch in clips(dataset) if len(batch.keys) > 1)
    assert batch.video is not None
    together = encode(encoders, batch, prior_text=True)
    assert together.video is not None and together.prior_text is not None
    assert together.video.shape[:2] == (len(batch.keys), 4) and together.audio.shape[1] == 8
    assert together.text.shape == (len(batch.keys), 1, 24, tiny.WIDTH) and together.prior_text.shape[2] == tiny.WIDTH
    alone = dataclasses.replace(
        batch, video=batch.video[1:2], mel=batch.mel[1:2], captions=batch.captions[1:2], seeds=batch.seeds[1:2]
    )
    one = encode(encoders, alone, prior_text=False)
    assert one.video is not None and one.prior_text is None
    assert torch.allclose(one.video, together.video[1:2], atol=1e-4)
    assert torch.allclose(one.audio, together.audio[1:2], atol=1e-4)
    other = encode(encoders, dataclasses.replace(alone, seeds=[7]), prior_text=False)
    assert (other.audio - one.audio).abs().max() > 1e-3
    assert latents_of(together, encoders, prior_text=True).audio is together.audio


def test_tiny_networks_are_the_same_from_the_same_seed() -> None:
    state = torch.random.get_rng_state()
    for make in (tiny.video_vae, tiny.prior):
        a, b, c = make(1).state_dict(), make(1).state_dict(), make(2).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a) and any(not torch.equal(a[name], c[name]) for name in a)
    words, _ = tiny.t5(8).encode(["a dog", "a cat"])
    again, _ = tiny.t5(8).encode(["a dog", "a cat"])
    assert torch.equal(words, again) and not torch.equal(words[0], words[1])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": []}, "no dataset: add --data"),
        ({"buckets": {"17p": {"17": [1, 1]}}}, "resolution '17p' is unknown"),
        ({"buckets": {"144p": {"17": 3}}}, r"data\.buckets\.144p\.17=3: write FRAMES: \["),
        ({"buckets": {"144p": {"17": [2.0, 4]}}}, r"data\.buckets\.144p\.17: a probability is 0 to 1"),
        ({"buckets": {"144p": {"17": [[1.0, -0.5], 4]}}}, r"-0\.5 of the length"),
        ({"buckets": {"144p": {"17": [1.0, 0]}}}, "batch size are at least 1"),
        ({"buckets": {"144p": {"-3": [1.0, 1]}}}, "frames and batch size are at least 1"),
        ({"buckets": {"144p": {"17": [float("nan"), 1]}}}, "a probability is 0 to 1"),
        ({"buckets": {"144p": {"17": [1, 1]}}, "aspects": ["9.99"]}, "144p has none of 9.99"),
        ({"decoder": "tpu"}, "data.decoder='tpu'"),
    ],
)
def test_mistakes_are_told(dataset: Path, settings: dict[str, object], message: str) -> None:
    options = {"paths": [str(dataset)], "buckets": BUCKETS, **settings}
    with pytest.raises(UserError, match=message):
        source(ClipData(**options), "train", seed=0)  # type: ignore[arg-type]


def test_a_size_may_be_a_resolution() -> None:
    assert image_size("48x64", "9:16") == (48, 64) and image_size("144p", "9:16") == (144, 256)
    with pytest.raises(UserError, match="or HEIGHTxWIDTH"):
        image_size("0x5", "1:1")


def test_a_missing_encoder_is_told_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encoders.t5 is not set; download DeepFloyd"):
        Encoders(EncodersConfig(), CPU).check(["t5"])
    Encoders(EncodersConfig(tiny=True), CPU).check(["t5", "prior"])
    with pytest.raises(UserError, match=r"encoders\.vocoder: .*nowhere is not there"):
        Encoders(EncodersConfig(tiny=True, vocoder=str(tmp_path / "nowhere")), CPU).check(["t5", "vocoder"])
    with pytest.raises(UserError, match="encoders.precision='int8'"):
        Encoders(EncodersConfig(precision="int8"), CPU)


def test_a_recipe_that_lies_about_its_encoders_is_refused(tmp_path: Path) -> None:
    assert recorded(tmp_path) == EncodersConfig()
    (tmp_path / "recipe.json").write_text('{"encoders": {"t5": "/w/t5", "tiny": true}}')
    assert recorded(tmp_path) == EncodersConfig(t5="/w/t5", tiny=True)
    for wrong in ('{"encoders": {"t5": 3}}', '{"encoders": {"t6": "x"}}', '{"encoders": []}'):
        (tmp_path / "recipe.json").write_text(wrong)
        with pytest.raises(UserError, match="its encoders are not those of a recipe"):
            recorded(tmp_path)
