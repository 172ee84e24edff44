"""The DALI graph of a batch: one definition for GPU and CPU, from encoded clips to normalised tensors.

On the GPU the video is decoded by NVDEC inside the graph. DALI's CPU backend has no H.264 decoder: there the loader's decoding
threads make the pictures themselves (`one_pass`), of which the graph on RGB frames is the definition, and DALI decodes the
sound. Sizes, crops and windows are inputs, not constants: one graph serves every bucket.

Legend: F frames, H W pixels, C channels, L samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, math, pipeline_def, types
from nvidia.dali.backend import (  # type: ignore[attr-defined]  # its stub leaves them out
    RegisteredCPUOps,
    RegisteredGPUOps,
    RegisteredMixedOps,
)

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes import spectra
from javisc.trainer.data.bytes.colour import Colour, ColourJitter


@dataclass(frozen=True)
class GraphOptions:
    """What the graph is built for: where it runs, how large a batch may get, and how pixels are normalised.

    Pixels in 0..255 become (pixel - mean) / std per channel; with dtype uint8 they stay as they are, rounded after resizing.
    `antialias` filters when shrinking; the reference does not. `layout` is CFHW or FCHW. `spectrum` adds a third output from
    the sound: SparseSync's spectrogram ("sync") or AudioLDM2's log-mel ("audioldm"; `mel_multiple` as in `spectra.mel_frames`,
    `mel_padding` as in `spectra.audioldm`).
    `colour`: how far the loader moves clips' colours, each by its own seed.
    """

    device: str = "cpu"
    device_id: int = 0
    max_batch_size: int = 256
    threads: int = 2
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    antialias: bool = False
    with_audio: bool = True
    dtype: str = "float32"
    layout: str = "CFHW"
    spectrum: spectra.Spectrum = "none"
    mel_multiple: int = 32
    mel_padding: float = 0.0
    sample_rate: int = 16000
    colour: ColourJitter | None = None


@dataclass(frozen=True)
class ClipInput:
    """One clip's share of a batch's inputs.

    `video`: frames (F, H, W, 3) uint8 on the CPU path, the MP4's bytes on the GPU path; no frames where they are made already.
    `first`, `count`, `stride`: the window, used on the GPU path only. `resize`, `crop`, `anchor`, `mirror`: as in `Framing`.
    `audio`: FLAC bytes; `samples`: (first, count). `colour` is used where the graph's options have any.
    """

    video: NDArray[np.uint8] | bytes
    first: int
    count: int
    stride: int
    resize: tuple[int, int]
    crop: tuple[int, int]
    anchor: tuple[float, float]
    mirror: bool
    audio: bytes | None = None
    samples: tuple[int, int] = (0, 0)
    colour: Colour = field(default_factory=Colour)


_DTYPES = {"float32": types.FLOAT, "float16": types.FLOAT16, "uint8": types.UINT8}


def _video(options: GraphOptions) -> tuple[Any, ...]:
    """The pictures' definition: (video (C, F, H, W),)."""
    gpu = options.device == "gpu"
    if gpu:
        encoded = fn.external_source(name="video", no_copy=True, ndim=1, dtype=types.UINT8)
        window = fn.external_source(name="window", ndim=1, dtype=types.INT32)
        video = fn.decoders.video(
            encoded,
            device="mixed",
            start_frame=window[0],
            sequence_length=window[1],
            stride=window[2],
            pad_mode="none",
        )
    else:
        video = fn.external_source(name="video", layout="FHWC", no_copy=True, ndim=4, dtype=types.UINT8)
    size = fn.external_source(name="resize", ndim=1, dtype=types.FLOAT)
    crop = fn.external_source(name="crop", ndim=1, dtype=types.FLOAT)
    anchor = fn.external_source(name="anchor", ndim=1, dtype=types.FLOAT)
    mirror = fn.external_source(name="mirror", ndim=0, dtype=types.INT32)
    # Resized in float: rounding to 8 bits first would cost up to half a grey level.
    video = fn.resize(video, size=size, interp_type=types.INTERP_LINEAR, antialias=options.antialias, dtype=types.FLOAT)
    if options.colour is not None:
        matrix = fn.external_source(name="colour_matrix", ndim=2, dtype=types.FLOAT)
        offset = fn.external_source(name="colour_offset", ndim=1, dtype=types.FLOAT)
        # Layout FHWC: the innermost axis, the "coordinates", are a pixel's colours.
        video = math.clamp(fn.coord_transform(video, M=matrix, T=offset, dtype=types.FLOAT), 0.0, 255.0)
    video = fn.crop_mirror_normalize(
        video,
        crop=crop,
        crop_pos_y=anchor[0],
        crop_pos_x=anchor[1],
        mirror=mirror,
        mean=[0.0] * 3 if options.dtype == "uint8" else list(options.mean),
        std=[1.0] * 3 if options.dtype == "uint8" else list(options.std),
        output_layout=options.layout,
        dtype=_DTYPES[options.dtype],
    )
    return (video,)


def _sound(options: GraphOptions) -> tuple[Any, ...]:
    """The sound's: (sound (L, channels), then its spectrum, where the options want one)."""
    flac = fn.external_source(name="audio", no_copy=True, ndim=1, dtype=types.UINT8)
    samples = fn.external_source(name="samples", ndim=1, dtype=types.INT32)
    sound, _ = fn.decoders.audio(flac, dtype=types.FLOAT, downmix=False)
    sound = fn.slice(sound, start=samples[0], shape=samples[1], axes=[0], out_of_bounds_policy="pad")
    sound = sound.gpu() if options.device == "gpu" else sound
    if options.spectrum == "sync":
        return (sound, spectra.sync(spectra.mono(sound)))
    if options.spectrum == "audioldm":
        columns = fn.external_source(name="columns", ndim=1, dtype=types.INT32)
        return (sound, spectra.audioldm(spectra.mono(sound), columns, options.mel_padding))
    return (sound,)


