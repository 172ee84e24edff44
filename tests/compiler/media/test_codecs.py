"""Recipes `hevc` and `av1`: built, verified and read by the loader as `jav` is; refused where the encoder is missing."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from click.testing import CliRunner
from numpy.typing import NDArray

from javisc.cli import cli
from javisc.compiler.check.dataset import verify
from javisc.compiler.media import encoders
from javisc.compiler.media.encode import Encoder
from javisc.compiler.recipe import PRESETS
from javisc.manifests.io import Dataset
from javisc.trainer.data.bytes.decode import frames
from support.heap import filled
from support.raw import write_clip
from support.sane import sane


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("codecs") / "RAW/a.mp4", seconds=2, size=(160, 96)).parent


def built(raw: Path, out: Path, *more: str) -> tuple[str, NDArray[np.uint8]]:
    """Build the film; its key, and twenty of its pictures from within a group on."""
    told = ["build", "jav", str(raw), "--out", str(out), "--crf", "12", "--workers", "1", *more]
    done = CliRunner().invoke(cli, told)
    assert done.exit_code == 0, done.output
    (row,) = sane(out).iter_rows(named=True)
    return row["key"], frames(Dataset.open(out).read(row["key"])["mp4"], 17, 20)


@pytest.fixture(scope="module")
def plain(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    return built(raw, tmp_path_factory.mktemp("plain") / "jav")[1]


@pytest.mark.parametrize("name", ["hevc", "av1"])
def test_a_dataset_of_another_codec_is_built_verified_and_read(
    raw: Path, plain: NDArray[np.uint8], tmp_path: Path, name: str
) -> None:
    if encoders.ENCODERS[name] not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoders.ENCODERS[name]}")
    key, pictures = built(raw, tmp_path / name, "--recipe", name, "--renditions", "48")
    assert verify(tmp_path / name, workers=1).defects == []
    with av.open(io.BytesIO(Dataset.open(tmp_path / name).field("r48").read(key))) as file:
        assert file.streams.video[0].codec_context.name == "h264", "renditions are for reading"
    apart = np.abs(pictures[:, None].astype(float) - plain[None]).mean(axis=(2, 3, 4))
    assert apart.argmin(axis=1).tolist() == list(range(20))


def test_encoders_are_told_what_readers_count_on() -> None:
    """A key picture every `gop` and at no cut, none that needs a later one; plain entropy coding for fast decoding alone."""
    for name, recipe in PRESETS.items():
        if recipe.kind == "audio":
            continue
        options = encoders.encoder_of(recipe)[1]
        told = next(
            dict(part.split("=") for part in value.split(":"))
            for key, value in options.items()
            if key.endswith("params")
        )
        assert told["keyint"] == str(recipe.gop) and options["crf"] == f"{recipe.crf:g}", name
        if recipe.codec != "av1":
            assert (told["min-keyint"], told["scenecut"], told["bframes"], told["open-gop"]) == (
                str(recipe.gop),
                "0",
                "0",
                "0",
            ), name
            assert options["preset"] == recipe.encoder_preset, name
        if recipe.codec == "h264":
            assert (options.get("tune"), told["cabac"]) == (recipe.tune, "0" if recipe.tune == "fastdecode" else "1"), (
                name
            )


def test_an_encoder_that_is_missing_is_said_before_anything_is_written(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encoders.ENCODERS, "av1", "libnone")
    done = CliRunner().invoke(cli, ["build", "jav", str(raw), "--out", str(tmp_path / "DS"), "--recipe", "av1"])
    assert done.exit_code != 0 and not (tmp_path / "DS").exists()
    assert "this build of PyAV has no libnone" in str(done.exception or "") + done.output


def moving(height: int, width: int) -> list[NDArray[np.uint8]]:
    """Blocks that move under noise, and a cut: what an encoder looks ahead for."""
    draw = np.random.default_rng(0)
    blocks = np.kron(draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1)))[:height, :width]
    still = [np.roll(blocks, (n, 2 * n), (0, 1)) + draw.integers(-8, 9, blocks.shape) for n in range(30)]
    return [np.clip(p if n < 17 else 255 - p, 0, 255).astype(np.uint8) for n, p in enumerate(still)]


@pytest.mark.parametrize(
    ("name", "preset"),
    [("jav", ""), ("archive", ""), ("hevc", ""), ("av1", ""), ("jav", "veryfast"), ("frame", "slow")],
)
def test_bytes_do_not_follow_what_the_memory_held(tmp_path: Path, name: str, preset: str) -> None:
    """At a size that is no whole number of macroblocks, where x264's macroblock tree took in memory of nobody."""
    recipe = PRESETS[name].replace(encoder_preset=preset) if preset else PRESETS[name]
    made = set()
    for byte in (1, 85, 254):
        with filled(byte):
            encoder = Encoder(path := tmp_path / f"{byte}.mp4", recipe, 426, 240)
            for picture in moving(240, 426):
                encoder.add(VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p"))
            encoder.close()
        made.add(path.read_bytes())
    assert len(made) == 1
