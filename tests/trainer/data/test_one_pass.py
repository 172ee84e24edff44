"""The one pass from decoded planes to pictures against its definition: 8-bit RGB of the whole picture, then the graph."""

from __future__ import annotations

import gc
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from javisc.trainer.data.bytes.colour import Colour, ColourJitter
from javisc.trainer.data.bytes.decode import each_frame, frames
from javisc.trainer.data.bytes.framing import Framing, framing
from javisc.trainer.data.bytes.graph import ClipInput, Graph, GraphOptions
from javisc.trainer.data.bytes.memory import BatchMemory
from javisc.trainer.data.bytes.one_pass import FROM, TO_RGB, OnePass, taps
from support.shared import SHARED, need

CLIP = SHARED / "media" / "sparsesync" / "ZYc410CE4Rg_0_10000.mp4"


def smooth(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Planes (H, W, 3) of YUV 4:2:0 whose colours RGB can hold, changing from pixel to pixel in luma and smoothly in colour."""
    random = np.random.default_rng(seed)
    y = random.integers(90, 160, (height, width, 1))
    grid = np.stack(np.meshgrid(np.arange(height // 2), np.arange(width // 2), indexing="ij"), -1)
    chroma = 128 + 20 * np.sin(grid @ random.uniform(-0.3, 0.3, (2, 2)) + random.uniform(0, 6, 2))
    return np.concatenate([y, chroma.repeat(2, 0).repeat(2, 1)], -1).round().astype(np.uint8)


def frame_of(planes: NDArray[np.uint8]) -> av.VideoFrame:
    y, u, v = planes[..., 0], planes[::2, ::2, 1], planes[::2, ::2, 2]
    packed = np.concatenate([y.ravel(), u.ravel(), v.ravel()]).reshape(-1, y.shape[1])
    return av.VideoFrame.from_ndarray(packed, format="yuv420p")


def exact(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of BT.601, to the nearest 8 bits: what swscale gives to a level or two."""
    return ((planes - FROM) @ TO_RGB.T).round().clip(0, 255).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000),
    st.tuples(st.integers(8, 40), st.integers(8, 40)),
    st.tuples(st.integers(9, 50), st.integers(9, 50)),
    st.booleans(),
    st.sampled_from([None, Colour(0.8, 1.3, 0.5, 0.2), Colour(1.6, 0.9, 1.8, -0.4)]),
    st.sampled_from([(False, "float32"), (True, "uint8"), (True, "float16")]),
)
def test_any_crop_scale_and_colour_is_the_graphs(
    seed: int,
    half: tuple[int, int],
    target: tuple[int, int],
    mirror: bool,
    colour: Colour | None,
    kind: tuple[bool, str],
) -> None:
    antialias, dtype = kind
    height, width = 2 * half[0], 2 * half[1]
    planes = smooth(seed, height, width)
    size, anchor = framing(height, width, target, "cover", "random", seed)
    options = GraphOptions(
        with_audio=False,
        max_batch_size=1,
        antialias=antialias,
        dtype=dtype,
        mean=(123.0, 116.0, 104.0),
        std=(58.0, 57.0, 80.0),
        colour=None if colour is None else ColourJitter(),
    )
    clip = ClipInput(exact(planes)[None], 0, 1, 1, size, target, anchor, mirror, colour=colour or Colour())
    wanted = _graph(options).run([clip]).video[0, :, 0].float().numpy()
    normal = dtype != "uint8"
    made = np.empty((3, *target), dtype)
    OnePass(
        height,
        width,
        Framing(size, target, anchor, mirror),
        mean=options.mean if normal else (0, 0, 0),
        std=options.std if normal else (1, 1, 1),
        antialias=antialias,
        colour=colour,
    )(frame_of(planes), made)
    # The definition's own rounding is half a level of each channel, which colour multiplies and adds up; uint8 rounds once more,
    # float16 has 11 bits.
    spread = 1.0 if colour is None else float(np.abs(colour.affine()[0]).sum(axis=1).max())
    room = 0.51 * spread * (1 / 57 if normal else 1) + {"uint8": 1, "float16": 1e-3}.get(dtype, 0)
    assert np.abs(made.astype(np.float32) - wanted).max() <= room


_GRAPHS: dict[GraphOptions, Graph] = {}


def _graph(options: GraphOptions) -> Graph:
    return _GRAPHS.setdefault(options, Graph(options))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("source", "scaled"), [(72, 24), (128, 43), (40, 40), (30, 75), (9, 8)])
