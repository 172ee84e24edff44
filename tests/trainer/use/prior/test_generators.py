"""`javisc build prior unpaired --generator` with a tiny AudioLDM2: a row is its own, whatever stands beside it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.use.prior.generators import ADAPTERS, SHARES, Generator
from javisc.trainer.use.prior.run import RunOptions, run
from support import compiled, tiny_generators

TEXTS = [
    "rain",
    "a dog barks at a very long train that goes by, then rain, and then a bell rings",
    "wind",
    "a cat",
    "a bell",
]


@pytest.fixture
def model(generator: Path) -> Path:
    return generator


def item(number: int, **more: Any) -> dict[str, Any]:
    return {"key": f"k{number}", "text": TEXTS[number], "audio_text": None, "duration": 1.0, "audio_fps": 16000, **more}


def made(generator: Generator, pipe: Any, items: list[dict[str, Any]], match: bool = False) -> dict[str, np.ndarray]:
    found = {each["key"]: wave for each, wave in generator.sounds(pipe, items, match)}
    assert all(wave is not None for wave in found.values())
    return found  # type: ignore[return-value]


def test_a_row_is_bitwise_its_own(model: Path) -> None:
    generator = Generator(str(model), steps=3, batch_size=3)
    pipe = generator.load("cpu")
    alone = {key: wave for number in range(5) for key, wave in made(generator, pipe, [item(number)]).items()}
    together = made(generator, pipe, [item(number) for number in range(5)])
    backwards = made(generator, pipe, [item(number) for number in (4, 2, 0, 3, 1)])
    for key, wave in alone.items():
        assert np.array_equal(wave, together[key]) and np.array_equal(wave, backwards[key])
        assert len(wave) == 512 and wave.std() > 0
    assert len({wave.tobytes() for wave in alone.values()}) == 5
    other = Generator(str(model), steps=3, batch_size=3, seed=1)
    assert not np.array_equal(made(other, pipe, [item(0)])["k0"], alone["k0"])
    guided = Generator(str(model), steps=3, batch_size=3, negative="a loud hum")
    assert not np.array_equal(made(guided, pipe, [item(0)])["k0"], alone["k0"])
    plain = Generator(str(model), steps=3, batch_size=3, guidance=1.0)
    assert not np.array_equal(made(plain, pipe, [item(0)])["k0"], alone["k0"])


def test_a_batch_encoded_together_would_not_be(model: Path) -> None:
    """The trap that captions are encoded alone for: the same caption beside a longer one is another condition."""
    pipe = Generator(str(model)).load("cpu")
    one = pipe.encode_prompt(TEXTS[0], pipe.device, 1, False)[2]
    two = pipe.encode_prompt(TEXTS[:2], pipe.device, 1, False)[2][:1]
    assert (one - two).abs().max() > 0.01 * one.abs().max()


@pytest.mark.parametrize("name", sorted(tiny_generators.MAKERS))
def test_other_pipelines_make_what_they_are_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duration and rate are the pipeline's own, and a row is bitwise the same whatever its neighbours and its place."""
    monkeypatch.setattr("javisc.trainer.use.prior.generators.USUAL", 0.64)
    generator = Generator(str(tiny_generators.MAKERS[name](tmp_path / "model")), steps=2, batch_size=3)
    assert generator.kind == name
    pipe = generator.load("cpu")
    assert generator.adapter.rate(pipe) == tiny_generators.RATE
    asked = [item(number, duration=0.5 if number % 2 else 0.16, audio_fps=4000) for number in range(3)]
    longest = min(0.64, generator.adapter.longest(pipe))
    alone = {key: wave for each in asked for key, wave in made(generator, pipe, [each], match=True).items()}
    for number in range(3):
        wanted = next(longest * share for share in SHARES if longest * share >= asked[number]["duration"])
        wave = alone[f"k{number}"]
        # A frame of latents more or less, and one clip's rate is twice the pipeline's.
        assert abs(len(wave) / 4000 - wanted) < 0.03 and np.isfinite(wave).all() and wave.std() > 0, (len(wave), wanted)
    together = made(generator, pipe, asked, match=True)
    backwards = made(generator, pipe, [asked[number] for number in (2, 0, 1)], match=True)
    for key, wave in alone.items():
        assert np.array_equal(wave, together[key]) and np.array_equal(wave, backwards[key]), key
    assert len({wave.tobytes() for wave in alone.values()}) == 3
    other = Generator(str(tmp_path / "model"), steps=2, batch_size=3, seed=1)
    assert not np.array_equal(made(other, pipe, asked[:1], match=True)["k0"], alone["k0"])


