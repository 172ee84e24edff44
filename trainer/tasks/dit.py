"""Training the joint DiT by rectified flow: what stages 1 (`tasks.audio`) and 3 (`tasks.jav`) share.

Whatever is drawn for a row (time, noise, dropped captions, given frames, its latents and its prior) is drawn from the row's own
seed, so it changes neither with the batch nor with the number of processes, and a resumed run draws it again.

Letters: B rows, T video latent frames, R audio latent frames, M its frequency bins.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.lengths import LATENT_RATE, audio_lengths, latent_frames
from javisc.trainer.data.sources.encoded import stores_latents
from javisc.trainer.data.sources.held_out import HeldOut
from javisc.trainer.data.sources.noise import generators, normal, uniform
from javisc.trainer.engine.distributed import autocast
from javisc.trainer.engine.lockstep import in_step
from javisc.trainer.engine.moving import to_device
from javisc.trainer.engine.weights import load_strictly, read_weights, run_weights
from javisc.trainer.forecast.flops import META, by_depth, counted
from javisc.trainer.models.dit import VASTDiT3
from javisc.trainer.models.dit.checkpoint import fit_caption_length
from javisc.trainer.models.dit.stages import freeze, initialise
from javisc.trainer.models.encoders import Encoders
from javisc.trainer.models.frozen import need_weights
from javisc.trainer.objectives.flow import FlowLoss, draw_times, flow_loss
from javisc.trainer.objectives.frame_masks import choose_kind, draw_masks
from javisc.trainer.task import Source
from javisc.trainer.tasks.dit_recipe import DiTRecipe, DiTStart
from javisc.trainer.tasks.latents import Batch, Latents, latents_of, source

#: Tokens of a caption where arithmetic is predicted: those of the published cost table.
CAPTION_TOKENS = 60
#: Space of a latent: an eighth of the picture, a quarter of the 64 mel bins.
SPACE, BINS = 8, 16
#: Frames a second of a dataset, where none is read.
FPS = 24.0


@dataclass(frozen=True)
class Step:
    """All that a loss is a function of: latents, times [B], noise by modality, rows whose captions are dropped [B], frames that
    are generated [B, T], [B, R] by modality, whether any frame is given, and the prior's tokens."""

    latents: Latents
    t: Tensor
    noise: dict[str, Tensor]
    drops: dict[str, Tensor] | None = None
    masks: dict[str, Tensor] | None = None
    partial: dict[str, bool] | None = None
    priors: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Example(Latents):
    """A batch without values, of which it is known whether frames are given."""

    masked: bool = False


