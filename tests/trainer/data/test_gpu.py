"""The graph on a GPU: its definition is checked everywhere, its output against the CPU's where there is a device.

What they may differ by: the two H.264 decoders give the same planes, but interpolate chroma and convert to RGB each in their own
way. On pictures whose colours change smoothly that is within 3 of 255 levels anywhere and 1 on average; at sharp
edges of colour it may be more, and no augmentation makes it less. Sound is decoded by the same code: bit-equal.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.colour import ColourJitter
from javisc.trainer.data.bytes.graph import Graph, GraphOptions, operators
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.bytes.spectra import Spectrum
from javisc.trainer.data.index.assign import single_bucket
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.sampler import Sampler, SamplerOptions
from support import compiled

OPTIONS = [
    GraphOptions(),
    GraphOptions(with_audio=False),
    GraphOptions(spectrum="sync", layout="FCHW", dtype="uint8"),
    GraphOptions(spectrum="audioldm", antialias=True, colour=ColourJitter(), dtype="float16"),
]


def on(device: str, options: GraphOptions) -> GraphOptions:
    return GraphOptions(**{**vars(options), "device": device})


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "silent", "sync", "coloured"])
def test_the_gpus_graph_is_the_cpus_with_another_decoder(options: GraphOptions) -> None:
    """Every operator exists for its device; what follows the decoder is the same, in the same order."""
    cpu, gpu = operators(on("cpu", options)), operators(on("gpu", options))
    assert all(name.endswith("(cpu)") for name in cpu)
    assert "decoders__Video (mixed)" in gpu and "decoders__Video (cpu)" not in cpu
    picture = ("Resize", "CoordTransform", "CropMirrorNormalize", "Spectrogram", "MelFilterBank", "ToDecibels")
    for name in picture:
        assert (f"{name} (gpu)" in gpu) == (f"{name} (cpu)" in cpu) and f"{name} (cpu)" not in gpu
    assert ("CoordTransform (gpu)" in gpu) == (options.colour is not None)
    moved = ("ExternalSource", "_TensorSubscript", "Copy", "MakeContiguous", "decoders__Video")

    def order(names: list[str]) -> list[str]:
        plain = [name.split()[0].strip("_") for name in names]
        return sorted(name for name in plain if not name.endswith(tuple(word.strip("_") for word in moved)))

    assert order(cpu) == order(gpu)


def test_an_operator_that_a_device_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("javisc.trainer.data.bytes.graph.RegisteredMixedOps", list)
    with pytest.raises(ValueError, match="DALI has no operator decoders__Video for the mixed"):
        operators(GraphOptions(device="gpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_gpu_without_a_gpu_is_one_line() -> None:
    with pytest.raises(UserError, match="use device=cpu"):
        Graph(GraphOptions(device="gpu"))


def smooth(clip: int, frames: int, height: int, width: int, fps: int) -> bytes:
    """An MP4 in the recipe's form whose colours change smoothly over the picture and from frame to frame."""
    y, x = np.mgrid[0:height, 0:width] / np.asarray([[[height]], [[width]]])
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = 1, 6
        stream.codec_context.options = {
            "preset": "ultrafast",
            "crf": "8",
            "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=0:open-gop=0",
        }
        for number in range(frames):
            phase = 2 * np.pi * (number / 24 + clip / 7)
            planes = [128 + 80 * np.sin(2 * x + y + phase), 128 + 60 * np.sin(x + phase), 128 + 60 * np.cos(y - phase)]
            yuv: list[NDArray[np.uint8]] = [planes[0].astype(np.uint8)]
            yuv += [plane[::2, ::2].astype(np.uint8).reshape(-1, width) for plane in planes[1:]]
            frame = av.VideoFrame.from_ndarray(np.vstack(yuv), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def run(dataset: Path, options: GraphOptions) -> list[Loaded]:
    sampler = Sampler(Catalog.open([dataset]), single_bucket(17, 96, 120, 2), SamplerOptions(mirror=0.5))
    with Loader(sampler, LoaderOptions(graph=options, crop="random")) as loader:
        return list(loader)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setattr(compiled, "video", smooth)
    folder = compiled.write(tmp_path_factory.mktemp("gpu") / "ds", [30, 45, 60, 33], size=(112, 144))
    patch.undo()
    return folder


def test_the_clips_for_the_comparison_are_coloured_and_smooth(coloured: Path) -> None:
    """So that the comparison compares something: hues differ, neighbours hardly do."""
    for loaded in run(coloured, GraphOptions()):
        levels = loaded.video * 127.5 + 127.5
        assert (levels.amax(1) - levels.amin(1)).max() > 80
        assert levels.diff(dim=-1).abs().max() < 24 and levels.diff(dim=2).abs().mean() > 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("colour", [None, ColourJitter()], ids=["plain", "coloured"])
@pytest.mark.parametrize("spectrum", ["none", "sync", "audioldm"])
def test_gpu_and_cpu_agree(coloured: Path, spectrum: Spectrum, colour: ColourJitter | None) -> None:
    cpu, gpu = (
        run(coloured, GraphOptions(device=device, spectrum=spectrum, colour=colour)) for device in ("cpu", "gpu")
    )
    for a, b in zip(cpu, gpu, strict=True):
        assert a.batch == b.batch and b.video.is_cuda and b.audio is not None and b.audio.is_cuda
        difference = (a.video - b.video.cpu()).abs() * 127.5
        # Contrast and saturation of up to 1.4 each multiply what the conversions differ by.
        scale = 1 if colour is None else 2
        assert difference.max() <= 3 * scale and difference.mean() <= 1 * scale
        assert a.audio is not None and torch.equal(a.audio, b.audio.cpu())
        if spectrum != "none":
            assert a.spectrum is not None and b.spectrum is not None and b.spectrum.is_cuda
            error = (a.spectrum - b.spectrum.cpu()).square().mean().sqrt() / a.spectrum.square().mean().sqrt()
            assert error < 1e-3