def test_durations_fall_into_few_classes_and_are_capped(model: Path) -> None:
    generator = Generator(str(model), steps=1, batch_size=2)
    pipe = generator.load("cpu")  # it makes 0.032 s at most, as AudioLDM2 10.24
    asked = [
        item(0, duration=0.005),
        item(2, duration=0.0161),
        item(3, duration=99.0),
        item(4, duration=0.024, audio_fps=8000),
    ]
    lengths = {key: len(wave) for key, wave in made(generator, pipe, asked, match=True).items()}
    assert lengths == {"k0": 128, "k2": 384, "k3": 512, "k4": 192}
    assert {len(wave) for wave in made(generator, pipe, asked[:3]).values()} == {512}


@pytest.mark.usefixtures("here")
def test_the_pool_says_what_made_it_and_how_long_it_is(model: Path, tmp_path: Path) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50, 36], hiss=True)
    settings = {"dataset": str(dataset), "generator": str(model), "steps": 2, "batch_size": 2, "match_duration": True}
    done = run("unpaired", settings, str(tmp_path / "pool"), RunOptions(part_size=2, workers=1))
    assert done.samples == 3
    header = json.loads((tmp_path / "pool/dataset.json").read_text())["prior"]
    assert header["generator"] == "AudioLDM2Pipeline" and len(header["weights"]) == 64 and header["guidance"] == 3.5
    for row in pl.read_parquet(tmp_path / "pool/manifest.parquet").iter_rows(named=True):
        wave, _ = soundfile.read(io.BytesIO(Dataset.open(tmp_path / "pool").read(row["key"])["flac"]))
        # Longer clips get what the model can make, and no silence after it.
        assert row["unpaired_seconds"] == 0.032 and len(wave) == 512 and np.abs(wave[-50:]).max() > 0
        assert row["text"].startswith("clip ")


@pytest.mark.usefixtures("here")
def test_a_clip_without_sound_gets_one_and_a_row_without_a_rate_is_refused(model: Path, tmp_path: Path) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50], hiss=True)
    path = dataset / "manifest.parquet"
    second = pl.col("key") == "00000001"
    silent = [pl.lit(None).cast(pl.Int64).alias(f"flac_{what}") for what in ("offset", "size")]
    frame = pl.read_parquet(path).with_columns(*silent, num_samples=pl.lit(0, pl.Int64))
    frame.with_columns(audio_fps=pl.when(second).then(None).otherwise("audio_fps")).write_parquet(path)
    settings = {"dataset": str(dataset), "generator": str(model), "steps": 1, "batch_size": 1}
    done = run("unpaired", settings, str(tmp_path / "pool"), RunOptions(workers=1))
    assert (done.samples, dict(done.rejected)) == (1, {"no_audio": 1})
    assert pl.read_parquet(tmp_path / "pool/manifest.parquet")["clip_key"].to_list() == ["00000000"]


def test_other_classes_are_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(
        UserError, match="names the class StableDiffusionPipeline; known are AudioLDM2Pipeline, StableAudioPipeline"
    ):
        Generator(str(tmp_path))
    with pytest.raises(UserError, match="is no folder: give a local folder"):
        Generator("cvssp/audioldm2")
    (tmp_path / "model_index.json").write_text('{"_class_name": "AudioLDM2Pipeline"}')
    with pytest.raises(UserError, match="cannot be loaded as AudioLDM2Pipeline"):
        Generator(str(tmp_path)).load("cpu")


def test_every_adapter_is_a_class_of_the_installed_diffusers() -> None:
    import inspect

    import diffusers

    for name, adapter in ADAPTERS.items():
        taken = inspect.signature(getattr(diffusers, name).__call__).parameters
        wanted = {adapter.duration, "num_inference_steps", "guidance_scale", "generator", "prompt"}
        assert wanted <= set(taken) and adapter.negative == ("negative_prompt" in taken), name