def test_taps_are_torchs_interpolation(source: int, scaled: int, antialias: bool) -> None:
    line = torch.rand(1, 1, 1, source, dtype=torch.float64)
    wanted = torch.nn.functional.interpolate(line, (1, scaled), mode="bilinear", antialias=antialias)[0, 0, 0]
    first, count = scaled // 4, scaled // 2
    for mirror in (False, True):
        made = taps(source, scaled, first, count, antialias=antialias, mirror=mirror)
        got = (line[0, 0, 0].numpy()[made.places] * made.weights).sum(axis=0)
        # At the edge torch leaves out what the filter finds beyond the picture, DALI repeats the last pixel.
        inner = slice(0 if first > 1 or not antialias else 2, None)
        error = np.abs((got[::-1] if mirror else got) - wanted[first : first + count].numpy())
        assert error[inner].max() < 1e-6


def test_a_real_clips_pictures_keep_their_quality() -> None:
    """Against the exact conversion of every pixel before it is scaled by area, never further than the definition."""
    clip = _compiled(need(CLIP).read_bytes())
    size, target = (120, 160), (120, 160)
    made = np.empty((3, 6, *target), np.uint8)
    wanted: list[NDArray[np.float64]] = []
    paint = OnePass(360, 480, Framing(size, target, (0.5, 0.5)), mean=(0, 0, 0), std=(1, 1, 1))

    def use(number: int, frame: av.VideoFrame) -> None:
        paint(frame, made[:, number])
        y, u, v = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes)
        planes = np.stack([y, u.repeat(2, 0).repeat(2, 1), v.repeat(2, 0).repeat(2, 1)], -1)
        rgb = ((planes - FROM) @ TO_RGB.T).clip(0, 255)
        wanted.append(rgb.reshape(120, 3, 160, 3, 3).mean(axis=(1, 3)).transpose(2, 0, 1))

    each_frame(clip, 5, 6, use)
    rgb = frames(clip, 5, 6)
    graph = Graph(GraphOptions(with_audio=False, max_batch_size=1, dtype="uint8"))
    defined = graph.run([ClipInput(rgb, 0, 6, 1, size, target, (0.5, 0.5), False)]).video[0].numpy()
    area = np.stack(wanted, 1)
    mine, theirs = (10 * np.log10(255**2 / np.mean((x - area) ** 2)) for x in (made, defined))
    assert mine >= theirs - 0.1, (mine, theirs)
    # Frame for frame the same pictures, but for swscale's conversion, which is a level off on average.
    difference = np.abs(made.astype(int) - defined)
    assert difference.mean() < 1.5 and np.quantile(difference, 0.999) <= 4


def _compiled(content: bytes) -> bytes:
    """The first pictures of a clip in the recipe's form."""
    import io

    out = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 480, 360, "yuv420p"
        stream.codec_context.options = {"x264-params": "keyint=12:scenecut=0:bframes=0", "preset": "ultrafast"}
        for number, frame in zip(range(14), source.decode(video=0), strict=False):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def test_nothing_but_the_planes_of_a_frame_is_read() -> None:
    """No RGB picture of the clip's size is made: a frame that cannot be converted gives the same."""
    frame = frame_of(smooth(3, 24, 32))
    bare = SimpleNamespace(
        height=24, width=32, planes=frame.planes, format=SimpleNamespace(name="yuv420p"), color_range=1
    )
    made = np.empty((2, 3, 12, 16), np.float32)
    paint = OnePass(24, 32, Framing((12, 16), (12, 16), (0.5, 0.5)), mean=(0, 0, 0), std=(1, 1, 1))
    paint(frame, made[0])
    paint(bare, made[1])  # type: ignore[arg-type]
    assert np.array_equal(made[0], made[1])
    with pytest.raises(ValueError, match="a frame of 20x32 in a clip of 24x32"):
        paint(frame_of(smooth(3, 20, 32)), made[0])


def test_pictures_of_another_format_are_converted_first() -> None:
    planes = smooth(5, 24, 32)
    full = frame_of(planes).reformat(format="yuvj420p", src_color_range="MPEG", dst_color_range="JPEG")
    made = np.empty((2, 3, 24, 32), np.float32)
    paint = OnePass(24, 32, Framing((24, 32), (24, 32), (0, 0)), mean=(0, 0, 0), std=(1, 1, 1))
    paint(frame_of(planes), made[0])
    paint(full, made[1])
    assert np.abs(made[0] - made[1]).max() < 5 and np.abs(made[0] - made[1]).mean() < 1.5


def test_memory_comes_back_when_nobody_holds_it() -> None:
    memory = BatchMemory()
    first = torch.from_numpy(memory.take((2, 3), np.float32))
    address, part = first.data_ptr(), first[1:]
    del first
    other = memory.take((2, 3), np.float32)
    assert other.ctypes.data != address, "a view of a batch is still held"
    del part
    gc.collect()
    assert memory.take((3, 2), np.float32).ctypes.data == address
