"""`javisc build prior separate --separator` with a narrow AudioSep: its checkpoint, its sums, and that no code of it is run."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
import torch

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.use.prior.audiosep.model import RATE, Base, ResUNet30, flops
from javisc.trainer.use.prior.audiosep.weights import load, read
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.prior.separate import Separate
from javisc.trainer.use.prior.separators import Network
from javisc.trainer.use.prior.stage import Part
from support import compiled


@pytest.fixture
def folder(separator: Path) -> Path:
    return separator


def test_the_model_has_the_published_names_and_sizes() -> None:
    with torch.device("meta"):
        state = ResUNet30().state_dict()
    for name, shape in {
        "base.pre_conv.weight": (32, 1, 1, 1),
        "base.bn0.running_mean": (1025,),
        "base.encoder_block5.conv_block1.shortcut.weight": (384, 256, 1, 1),
        "base.conv_block7a.conv_block1.conv2.weight": (384, 384, 3, 3),
        "base.decoder_block1.conv1.weight": (384, 384, 1, 2),
        "base.decoder_block3.bn2.weight": (384,),
        "base.decoder_block6.conv_block2.conv1.weight": (32, 64, 3, 3),
        "base.after_conv.weight": (3, 32, 1, 1),
        "film.encoder_block1->conv_block1->beta1.weight": (32, 512),
        "film.decoder_block6->beta1.bias": (64,),
        "film.decoder_block6->conv_block2->beta1.weight": (64, 512),
    }.items():
        assert tuple(state[name].shape) == shape, name
    assert not any("encoder_block1.conv_block1.shortcut" in name for name in state), "equal widths have none"
    assert 400e9 < flops(10.0) < 500e9


def test_an_open_mask_gives_the_mixture_back() -> None:
    """sigmoid → 1 and a turn of zero: the transform and its inverse alone. The highest frequency has no mask in AudioSep."""
    model = ResUNet30((4,) * 7, 8).eval()
    with torch.no_grad():
        model.base.after_conv.weight.zero_()
        model.base.after_conv.bias.copy_(torch.tensor([50.0, 1.0, 0.0]))
        time = torch.arange(RATE // 3) / RATE
        wave = 0.2 * torch.sin(2 * torch.pi * torch.tensor([[440.0], [3000.0]]) * time)
        out = model(wave, torch.randn(2, 8))
    assert out.shape == wave.shape and (out - wave).abs().max() < 2e-4
    assert isinstance(model.base, Base)


def test_the_checkpoint_is_read_without_its_code(folder: Path, tmp_path: Path) -> None:
    assert load(folder / "audiosep.ckpt").base.pre_conv.out_channels == 4
    assert not any("stft" in name or "query" in name for name in read(folder / "audiosep.ckpt"))

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "run"),)

    for number, bad in enumerate(({"state_dict": {}, "x": Evil()}, {"state_dict": Evil()}, {"x": np.zeros(3)})):
        torch.save(bad, tmp_path / f"{number}.ckpt")
        with pytest.raises(UserError, match="without running code|no checkpoint of AudioSep"):
            read(tmp_path / f"{number}.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cut.ckpt").write_bytes((folder / "audiosep.ckpt").read_bytes()[:5000])
    for name in ("raw", "cut"):
        with pytest.raises(UserError):
            read(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "run").exists()
    state = torch.load(folder / "audiosep.ckpt", weights_only=False)["state_dict"]
    torch.save(
        {"state_dict": {**state, "ss_model.base.pre_conv.weight": torch.zeros(5, 1, 1, 1)}}, tmp_path / "odd.ckpt"
    )
    with pytest.raises(UserError, match="does not fit a ResUNet30"):
        load(tmp_path / "odd.ckpt")


@pytest.mark.usefixtures("here")
def test_sources_and_the_rest_are_the_clip(folder: Path, tmp_path: Path) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50, 36], hiss=True)
    path = dataset / "manifest.parquet"
    texts = ["rain and a dog barks, wind in the background", "a cat", "music (loud)"]
    pl.read_parquet(path).with_columns(text=pl.Series(texts)).write_parquet(path)
    pool = tmp_path / "pool"
    done = run("separate", {"dataset": str(dataset), "separator": str(folder)}, str(pool), RunOptions(workers=1))
    assert (done.samples, dict(done.rejected)) == (5, {"no_caption": 1})
    rows = pl.read_parquet(pool / "manifest.parquet")
    assert rows["text"].to_list() == ["rain", "a dog barks", "rest", "a cat", "rest"], "in the order of the text"
    assert json.loads((pool / "dataset.json").read_text())["prior"]["separator"] == "AudioSep"
    for key, group in rows.group_by("clip_key"):
        sounds = [soundfile.read(io.BytesIO(Dataset.open(pool).read(name)["flac"]))[0] for name in group["key"]]
        whole = soundfile.read(io.BytesIO(Dataset.open(dataset).read(str(key[0]))["flac"]))[0]
        assert np.abs(sum(sounds) - whole).max() < 1e-6 and sounds[0].std() > 0

    (tmp_path / "t.csv").write_text("id,description\n0,a bell\n0,None\n")
    settings = {"dataset": str(dataset), "separator": str(folder), "descriptions": str(tmp_path / "t.csv")}
    done = run("separate", settings, str(tmp_path / "told"), RunOptions(workers=1))
    assert pl.read_parquet(tmp_path / "told/manifest.parquet")["text"].to_list() == ["a bell", "rest"]


def test_numbers_that_are_not_finite_are_refused_and_not_stored(folder: Path, tmp_path: Path) -> None:
    stage = Separate(str(compiled.write(tmp_path / "ds", [40, 50], hiss=True)), separator=str(folder))
    items = list(stage.items(tmp_path))

    def separator(wave: np.ndarray, rate: int, queries: list[str]) -> list[np.ndarray]:
        return [wave * (np.nan if queries == items[0]["queries"] else 0.5) for _ in queries]

    made = stage.work(Part(0, items, {}), (separator, None), tmp_path)
    told = [(row["key"], row["reason"], row["message"]) for row in made.rejects]
    assert told == [(items[0]["key"], "internal", "the separator gave numbers that are not finite")]
    assert {row["clip_key"] for row, _ in made.samples} == {items[1]["key"]}


def test_a_query_does_not_depend_on_the_others(folder: Path) -> None:
    separator = Network(str(folder)).load("cpu")
    wave = np.random.default_rng(0).normal(0, 0.1, 20_000)
    [alone] = separator(wave, 16000, ["a dog"])
    many = separator(wave, 16000, ["rain that falls on a very large tin roof", "wind", "a cat", "a bell", "a dog"])
    assert np.array_equal(alone, many[4]) and not np.array_equal(many[0], many[4]) and len(alone) == len(wave)


def test_folders_that_hold_no_separator_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 0 files \*\.ckpt: one is needed"):
        Network(str(tmp_path))
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        Network(str(tmp_path))