class DiTTask(ABC):
    """A stage of VASTDiT3; what learns follows from the model's config."""

    #: Whether the model has a video branch: the other stage trains on sound alone.
    with_video: bool

    def __init__(self, recipe: DiTRecipe) -> None:
        self.recipe, self.config = recipe, recipe.model.config()
        choose_kind(0.0, recipe.mask_ratios)  # refuses what is no kind of mask
        recipe.data.table()  # and what are no buckets
        if self.config.audio_only == self.with_video:
            raise UserError(f"model.preset={recipe.model.preset}: task {recipe.task} trains the other stage's model")
        begin = recipe.start
        if begin.model and (begin.audio or begin.opensora):
            part = "audio" if begin.audio else "opensora"
            raise UserError(
                f"start.model={begin.model} is a whole model, nothing of start.{part} would stay: give one of them"
            )
        self._encoders: Encoders | None = None
        self._flops: dict[Any, float] = {}
        self.held_out: HeldOut[Batch] = HeldOut(
            lambda split, rank, world: self._source(split, rank, world, train=False)
        )

    @abstractmethod
    def start(self, model: VASTDiT3, start: DiTStart) -> None:
        """Give a fresh model the weights that its stage starts from."""

    def model(self) -> VASTDiT3:
        """The model, its frozen parts frozen."""
        return self._of_depth(self.config.depth)

    def _of_depth(self, layers: int) -> VASTDiT3:
        model = VASTDiT3(dataclasses.replace(self.config, depth=layers))
        freeze(model)
        return model

    def build(self) -> VASTDiT3:
        """The model with its starting weights. Raises UserError if those, or the frozen networks, are not there; an encoded
        dataset needs the prior alone."""
        needed = ["t5", "audio_vae", *(["video_vae"] if self.with_video else [])]
        needed = [] if stores_latents(self.recipe.data) else needed
        self.encoders(torch.device("cpu")).check([*needed, *(["prior"] if self.config.has_prior else [])])
        model, begin = self.model(), self.recipe.start
        initialise(model)
        if begin.model:
            tensors = fit_caption_length(read_weights(run_weights(Path(begin.model))), self.config.model_max_length)
            load_strictly(model, tensors, begin.model)
        else:
            self.start(model, begin)
        return model

    def encoders(self, device: torch.device) -> Encoders:
        """The frozen networks on a device, kept there."""
        if self._encoders is None or self._encoders.device != device:
            self._encoders = Encoders(self.recipe.encoders, device, self.config.model_max_length)
        return self._encoders

    def carry_over(self, model: nn.Module) -> None:
        return None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Every block of every branch."""
        assert isinstance(model, VASTDiT3)
        return [blocks[index] for blocks, index in model.blocks()]

    def source(self, rank: int, world: int) -> Source[Batch]:
        """Training batches of one rank. Raises UserError now if later there would be nothing to measure on."""
        data = self.recipe.data
        if self.recipe.run.validate_every and data.valid_split is not None:
            self.held_out(data.valid_split, rank, world)
        return self._source(data.train_split, rank, world, train=True)

    def _source(self, split: str | None, rank: int, world: int, *, train: bool) -> Source[Batch]:
        return source(
            self.recipe.data,
            split,
            seed=self.recipe.seed,
            rank=rank,
            world=world,
            with_video=self.with_video,
            train=train,
            width=self.config.hidden_size,
        )

    def shallow(self) -> VASTDiT3:
        """The model with one layer of each kind, which call what all call."""
        return self._of_depth(1)

    def examples(self) -> Iterator[Example]:
        """A batch of every resolution and length, of its first ratio of sides, on no device; of the first also one without given
        frames, where others have some."""
        data, c = self.recipe.data, self.config
        table, masked = data.table(), bool(self.recipe.mask_ratios)
        chosen = [(table.buckets[first], masked) for first in table.first.values()]
        for bucket, given in [*chosen, *([(chosen[0][0], False)] if masked else [])]:
            rows, fps = bucket.batch_size, FPS / data.stride
            shape = rows, c.audio_in_channels, audio_lengths(bucket.frames, fps).latent, BINS
            video = (rows, c.in_channels, latent_frames(bucket.frames), bucket.height // SPACE, bucket.width // SPACE)
            yield Example(
                masked=given,
                audio=torch.empty(shape, device="meta"),
                video=torch.empty(video, device="meta") if self.with_video else None,
                text=torch.empty(rows, 1, c.model_max_length, c.caption_channels, device="meta"),
                mask=torch.empty(rows, c.model_max_length, device="meta"),
                prior_text=None,
                keys=[""] * rows,
                seeds=[0] * rows,
                frames=bucket.frames,
                height=bucket.height,
                width=bucket.width,
                fps=fps,
            )

    def close(self) -> None:
        """Stop what reads held-out clips."""
        self.held_out.close()

    def size(self, batch: Batch) -> int:
        return len(batch.keys)

    def keys(self, batch: Batch) -> list[str]:
        return batch.keys

    def _shapes(self, batch: Batch) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
        """Shapes of the latents of a batch, video and audio, as the official autoencoders make them."""
        c, rows = self.config, len(batch.keys)
        if isinstance(batch, Latents):
            return None if batch.video is None else tuple(batch.video.shape), tuple(batch.audio.shape)
        audio = (rows, c.audio_in_channels, batch.mel.shape[2] // LATENT_RATE, BINS)
        if not self.with_video:
            return None, audio
        return (rows, c.in_channels, latent_frames(batch.frames), batch.height // SPACE, batch.width // SPACE), audio

    def tokens(self, batch: Batch) -> int:
        """Patches of both latents."""
        c, (video, audio) = self.config, self._shapes(batch)
        heard = audio[2] // c.audio_patch_size[0] * (audio[3] // c.audio_patch_size[1])
        seen = 1
        for size, patch in zip(() if video is None else video[2:], c.patch_size, strict=False):
            seen *= -(-size // patch)
        return audio[0] * (heard + (0 if video is None else seen))

    def flops(self, batch: Batch) -> float:
        """Of the trained network alone, for captions of `CAPTION_TOKENS`; each shape is counted once."""
        shapes = self._shapes(batch)
        if shapes not in self._flops:
            step = self._fake(batch, META, words=min(CAPTION_TOKENS, self.config.model_max_length))

            def count(depth: int) -> float:
                with META:
                    model = self._of_depth(depth)
                return counted(lambda: self.flow(model, step).mean()).total

            self._flops[shapes] = by_depth(count, self.config.depth)
        return self._flops[shapes]

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """The rows' losses, summed, together and by modality: rows count as `flow.masked_rows` says."""
        step = self._fake(batch, device) if is_fake(next(model.parameters())) else self.step(batch, device)
        flow, rows = self.flow(model, step), len(batch.keys)
        return {"loss": flow.mean() * rows, **{f"{name}_loss": part * rows for name, part in flow.means().items()}}

    @torch.no_grad()
    def step(self, batch: Batch, device: torch.device) -> Step:
        """A training step's inputs, each row's drawn from its own seed."""
        latents = latents_of(batch, self.encoders(device), prior_text=self.config.has_prior)
        rows, flow = generators(latents.seeds, "flow"), self.recipe.flow
        size = (latents.height, latents.width, latents.frames)
        times = torch.cat([draw_times(1, flow, *size, generator=row) for row in rows])
        dropped = uniform((3,), rows) < self.config.class_dropout_prob
        names = ("text", "audio_text", "prior")
        masks = self._masks(latents) or {}
        return Step(
            latents,
            to_device(times, device),
            self._noise(latents, rows),
            {name: to_device(dropped[:, i].contiguous(), device) for i, name in enumerate(names)},
            {name: to_device(mask, device) for name, mask in masks.items()} or None,
            {name: not bool(mask.all()) for name, mask in masks.items()} or None,
            self._priors(latents, rows),
        )

    def _noise(self, latents: Latents, rows: Sequence[torch.Generator]) -> dict[str, Tensor]:
        return {name: normal(x.shape[1:], rows, x) for name, x in _modalities(latents).items()}

    def _masks(self, latents: Latents) -> dict[str, Tensor] | None:
        """Which frames are generated, on the CPU; None where all are."""
        if latents.video is None or not self.recipe.mask_ratios:
            return None
        seeds = [int(draws.bits(seed, "masks")[0]) for seed in latents.seeds]
        lengths = latents.video.shape[2], latents.audio.shape[2]
        drawn = draw_masks(len(seeds), *lengths, self.recipe.mask_ratios, seeds)
        return None if drawn is None else {"video": drawn[0], "audio": drawn[1]}

    def _priors(self, latents: Latents, rows: Sequence[torch.Generator]) -> tuple[Tensor, Tensor] | None:
        """The frozen prior's tokens, drawn."""
        if not self.config.has_prior:
            return None
        assert latents.prior_text is not None and self._encoders is not None
        prior = self._encoders.prior
        c = prior.config
        noise = normal((c.spatial_token_num + c.temporal_token_num, c.out_dim), rows, latents.prior_text)
        tokens = prior(latents.prior_text, noise)
        return tokens.spatial, tokens.temporal

    def _fake(self, batch: Batch, device: torch.device, words: int | None = None) -> Step:
        """A step's inputs without values, for a dry run; captions of so many words, or as long as they may be."""
        c, (video, audio) = self.config, self._shapes(batch)
        rows = audio[0]

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        latents = Latents(
            audio=empty(*audio),
            video=None if video is None else empty(*video),
            text=empty(rows, 1, c.model_max_length, c.caption_channels),
            mask=empty(rows, c.model_max_length, dtype=torch.long),
            prior_text=None,
            lengths=None if words is None else [words] * rows,
            **{name: getattr(batch, name) for name in ("keys", "seeds", "frames", "height", "width", "fps")},
        )
        noise = {name: torch.empty_like(x) for name, x in _modalities(latents).items()}
        masks = {name: empty(rows, x.shape[2], dtype=torch.bool) for name, x in noise.items()}
        priors = tuple(empty(rows, n, c.st_prior_channel) for n in (c.spatial_prior_len, c.temporal_prior_len))
        given = getattr(batch, "masked", bool(self.recipe.mask_ratios))
        return Step(
            latents,
            empty(rows),
            noise,
            {name: empty(rows, dtype=torch.bool) for name in ("text", "audio_text", "prior")},
            masks if given else None,
            dict.fromkeys(masks, True) if given else None,
            (priors[0], priors[1]) if c.has_prior else None,
        )

    def flow(self, model: nn.Module, step: Step) -> FlowLoss:
        """The flow loss of a step."""
        latents = step.latents
        spatial, temporal = step.priors or (None, None)
        fps = torch.full((len(latents),), latents.fps, device=latents.audio.device)

        def velocity(noised: dict[str, Tensor], t: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
            out: dict[str, Tensor] = model(
                noised.get("video"),
                noised["audio"],
                t,
                latents.text,
                latents.mask,
                fps=fps,
                height=float(latents.height),
                width=float(latents.width),
                x_mask=masks.get("video"),
                ax_mask=masks.get("audio"),
                spatial_prior=spatial,
                temporal_prior=temporal,
                drops=step.drops,
                lengths=latents.lengths,
                partial=step.partial,
            )
            return out

        known = _modalities(latents)
        return flow_loss(velocity, known, step.noise, step.t, self.recipe.flow, step.masks, tuple(known))

    def metrics(self) -> tuple[str, ...]:
        """What `validate` measures."""
        video = ("video_loss",) if self.with_video else ()
        return () if self.recipe.data.valid_split is None else ("loss", *video, "audio_loss", "clips")

    @torch.no_grad()
    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        """The flow loss of held-out clips at fixed times, with the same noise every time: a curve moves by the model alone."""
        data = self.recipe.data
        if data.valid_split is None:
            return {}
        names = ("video", "audio") if self.with_video else ("audio",)
        sums = torch.zeros(len(names) + 1, dtype=torch.float64)
        source = self.held_out(data.valid_split, rank, world)
        for batch, counts in in_step(model, source, self.recipe.evaluate_at_most):
            latents = latents_of(batch, self.encoders(device), prior_text=self.config.has_prior)
            for time in self.recipe.valid_times:
                rows = generators(latents.seeds, "validate", round(time))
                t = torch.full((len(latents),), time, device=device)
                step = Step(latents, t, self._noise(latents, rows), priors=self._priors(latents, rows))
                with autocast(model, self.recipe.parallel, device):
                    parts = self.flow(model, step).parts
                if counts:
                    sums += torch.tensor([len(latents), *(float(parts[name].sum()) for name in names)])
        if world > 1:
            sums = sums.to(device)
            dist.all_reduce(sums)
        count, *parts_sum = sums.tolist()
        means = {f"{name}_loss": value / count for name, value in zip(names, parts_sum, strict=True)}
        return {"loss": sum(means.values()), **means, "clips": count / len(self.recipe.valid_times)}


def _modalities(latents: Latents) -> dict[str, Tensor]:
    video = {} if latents.video is None else {"video": latents.video}
    return {**video, "audio": latents.audio}


def source_weights(path: str, what: str) -> dict[str, Tensor]:
    """The tensors a stage starts from: of a file, a folder or a run. UserError that says what to download where if it is not
    there."""
    return read_weights(run_weights(need_weights(path, what)))
