"""Sounds from captions by the pipelines of diffusers: an adapter for each class, captions encoded alone, batches of one shape.

A text encoder pads to the longest caption of a batch, so that what it makes of one depends on its neighbours. Therefore
captions are encoded alone, padded to a few lengths, and only those of one length and one duration are denoised together, in
batches that are always full. With draws of its own each row is the same to the last bit whatever stands beside it; where a
pipeline's is not (with a tiny Stable Audio it depended on the row's place in the batch), a batch has one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.use.prior.clips import caption
from javisc.trainer.use.prior.networks import check_precision, dtype_of, folder, quiet, read_json
from javisc.trainer.use.prior.stage import padded, seed_of

Wave = NDArray[np.float64]
#: Seconds that a sound has unless it is made to fit its clip, and durations that are made, as shares of that.
USUAL, SHARES = 10.24, (0.25, 0.5, 0.75, 1.0)
#: Tokens that captions are padded to: the first of them that suffices.
TOKENS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Adapter:
    """What differs from one class of pipelines to the next.

    duration: the argument that says how long. rate, longest: of a pipeline, samples a second and seconds. guidance: the class's
    own. negative: it takes negative prompts. alone: a batch has one row, see above.
    encode: makes of a caption the arguments of the call that stand for it; None: the caption itself is given. parts: networks
    that are to be loaded otherwise than the folder says.
    """

    duration: str
    rate: Callable[[Any], int]
    longest: Callable[[Any], float]
    guidance: float
    negative: bool = True
    alone: bool = False
    encode: Callable[[Any, str, str, float], dict[str, Any]] | None = None
    parts: Callable[[Path, Any], dict[str, Any]] = lambda path, dtype: {}


def _audioldm2(pipe: Any, text: str, negative: str, guidance: float) -> dict[str, Any]:
    """A caption's conditions, each [1, …], padded to one of TOKENS."""
    import torch.nn.functional as F

    guided = guidance > 1
    states, mask, made = pipe.encode_prompt(text, pipe.device, 1, guided, negative_prompt=negative if guided else None)
    length = next((count for count in TOKENS if count >= states.shape[1]), states.shape[1])
    states = F.pad(states, (0, 0, 0, length - states.shape[1]))
    mask = F.pad(mask, (0, length - mask.shape[1]))
    names = ("prompt_embeds", "attention_mask", "generated_prompt_embeds")
    if not guided:
        return dict(zip(names, (states, mask, made), strict=True))
    told = {name: tensor[1:] for name, tensor in zip(names, (states, mask, made), strict=True)}
    return told | {f"negative_{name}": tensor[:1] for name, tensor in zip(names, (states, mask, made), strict=True)}


