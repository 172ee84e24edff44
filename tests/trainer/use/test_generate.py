"""From a prompt to a playable file, with tiny random models of every kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.prior import STIBPrior
from javisc.trainer.models.prior.config import TINY
from javisc.trainer.models.text.t5 import T5
from javisc.trainer.models.tiny import SPATIAL, TEMPORAL
from javisc.trainer.models.vae.audio import AudioLDM2
from javisc.trainer.models.vae.opensora import OpenSoraVAE
from javisc.trainer.objectives.sampling import SamplerConfig
from javisc.trainer.use.generate.conditions import Condition, apply_conditions, audio_position, parse_conditions
from javisc.trainer.use.generate.output import write_clip
from javisc.trainer.use.generate.pipeline import Generated, Models, Prompt, SampleOptions, generate
from support.encoders import tiny_audio, tiny_t5
from support.heap import filled

OPTIONS = SampleOptions(
    resolution="144p", aspect_ratio="1:1", num_frames=18, sampler=SamplerConfig(num_sampling_steps=2)
)


class Letters:
    """A stand-in for the frozen prior text tower: hidden states from the letters."""

    def encode(self, captions: list[str]) -> Tensor:
        rows = [[float(ord(letter) % 7) for letter in text.ljust(9)[:9]] for text in captions]
        return torch.tensor(rows)[..., None] * torch.linspace(-0.2, 0.2, TINY.text_emb_dim)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.manual_seed(0)
    folder = tiny_audio(tmp_path_factory.mktemp("audio"))
    config = dataclasses.replace(PRESETS["VASTDiT3-tiny"], depth=1, prior_attention="sample")
    return Models(
        dit=VASTDiT3(config).eval(),
        text=T5.load(tiny_t5(tmp_path_factory.mktemp("t5")), length=config.model_max_length),
        audio=AudioLDM2.load(folder / "vae", folder / "vocoder"),
        prior=STIBPrior(TINY).eval(),
        prior_text=Letters(),
        video=OpenSoraVAE(SPATIAL, TEMPORAL),
    )


def sound_only(models: Models) -> Models:
    torch.manual_seed(1)
    dit = VASTDiT3(dataclasses.replace(PRESETS["VASTDiT3-tiny-audio"], depth=1)).eval()
    return dataclasses.replace(models, dit=dit, prior=None, prior_text=None, video=None)


def test_a_prompt_becomes_a_file_that_plays(models: Models, tmp_path: Path) -> None:
    steps: list[tuple[int, int, int]] = []
    (clip,) = generate(models, ["a dog barks"], OPTIONS, progress=lambda *told: steps.append(told))
    assert steps == [(0, 1, 2), (0, 2, 2)]
    assert clip.frames is not None and clip.frames.shape == (18, 192, 192, 3) and len(clip.wave) == 12000
    path = write_clip(clip, tmp_path / "clip")
    with av.open(str(path)) as file:
        video, sound = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, sound.codec_context.name, video.average_rate) == ("h264", "aac", 24)
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video)]
        assert len(pictures) == 18 and pictures[0].shape == (192, 192, 3)
        file.seek(0)
        samples = np.concatenate([frame.to_ndarray() for frame in file.decode(sound)], axis=1)
        assert sound.rate == 16000 and samples.shape[0] == 2 and abs(samples.shape[1] - 12000) <= 2048
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_picture_and_sound_survive_the_file(tmp_path: Path) -> None:
    frames = torch.zeros(12, 33, 47, 3, dtype=torch.uint8)
    frames[6:] = 200
    wave = torch.zeros(8000)
    wave[4000:] = torch.sin(torch.arange(4000) * 0.3) * 0.5
    path = write_clip(Generated("x", frames, wave, 24.0, 0), tmp_path / "flash.mp4")
    with av.open(str(path)) as file:
        light = [float(frame.to_ndarray(format="rgb24").mean()) for frame in file.decode(video=0)]
        assert max(light[:6]) < 20 and min(light[6:]) > 180
        file.seek(0)
        sound = file.streams.audio[0]
        decoded = [(float(f.pts * f.time_base), f.to_ndarray()[0]) for f in file.decode(sound)]
        start = min(at for at, _ in decoded)
        heard = np.concatenate([samples for _, samples in decoded])
        onset = np.flatnonzero(np.abs(heard) > 0.1)[0] / 16000 + start
        assert abs(onset - 0.25) < 0.02
    slow = write_clip(Generated("x", frames, wave, 12.5, 0), tmp_path / "slow.mp4")
    with av.open(str(slow)) as file:
        assert [float(frame.time) for frame in file.decode(video=0)] == pytest.approx([n / 12.5 for n in range(12)])


def test_equal_pictures_are_equal_files(tmp_path: Path) -> None:
    """At sizes that are no whole number of macroblocks, whatever the encoder finds in new memory."""
    draw = torch.Generator().manual_seed(0)
    blocks = (
        torch.randint(0, 256, (30, 54, 3), dtype=torch.uint8, generator=draw)
        .repeat_interleave(8, 0)
        .repeat_interleave(8, 1)
    )
    frames = torch.stack([blocks.roll((n, 2 * n), (0, 1)) for n in range(30)])[:, :, :426]
    clip = Generated("x", frames, torch.randn(20000, generator=draw) / 8, 24.0, 0)
    made = set()
    for byte in (1, 85, 254):
        with filled(byte):
            made.add(write_clip(clip, tmp_path / f"{byte}.mp4").read_bytes())
    assert len(made) == 1


def test_a_clip_depends_on_its_text_and_index_alone(models: Models) -> None:
    prompts = ["a dog", "a dog barks", "barks"]
    together = list(generate(models, prompts, dataclasses.replace(OPTIONS, batch_size=2)))
    (alone,) = generate(models, prompts[1:2], OPTIONS, first_index=1)
    loudest = alone.wave.abs().max()
    assert (together[1].wave - alone.wave).abs().max() < 1e-2 * loudest
    assert together[1].frames is not None and alone.frames is not None
    assert (together[1].frames.int() - alone.frames.int()).abs().max() <= 1
    (other,) = generate(models, prompts[1:2], OPTIONS, first_index=2)
    assert (other.wave - alone.wave).abs().max() > 1e-1 * loudest


def test_sound_alone(models: Models, tmp_path: Path) -> None:
    (clip,) = generate(sound_only(models), ["a dog barks"], dataclasses.replace(OPTIONS, resolution=""))
    path = write_clip(clip, tmp_path / "clip.mp4")
    assert path.name == "clip.wav" and clip.frames is None and len(clip.wave) == 12000
    with av.open(str(path)) as file:
        assert sum(frame.samples for frame in file.decode(audio=0)) == 12000


def test_given_frames_come_through(models: Models) -> None:
    from javisc.trainer.use.generate import pipeline

    size = pipeline.clip_size(models, OPTIONS)
    given = {"video": torch.randn(4, 6, 24, 24), "audio": torch.randn(8, 24, 16)}
    prompt = Prompt("a dog", "0,0,0,0,1,0,0", (given,))
    latents = pipeline.denoise(models, [prompt], [0], OPTIONS, size)
    assert torch.equal(latents["video"][0, :, 0], given["video"][:, 0])
    assert torch.equal(latents["audio"][0, :, : audio_position(1, 24)], given["audio"][:, : audio_position(1, 24)])
    assert not torch.allclose(latents["video"][0, :, 1], given["video"][:, 1])


def test_condition_strings() -> None:
    assert parse_conditions("0,1,7,12,3,0.5,1; 1,0,0,-5,2,0,3") == [
        Condition(0, 1, 5, 10, 3, 0.5, 1),
        Condition(1, 0, 0, -5, 2, 0.0, 3),
    ]
    assert parse_conditions(" ") == []
    for text, message in (
        ("0,0,0", "has 3 numbers; it needs seven"),
        ("0,0,a,0,1,0,0", "not made of numbers"),
        ("0,0,0,0,1,2,0", "range"),
    ):
        with pytest.raises(UserError, match=message):
            parse_conditions(text)


def test_conditions_place_references_and_masks() -> None:
    z = {"video": torch.zeros(2, 4, 10, 2, 2), "audio": torch.zeros(2, 8, 40, 4)}
    given = {"video": torch.ones(4, 10, 2, 2), "audio": torch.ones(8, 40, 4)}
    own = [parse_conditions("0,0,0,-5,9,0.25,1"), parse_conditions("0,0,0,0,1,0,3")]
    masks = apply_conditions(z, own, [[given], [given]], 24.0)
    assert masks is not None
    assert masks["video"][0].tolist() == [1.0] * 5 + [0.25] * 5 and masks["audio"][0].tolist() == [1.0] * 40
    assert masks["video"][1].tolist() == [0.0] + [1.0] * 9 and masks["audio"][1].tolist() == [0.0] * 40
    assert torch.equal(z["video"][0, 0, :, 0, 0], (masks["video"][0] < 1).float())
    assert torch.equal(z["audio"][1], given["audio"])
    assert apply_conditions(z, [[], []], [[], []], 24.0) is None
    with pytest.raises(UserError, match="names reference 0; it has 0"):
        apply_conditions(z, own, [[], []], 24.0)
    with pytest.raises(UserError, match="give the same size"):
        apply_conditions(z, own, [[{"video": torch.ones(4, 10, 3, 2)}], [given]], 24.0)


def test_what_is_missing_is_said(models: Models) -> None:
    with pytest.raises(UserError, match="give the prior"):
        dataclasses.replace(models, prior=None)
    with pytest.raises(UserError, match="give the video autoencoder"):
        dataclasses.replace(models, video=None)
