"""Spectra of the graph against the fixtures of both papers and against torch's transforms."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import soundfile
import torch
import torch.utils.dlpack
from nvidia.dali import fn, pipeline_def, types
from safetensors import safe_open

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes import spectra
from javisc.trainer.data.bytes.graph import ClipInput, Graph, GraphOptions
from javisc.trainer.data.bytes.spectra import Spectrum, mel_frames
from support.shared import PARITY, need


def fixture(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(need(PARITY / name), "pt") as file:
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
        return meta, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)


def spectrum(wave: np.ndarray, kind: Spectrum, columns: int = 0) -> torch.Tensor:
    """The sub-graph alone, on a float wave."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_dynamic=True, prefetch_queue_depth=1)
    def definition():  # type: ignore[no-untyped-def]
        sound = spectra.mono(fn.external_source(name="sound", ndim=2, dtype=types.FLOAT))
        wanted = fn.external_source(name="columns", ndim=1, dtype=types.INT32)
        return spectra.sync(sound) if kind == "sync" else spectra.audioldm(sound, wanted)

    pipeline = definition()
    pipeline.build()
    pipeline.feed_input("sound", [wave[:, None]])
    if kind == "audioldm":
        pipeline.feed_input("columns", [np.asarray([columns], np.int32)])
    return torch.utils.dlpack.from_dlpack(pipeline.run()[0].as_tensor())[0]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["mel", "mel_scale8"])
def test_log_mel_is_audioldms(name: str) -> None:
    meta, tensors = fixture(f"javisdit/{name}.safetensors")
    for case in meta["cases"]:
        expected = tensors[f"{case}/out/mel"][0]
        assert relative(spectrum(tensors[f"{case}/in/wave"].numpy(), "audioldm", len(expected)), expected) < 1e-4, case


def test_sync_spectrogram_is_sparsesyncs() -> None:
    _, tensors = fixture("sparsesync/transforms.safetensors")
    names = sorted({key.split("/")[1] for key in tensors if key.startswith("audio/")} - {"silence", "constant"})
    assert len(names) >= 3
    for name in names:
        assert (
            relative(spectrum(tensors[f"audio/{name}/wave"].numpy(), "sync"), tensors[f"audio/{name}/norm"]) < 5e-4
        ), name


@pytest.mark.parametrize("kind", ["sync", "audioldm"])
def test_the_whole_graph_gives_the_windows_spectrum(kind: Spectrum) -> None:
    generator = np.random.default_rng(0)
    wave = (generator.normal(0, 0.1, 40_000).clip(-1, 1) * 2**15).round().astype(np.int16)
    flac = io.BytesIO()
    soundfile.write(flac, wave, 16000, format="FLAC", subtype="PCM_16")
    clip = ClipInput(
        np.zeros((1, 8, 8, 3), np.uint8), 0, 1, 1, (8, 8), (8, 8), (0, 0), False, flac.getvalue(), (5000, 34000)
    )
    out = Graph(GraphOptions(spectrum=kind, max_batch_size=1, threads=1)).run([clip]).spectrum
    assert out is not None
    window = wave[5000:39000].astype(np.float32) / 2**15
    assert relative(out[0], spectrum(window, kind, mel_frames(34000))) < 1e-3


def test_digital_silence_stays_finite() -> None:
    out = spectrum(np.zeros(4000, np.float32), "sync")
    assert torch.isfinite(out).all() and out.abs().max() < 20


def test_columns_of_the_lengths_in_use() -> None:
    assert [mel_frames(round(frames * 16000 / 24)) for frames in (51, 102, 204, 408)] == [224, 448, 864, 1728]
    assert mel_frames(20800, multiple=8) == 136


def test_a_spectrum_without_sound_is_refused() -> None:
    with pytest.raises(UserError, match="with_audio"):
        Graph(GraphOptions(spectrum="sync", with_audio=False))