@dataclass(frozen=True)
class Tensors:
    """video (B, 3, F, H, W) or (B, F, 3, H, W); audio (B, L, channels); spectrum (B, F, T) or (B, T, 64); None: not asked."""

    video: torch.Tensor
    audio: torch.Tensor | None = None
    spectrum: torch.Tensor | None = None


class Graph:
    """A built graph. `run` turns a batch's inputs into torch tensors that share DALI's memory.

    Without `pictures` it makes sound alone, and `run` is given the batch's pictures.
    """

    def __init__(self, options: GraphOptions, *, pictures: bool = True) -> None:
        if options.dtype not in _DTYPES or options.layout not in ("CFHW", "FCHW"):
            raise UserError(
                f"loader output {options.dtype} {options.layout}: dtype is one of {', '.join(_DTYPES)}, layout CFHW or FCHW"
            )
        if options.spectrum not in ("none", "sync", "audioldm") or (
            options.spectrum != "none" and not options.with_audio
        ):
            raise UserError(f"spectrum={options.spectrum}: it is none, sync or audioldm, and needs with_audio=true")
        if options.device not in ("cpu", "gpu"):
            raise UserError(f"loader device '{options.device}': say cpu or gpu")
        if options.device == "gpu" and not torch.cuda.is_available():
            raise UserError("loader device 'gpu' needs a CUDA device and there is none; use device=cpu")
        self.options, self.pictures = options, pictures
        self.pipeline = _build(options, pictures) if pictures or options.with_audio else None

    def run(self, clips: Sequence[ClipInput], video: torch.Tensor | None = None) -> Tensors:
        """The batch as tensors; all clips of a batch have equal crop, count and samples.

        The tensors own their memory: DALI's dynamic executor hands buffers over and takes new ones for the next batch.
        """
        if not 1 <= len(clips) <= self.options.max_batch_size:
            raise ValueError(f"a batch of {len(clips)} clips: 1 to {self.options.max_batch_size} fit this graph")
        tensors = [] if video is None else [video]
        if self.pipeline is not None:
            for name, values in _inputs(clips, self.options, self.pictures).items():
                self.pipeline.feed_input(name, values)
            tensors += [torch.utils.dlpack.from_dlpack(output.as_tensor()) for output in self.pipeline.run()]
        return Tensors(tensors[0], *tensors[1:])


def _build(options: GraphOptions, pictures: bool) -> Any:
    gpu = options.device == "gpu"

    @pipeline_def(
        batch_size=options.max_batch_size,
        num_threads=options.threads,
        device_id=options.device_id if gpu else None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def definition() -> tuple[Any, ...]:
        return (*(_video(options) if pictures else ()), *(_sound(options) if options.with_audio else ()))

    pipeline = definition()
    pipeline.build()
    return pipeline


def operators(options: GraphOptions) -> list[str]:
    """The graph's operators in order, e.g. `Resize (gpu)`: each exists for its device, every argument fits DALI's schemas.

    Nothing is built, so a machine without a GPU can check the GPU's definition too. Raises ValueError or TypeError.
    """
    registered = {"cpu": RegisteredCPUOps(), "gpu": RegisteredGPUOps(), "mixed": RegisteredMixedOps()}
    pipeline = Pipeline(
        batch_size=options.max_batch_size, num_threads=options.threads, device_id=None, exec_dynamic=True
    )
    with pipeline:
        outputs = (*_video(options), *(_sound(options) if options.with_audio else ()))
    seen: dict[int, str] = {}

    def visit(node: Any) -> None:
        operator = node.source
        if operator is None or operator.id in seen:
            return
        for group in operator.inputs:
            for source in group if isinstance(group, list | tuple) else [group]:
                visit(source)
        operator.check_args()
        made = operator._op
        name, device = getattr(made, "schema_name", type(made).__name__), made.device
        if name not in registered[device]:
            raise ValueError(f"DALI has no operator {name} for the {device}")
        seen[operator.id] = f"{name} ({device})"

    for output in outputs:
        visit(output)
    return list(seen.values())


def _inputs(clips: Sequence[ClipInput], options: GraphOptions, pictures: bool) -> dict[str, list[NDArray[Any]]]:
    inputs: dict[str, list[NDArray[Any]]] = {}
    if pictures:
        inputs = {
            "video": [np.frombuffer(c.video, np.uint8) if isinstance(c.video, bytes) else c.video for c in clips],
            "resize": [np.asarray(c.resize, np.float32) for c in clips],
            "crop": [np.asarray(c.crop, np.float32) for c in clips],
            "anchor": [np.asarray(c.anchor, np.float32) for c in clips],
            "mirror": [np.asarray(c.mirror, np.int32) for c in clips],
        }
    if pictures and options.device == "gpu":
        inputs["window"] = [np.asarray((c.first, c.count, c.stride), np.int32) for c in clips]
    if pictures and options.colour is not None:
        affine = [c.colour.affine() for c in clips]
        inputs |= {"colour_matrix": [matrix for matrix, _ in affine], "colour_offset": [offset for _, offset in affine]}
    if options.with_audio:
        inputs["audio"] = [np.frombuffer(c.audio or b"", np.uint8) for c in clips]
        inputs["samples"] = [np.asarray(c.samples, np.int32) for c in clips]
    if options.spectrum == "audioldm":
        rate, multiple = options.sample_rate, options.mel_multiple
        inputs["columns"] = [np.asarray([spectra.mel_frames(c.samples[1], rate, multiple)], np.int32) for c in clips]
    return inputs
