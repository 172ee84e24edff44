"""Prompts → latents → sounding clips."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.aspects import frame_count, image_size
from javisc.trainer.data.index.lengths import audio_lengths, waveform_samples
from javisc.trainer.data.sources.noise import generators, normal
from javisc.trainer.models.dit import VASTDiT3
from javisc.trainer.models.frozen import AudioCodec, PriorTextEncoder, TextEncoder, VideoCodec
from javisc.trainer.models.prior import STIBPrior
from javisc.trainer.models.text import captions
from javisc.trainer.objectives.sampling import SamplerConfig, sample, sampling_times
from javisc.trainer.use.generate.conditions import apply_conditions, parse_conditions

MEL_BINS = 64
LATENT_BINS = MEL_BINS // 4
SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Models:
    """What generation needs; an audio-only model has no prior, prior text encoder or video codec."""

    dit: VASTDiT3
    text: TextEncoder
    audio: AudioCodec
    prior: STIBPrior | None = None
    prior_text: PriorTextEncoder | None = None
    video: VideoCodec | None = None

    def __post_init__(self) -> None:
        if self.dit.config.has_prior and (self.prior is None or self.prior_text is None):
            raise UserError("the model has prior blocks: give the prior and its text encoder")
        if not self.dit.config.audio_only and self.video is None:
            raise UserError("the model makes video: give the video autoencoder")


@dataclass(frozen=True)
class SampleOptions:
    """Options of one run. `resolution`: "" is 240p, and 144p for an audio-only model, the sizes it was trained at (they
    move its timesteps). `num_frames`: a number or a name such as "4s". `score`: the aesthetic score that is appended,
    None for none."""

    resolution: str = ""
    aspect_ratio: str = "9:16"
    num_frames: str | int = "4s"
    fps: float = 24.0
    seed: int = 42
    batch_size: int = 1
    score: float | None = 6.5
    sampler: SamplerConfig = SamplerConfig()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class Prompt:
    """A text; what is given of the clip (`conditions`, see `parse_conditions`) and the latents it refers to."""

    text: str
    conditions: str = ""
    references: tuple[dict[str, Tensor], ...] = ()


@dataclass(frozen=True)
class Generated:
    """A clip: `frames` [T, H, W, 3] uint8 (None for sound alone), `wave` [n] in -1 to 1 at 16 kHz, and what it was made
    from."""

    prompt: str
    frames: Tensor | None
    wave: Tensor
    fps: float
    index: int


@dataclass(frozen=True)
class ClipSize:
    """Frames, pixels and audio latent frames of a clip."""

    frames: int
    height: int
    width: int
    audio_latent: int


def generate(
    models: Models,
    prompts: Sequence[Prompt | str],
    options: SampleOptions,
    *,
    first_index: int = 0,
    size: ClipSize | None = None,
    progress: Callable[[int, int, int], None] = lambda done, step, steps: None,
) -> Iterator[Generated]:
    """Generate a clip per prompt, in order; of `size`, or of what the options ask for.

    A clip depends on its text, the options and its index (`first_index` + position) alone, so any split of the prompts over
    machines gives the same clips; except that a model whose prior attention is "batch" mixes the rows of a batch: keep
    `batch_size` 1 there. `progress` is told (prompts done, step, steps).
    """
    asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    size = size or clip_size(models, options)
    for start in range(0, len(asked), options.batch_size):
        batch = asked[start : start + options.batch_size]
        indices = [first_index + start + i for i in range(len(batch))]
        latents = denoise(models, batch, indices, options, size, functools.partial(progress, start))
        yield from _decoded(models, batch, indices, latents, options, size)


def clip_size(models: Models, options: SampleOptions) -> ClipSize:
    """What the options ask for. Raises UserError where the model cannot make it."""
    resolution = options.resolution or ("144p" if models.dit.config.audio_only else "240p")
    height, width = image_size(resolution, options.aspect_ratio)
    frames = frame_count(options.num_frames)
    latent = audio_lengths(frames, options.fps).latent
    patch = models.dit.config.audio_patch_size[0]
    if latent % patch or not latent:
        raise UserError(
            f"num_frames {frames} at {options.fps} fps gives {latent} audio latent frames; they must divide by {patch}"
        )
    return ClipSize(frames, height, width, latent)


def _noise(shape: tuple[int, ...], seed: int, indices: Sequence[int], name: str, like: Tensor) -> Tensor:
    """Standard normal noise, row i a function of (seed, indices[i], name)."""
    return normal(shape, [row for index in indices for row in generators([seed], index, name)], like)


@torch.no_grad()
def denoise(
    models: Models,
    batch: Sequence[Prompt],
    indices: Sequence[int],
    options: SampleOptions,
    size: ClipSize,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> dict[str, Tensor]:
    """Latents of a batch: noise, conditions, guided steps. `progress` is told (step, steps)."""
    model = models.dit
    config, rows = model.config, len(batch)
    weight = model.ax_embedder.proj.weight
    texts = [captions.clean(captions.with_score(prompt.text, options.score)) for prompt in batch]
    z = {}
    if models.video is not None and not config.audio_only:
        shape = (config.in_channels, *models.video.latent_size(size.frames, size.height, size.width))
        z["video"] = _noise(shape, options.seed, indices, "video", weight)
    z["audio"] = _noise(
        (config.audio_in_channels, size.audio_latent, LATENT_BINS), options.seed, indices, "audio", weight
    )
    masks = apply_conditions(
        z, [parse_conditions(p.conditions) for p in batch], [p.references for p in batch], options.fps
    )

    y, mask = models.text.encode(texts)
    null_text = model.y_embedder.y_embedding[: y.shape[2]].to(y).expand(rows, 1, -1, -1)
    spatial = temporal = None
    if models.prior is not None and models.prior_text is not None and config.has_prior:
        c = models.prior.config
        tokens = (c.spatial_token_num + c.temporal_token_num, c.out_dim)
        drawn = models.prior(models.prior_text.encode(texts), _noise(tokens, options.seed, indices, "prior", weight))
        null = model.st_prior_embedder.y_embedding.to(drawn.spatial).expand(rows, -1, -1)
        spatial = torch.cat((drawn.spatial, null[:, : c.spatial_token_num]))
        temporal = torch.cat((drawn.temporal, null[:, c.spatial_token_num :]))
    conditions = model.conditions(torch.cat((y, null_text)).to(weight), mask, spatial, temporal, keep=True)
    fps = torch.full((2 * rows,), options.fps, device=weight.device)

    def velocity(x: dict[str, Tensor], t: Tensor, active: dict[str, Tensor]) -> dict[str, Tensor]:
        return model(
            x.get("video"),
            x["audio"],
            t,
            conditions=conditions,
            fps=fps,
            height=float(size.height),
            width=float(size.width),
            x_mask=active.get("video"),
            ax_mask=active.get("audio"),
        )

    times = sampling_times(
        options.sampler, rows, float(size.height), float(size.width), float(size.frames), weight.device
    )

    def step_noise(step: int, name: str, x: Tensor) -> Tensor:
        return _noise(tuple(x.shape[1:]), options.seed, indices, f"{name} at step {step}", x)

    return sample(
        velocity,
        z,
        times,
        options.sampler,
        masks=masks,
        step_noise=step_noise,
        progress=lambda step, _t: progress(step + 1, len(times)),
    )


def _decoded(
    models: Models,
    batch: Sequence[Prompt],
    indices: Sequence[int],
    latents: dict[str, Tensor],
    options: SampleOptions,
    size: ClipSize,
) -> Iterator[Generated]:
    """Decode row by row: the autoencoders' memory is that of one clip."""
    samples = waveform_samples(size.frames, options.fps, SAMPLE_RATE)
    for row, prompt in enumerate(batch):
        wave = models.audio.wave(models.audio.decode(latents["audio"][row : row + 1]))[0, :samples]
        frames = None
        if models.video is not None and "video" in latents:
            video = models.video.decode(latents["video"][row : row + 1], size.frames)[0]
            frames = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu()
        yield Generated(prompt.text, frames, wave.float().clamp(-1, 1).cpu(), options.fps, indices[row])