def _audioldm2_parts(path: Path, dtype: Any) -> dict[str, Any]:
    """The language model with what its pipeline calls; transformers 5 moved that to the class with a head, whose body it is."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(
        path / "language_model", dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return {"language_model": model}


def _audioldm2_longest(pipe: Any) -> float:
    upsampled = float(np.prod(pipe.vocoder.config.upsample_rates)) / pipe.vocoder.config.sampling_rate
    return float(pipe.unet.config.sample_size * pipe.vae_scale_factor * upsampled)


#: By the class that model_index.json names; each was run with small random networks on diffusers 0.42.
ADAPTERS: dict[str, Adapter] = {
    "AudioLDM2Pipeline": Adapter(
        "audio_length_in_s", lambda pipe: int(pipe.vocoder.config.sampling_rate), _audioldm2_longest, 3.5, encode=_audioldm2,
        parts=_audioldm2_parts,
    ),
    "StableAudioPipeline": Adapter(
        "audio_end_in_s",
        lambda pipe: int(pipe.vae.config.sampling_rate),
        lambda pipe: pipe.transformer.config.sample_size * pipe.vae.hop_length / pipe.vae.config.sampling_rate,
        7.0,
        alone=True,
    ),
    "StableAudio3Pipeline": Adapter(
        "duration", lambda pipe: int(pipe.vae.config.sampling_rate), lambda pipe: USUAL, 1.0, alone=True
    ),
    "LongCatAudioDiTPipeline": Adapter(
        "audio_duration_s", lambda pipe: int(pipe.sample_rate), lambda pipe: float(pipe.max_wav_duration), 4.0, alone=True
    ),
    "AceStepPipeline": Adapter(
        "audio_duration", lambda pipe: int(pipe.sample_rate), lambda pipe: USUAL, 7.0, negative=False, alone=True
    ),
}  # fmt: skip


class Generator:
    """A folder of diffusers' and how it samples. Raises UserError for a folder, a class or a setting that cannot be."""

    def __init__(
        self,
        path: str,
        *,
        seed: int = 0,
        steps: int = 50,
        guidance: float | None = None,
        negative: str = "",
        batch_size: int = 8,
        precision: str = "auto",
    ) -> None:
        self.path = folder(path, "--generator")
        self.kind = str(read_json(self.path / "model_index.json", "--generator").get("_class_name"))
        if self.kind not in ADAPTERS:
            raise UserError(
                f"--generator {path}: model_index.json names the class {self.kind[:80]}; known are {', '.join(ADAPTERS)}"
            )
        self.adapter = ADAPTERS[self.kind]
        if steps < 1 or batch_size < 1:
            raise UserError(f"--steps {steps} and --batch-size {batch_size}: 1 or more is allowed")
        if negative and not self.adapter.negative:
            raise UserError(f"--negative: {self.kind} takes none")
        self.seed, self.steps, self.negative = seed, steps, negative
        self.precision = check_precision(precision)
        self.guidance = self.adapter.guidance if guidance is None else guidance
        self.batch_size = 1 if self.adapter.alone else batch_size

    def header(self) -> dict[str, Any]:
        """What shapes the sounds."""
        return {
            "generator": self.kind,
            "steps": self.steps,
            "guidance": self.guidance,
            "negative": self.negative,
            "batch_size": self.batch_size,
            "precision": self.precision,
        }

    def load(self, device: str) -> Any:
        """The pipeline on a device. Raises UserError if the folder does not hold what it says."""
        import diffusers

        quiet()
        if not hasattr(diffusers, self.kind):
            raise UserError(
                f"--generator {self.path}: diffusers {diffusers.__version__} has no {self.kind}: install a newer one"
            )
        try:
            dtype = dtype_of(self.precision, device)
            more = self.adapter.parts(self.path, dtype)
            pipe = getattr(diffusers, self.kind).from_pretrained(
                str(self.path), dtype=dtype, local_files_only=True, use_safetensors=True, **more
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError) as error:
            told = " ".join(str(error).split())[:300]
            raise UserError(f"--generator {self.path} cannot be loaded as {self.kind}: {told}") from error
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def sounds(
        self, pipe: Any, items: Sequence[Mapping[str, Any]], match: bool
    ) -> Iterator[tuple[Mapping[str, Any], Wave | None]]:
        """Each item's sound at its own rate, in the order of the items; None where the network gave no finite numbers.

        match: the shortest of the durations that are made and hold the clip, cut to it by the caller.
        """
        import torch

        usual = min(USUAL, self.adapter.longest(pipe))
        classes: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = {}
        with torch.no_grad():
            for place, item in enumerate(items):
                wanted = float(item["duration"] or usual) if match else usual
                seconds = next((usual * share for share in SHARES if usual * share >= wanted), usual)
                told = self._told(pipe, str(caption(item)))
                shapes = tuple(tuple(value.shape) if torch.is_tensor(value) else () for value in told.values())
                classes.setdefault((seconds, shapes), []).append((place, told))
            made: dict[int, Wave | None] = {}
            for (seconds, _), rows in classes.items():
                for batch, count in padded(rows, self.batch_size):
                    waves = self._denoised(
                        pipe, [items[place]["key"] for place, _ in batch], [told for _, told in batch], seconds
                    )
                    for (place, _), wave in zip(batch[:count], waves, strict=False):
                        made[place] = self._resampled(wave, pipe, int(items[place]["audio_fps"]))
        for place, item in enumerate(items):
            yield item, made[place]

    def _told(self, pipe: Any, text: str) -> dict[str, Any]:
        if self.adapter.encode is not None:
            return self.adapter.encode(pipe, text, self.negative, self.guidance)
        return {"prompt": text, **({"negative_prompt": self.negative} if self.negative else {})}

    def _denoised(self, pipe: Any, keys: Sequence[str], told: Sequence[dict[str, Any]], seconds: float) -> list[Wave]:
        import torch

        joined = {
            name: torch.cat([each[name] for each in told]) if torch.is_tensor(value) else [each[name] for each in told]
            for name, value in told[0].items()
        }
        # On the CPU whatever the device: the same noise everywhere.
        draws = [torch.Generator().manual_seed(seed_of(key, self.seed, "unpaired")) for key in keys]
        out = pipe(
            **joined,
            **{self.adapter.duration: seconds},
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=draws,
        ).audios
        waves = [torch.as_tensor(wave).float().cpu().numpy().astype(np.float64) for wave in out]
        return [wave if wave.ndim == 1 else wave.mean(axis=int(wave.shape[0] > wave.shape[-1])) for wave in waves]

    def _resampled(self, wave: Wave, pipe: Any, rate: int) -> Wave | None:
        import soxr

        if not np.isfinite(wave).all() or not len(wave):
            return None
        made = self.adapter.rate(pipe)
        return wave if made == rate else np.asarray(soxr.resample(wave, made, rate, "VHQ"))
