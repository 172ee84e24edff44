"""Colour augmentation in the graph against plain definitions, one operation after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import functional as vision

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.colour import Colour, ColourJitter
from javisc.trainer.data.bytes.graph import ClipInput, Graph, GraphOptions
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.index.assign import single_bucket
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.sampler import Sampler, SamplerOptions
from support import compiled

SIZE = (20, 28)


def through_graph(pictures: list[NDArray[np.uint8]], colours: list[Colour], dtype: str = "float32") -> torch.Tensor:
    """(B, F, 3, H, W) in 0..255: what the graph makes of clips (F, H, W, 3) of the crop's own size."""
    options = GraphOptions(
        with_audio=False, max_batch_size=4, mean=(0, 0, 0), std=(1, 1, 1), layout="FCHW", dtype=dtype, colour=ColourJitter()
    )  # fmt: skip
    clips = [
        ClipInput(picture, 0, len(picture), 1, SIZE, SIZE, (0, 0), False, colour=colour)
        for picture, colour in zip(pictures, colours, strict=True)
    ]
    return Graph(options).run(clips).video.clone()


def plain(picture: NDArray[np.uint8], colour: Colour) -> NDArray[np.float64]:
    """The definition step by step: brightness, contrast about mid-grey, saturation about luma, hue in YIQ, then clipped."""
    x = picture.astype(np.float64) * colour.brightness
    x = 127.5 + colour.contrast * (x - 127.5)
    luma = x @ [0.299, 0.587, 0.114]
    x = luma[..., None] + colour.saturation * (x - luma[..., None])
    i, q = x @ [0.5959, -0.2746, -0.3213], x @ [0.2115, -0.5227, 0.3112]
    turned = (i + 1j * q) * np.exp(2j * np.pi * colour.hue)
    # Back: the one colour that has this luma and these two coordinates.
    axes = np.asarray([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    wanted = np.stack([x @ axes[0], turned.real, turned.imag], -1)
    out = np.linalg.solve(axes, wanted[..., None])[..., 0]
    return out.clip(0, 255)


def pictures(seed: int, frames: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, *SIZE, 3), dtype=np.uint8)


def test_the_graph_is_the_plain_definition() -> None:
    generator = np.random.default_rng(1)
    clips = [pictures(seed) for seed in range(4)]
    colours = [Colour(*generator.uniform(0, 2, 3), generator.uniform(-0.5, 0.5)) for _ in clips]
    got = through_graph(clips, colours)
    for index, (clip, colour) in enumerate(zip(clips, colours, strict=True)):
        error = np.abs(got[index].permute(0, 2, 3, 1).numpy() - plain(clip, colour)).max()
        assert error < 0.01, (index, colour, error)


def test_brightness_and_saturation_are_torchvisions() -> None:
    clip = pictures(9)
    source = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
    for colour, expected in (
        (Colour(brightness=1.4), vision.adjust_brightness(source, 1.4)),
        (Colour(saturation=0.3), vision.adjust_saturation(source, 0.3)),
        (Colour(saturation=1.7), vision.adjust_saturation(source, 1.7)),
    ):
        assert (through_graph([clip], [colour])[0] / 255 - expected).abs().max() < 1e-3


def test_no_change_changes_nothing_and_hue_keeps_grey() -> None:
    clip = pictures(3)
    same = through_graph([clip], [Colour()])[0].permute(0, 2, 3, 1)
    assert (same - torch.from_numpy(clip)).abs().max() < 1e-3
    grey = np.repeat(clip[..., :1], 3, -1)
    turned = through_graph([grey], [Colour(hue=0.3, saturation=1.8)])[0].permute(0, 2, 3, 1)
    assert (turned - torch.from_numpy(grey)).abs().max() < 1e-2
    assert torch.equal(through_graph([clip], [Colour()], "uint8")[0].permute(0, 2, 3, 1), torch.from_numpy(clip))


@settings(max_examples=50)
@given(st.integers(0, 2**62), st.floats(0, 1), st.floats(0, 0.5))
def test_draws_are_the_seeds_and_inside_the_limits(seed: int, strength: float, hue: float) -> None:
    jitter = ColourJitter(strength, strength, strength, hue)
    colour = jitter.drawn(seed)
    assert colour == jitter.drawn(seed)
    assert all(abs(f - 1) <= strength for f in (colour.brightness, colour.contrast, colour.saturation))
    assert abs(colour.hue) <= hue
    assert ColourJitter(probability=0).drawn(seed) == Colour()


def test_every_clip_of_a_batch_has_its_own_colour(tmp_path: Path) -> None:
    """The loader with colour against the loader without it and the definition, clip by clip; frames of a clip agree."""
    catalog = Catalog.open([compiled.write(tmp_path / "ds", [30, 30, 30])])
    jitter = ColourJitter(0.3, 0.3, 0.9, 0.2)

    def run(colour: ColourJitter | None) -> Loaded:
        sampler = Sampler(catalog, single_bucket(4, *SIZE, 3), SamplerOptions(mirror=0.5))
        graph = GraphOptions(mean=(0, 0, 0), std=(1, 1, 1), layout="FCHW", colour=colour)
        with Loader(sampler, LoaderOptions(graph=graph)) as loader:
            return next(iter(loader))

    raw, moved, again = run(None), run(jitter), run(jitter)
    assert torch.equal(moved.video, again.video)
    drawn = [jitter.drawn(clip.seed) for clip in moved.batch.clips]
    assert len(set(drawn)) == 3
    for index, colour in enumerate(drawn):
        expected = plain(raw.video[index].permute(0, 2, 3, 1).numpy(), colour)
        assert np.abs(moved.video[index].permute(0, 2, 3, 1).numpy() - expected).max() < 0.01


@pytest.mark.parametrize("wrong", [{"hue": 0.6}, {"brightness": -0.1}, {"probability": 2}, {"contrast": float("nan")}])
def test_impossible_strengths_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"colour {next(iter(wrong))}="):
        ColourJitter(**wrong)
