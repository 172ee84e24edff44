"""Training the prior, stage 2 of JavisDiT: captions are drawn to their sounding videos and away from wrong ones.

A clip's negatives are made on the device, from its seed alone, and pass the same frozen networks as the clip itself. No row needs
another one's (`objectives.contrastive`), so processes exchange gradients and nothing else.

Letters: B rows, r negatives of each sort, T frames, n samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.catalog import Catalog, split_of
from javisc.trainer.data.index.lengths import LATENT_RATE, latent_frames
from javisc.trainer.data.sources.clips import ClipData, Clips
from javisc.trainer.data.sources.encoded import Encoded, EncodedSource, stores_latents
from javisc.trainer.data.sources.held_out import HeldOut
from javisc.trainer.data.sources.noise import generators, normal
from javisc.trainer.data.sources.pools import Pools
from javisc.trainer.data.sources.prior import PoolsConfig, PriorSource, negatives_of
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.lockstep import in_step
from javisc.trainer.engine.moving import to_device
from javisc.trainer.engine.settings import setting
from javisc.trainer.engine.weights import run_weights
from javisc.trainer.models.encoders import Encoders, EncodersConfig
from javisc.trainer.models.prior import PriorConfig, STIBPrior
from javisc.trainer.models.prior import model as prior_files
from javisc.trainer.models.text.tokens import LENGTH
from javisc.trainer.objectives.contrastive import Negatives, PriorLossConfig, prior_loss
from javisc.trainer.task import Source
from javisc.trainer.transforms.javisdit_mel import MelConfig, mel_input
from javisc.trainer.transforms.javisdit_negatives import NegativesConfig

ASPECTS = ("spatial", "temporal")
#: What a batch is to the frozen networks' users, and what `javisc encode` stores of it.
STORED = ("prior_text", "video", "audio", *(f"wrong_{kind}_{a}" for kind in ("video", "audio") for a in ASPECTS))
Batch = Clips | Encoded


@dataclass
class PriorRecipe(Recipe):
    """A recipe of task `prior`. `start`: a prior to go on from; a file without the training-only part starts that afresh.

    At most `evaluate_at_most` batches of the held-out split are looked at by each process, 0 meaning all.
    """

    data: ClipData = field(default_factory=ClipData)
    pools: PoolsConfig = field(default_factory=PoolsConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    objective: PriorLossConfig = field(default_factory=PriorLossConfig)
    model: PriorConfig = field(default_factory=PriorConfig)
    start: str = setting("", "A prior to go on from: a folder, a file or a run.")
    evaluate_at_most: int = setting(0, "Batches of a validation, per process; 0 takes all.", least=0)


@dataclass(frozen=True)
class PriorInputs:
    """What the loss is computed from: `hidden` [B, L, C'] of the text tower, `noise` [B, tokens, C] the prior is drawn with,
    latents `video` [B, 4, t, h, w] and `audio` [B, 8, f, 16], those of the negatives by aspect, the clips' size in pixels."""

    hidden: Tensor
    noise: Tensor
    video: Tensor
    audio: Tensor
    negatives: dict[str, Negatives]
    height: float
    width: float


class PriorInTraining(STIBPrior):
    """The prior, called for its loss, so that DDP and FSDP2 see the whole of a step in one call. Its state is STIBPrior's."""

    def __init__(self, config: PriorConfig, objective: PriorLossConfig) -> None:
        super().__init__(config)
        self.objective = objective

    def forward(self, inputs: PriorInputs) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """The loss and its terms, see `prior_loss`."""
        x = inputs
        tokens = super().forward(x.hidden, x.noise)
        return prior_loss(self, tokens, x.video, x.audio, x.negatives, x.height, x.width, config=self.objective)


class PriorTask:
    """STIBPrior over compiled clips; all of it is trained, the text tower and the autoencoders are frozen."""

    def __init__(self, recipe: PriorRecipe) -> None:
        if recipe.model.pred_onset:
            raise UserError("model.pred_onset=true: javisc makes no onset labels to train it on; leave it off")
        recipe.data.table()  # refuses what are no buckets
        self.recipe = recipe
        self.config = dataclasses.replace(recipe.model, encode_va=True)
        self.mel = MelConfig(padding=recipe.data.mel_padding)
        self._encoders: Encoders | None = None
        self._pools: Pools | None = None
        self.held_out: HeldOut[Batch] = HeldOut(
            lambda split, rank, world: self._source(split, rank, world, train=False)
        )

    def encoders(self, device: torch.device) -> Encoders:
        """The frozen networks on a device, kept there."""
        if self._encoders is None or self._encoders.device != device:
            self._encoders = Encoders(self.recipe.encoders, device)
        return self._encoders

    def model(self) -> PriorInTraining:
        """The model, fresh."""
        return PriorInTraining(self.config, self.recipe.objective)

    def build(self) -> PriorInTraining:
        """The model, fresh or from `start`. Raises UserError if that, or a frozen network, is not there."""
        tower = [] if self.recipe.encoders.prior else ["imagebind"]  # a prior's file may hold the text tower
        if not stores_latents(self.recipe.data):
            self.encoders(torch.device("cpu")).check([*tower, "video_vae", "audio_vae"])
        model = self.model()
        if self.recipe.start:
            begun, _ = prior_files.load(run_weights(Path(self.recipe.start)))
            wanted = dataclasses.replace(self.config, encode_va=begun.config.encode_va)
            if begun.config != wanted:
                raise UserError(f"start={self.recipe.start} is of another size than the recipe's model: {begun.config}")
            model.load_state_dict({**model.state_dict(), **begun.state_dict()})
        return model

    def carry_over(self, model: nn.Module) -> None:
        return None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The transformer's layers, the merging blocks and the judge."""
        assert isinstance(model, STIBPrior)
        layers = [*model.prior_extractor.encoder.layers, *model.prior_extractor.decoder.layers]
        return [*layers, model.va_spatial_encoder, model.va_temporal_encoder, model.discriminator]

    def pools(self) -> Pools:
        """What negatives are drawn from beside the clips themselves."""
        if self._pools is None:
            self._pools = self.recipe.pools.open(self.recipe.negatives.rule, self.recipe.data.reader.options())
        return self._pools

    def source(self, rank: int, world: int) -> Source[Batch]:
        """Training batches of one rank: of latents where the dataset is an encoded one. Raises UserError now if later there would
        be nothing to measure on."""
        data = self.recipe.data
        if self.recipe.run.validate_every and data.valid_split is not None and data.paths:
            Catalog.open(data.paths, split=split_of(data.valid_split, False, rank))
        return self._source(self.recipe.data.train_split, rank, world, train=True)

    def _source(self, split: str | None, rank: int, world: int, *, train: bool) -> Source[Batch]:
        data, seed = self.recipe.data, self.recipe.seed
        if data.paths and stores_latents(data):
            return EncodedSource(data, split, lambda e: e, needs=STORED, seed=seed, rank=rank, world=world, train=train)
        return self.clips(split, rank, world, train=train)

    def shown(self) -> Source[Batch]:
        """Held-out batches for one process, of the training rows where nothing is held out."""
        data = self.recipe.data
        return self.held_out(data.train_split if data.valid_split is None else data.valid_split, 0, 1)

    def clips(self, split: str | None, rank: int, world: int, *, train: bool) -> PriorSource:
        """Batches of clips, from which negatives can be made."""
        data, seed = self.recipe.data, self.recipe.seed
        negatives = self.recipe.negatives
        return PriorSource(data, split, self.pools(), negatives, seed=seed, rank=rank, world=world, train=train)

    def close(self) -> None:
        """Stop what reads held-out clips."""
        self.held_out.close()

    def size(self, batch: Batch) -> int:
        return len(batch.keys)

    def keys(self, batch: Batch) -> list[str]:
        return batch.keys

    def tokens(self, batch: Batch) -> int:
        """The prior's own: what it makes of every clip."""
        return len(batch.keys) * (self.config.spatial_token_num + self.config.temporal_token_num)

    def flops(self, batch: Batch) -> float:
        """Unknown: nearly all of a step is the frozen networks'."""
        return 0.0

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """The loss and its terms (`prior_loss`), summed over the rows."""
        shapes = self._shapes(batch, device) if is_fake(next(model.parameters())) else None
        mean, terms = model(self.inputs(batch, device, shapes))
        return {name: value * len(batch.keys) for name, value in ({"loss": mean} | terms).items()}

    def _shapes(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Tensors without content, for a dry run, as the official networks would give them."""
        c, rows, r = self.config, len(batch.keys), self.recipe.negatives.repetitions
        if isinstance(batch, Encoded):
            return {name: torch.empty(batch.tensors[name].shape, device=device) for name in STORED}
        video = (c.video_in_channel, latent_frames(batch.frames), batch.height // 8, batch.width // 8)
        audio = (c.audio_in_channel, batch.mel.shape[2] // LATENT_RATE, batch.mel.shape[3] // LATENT_RATE)
        shapes = {"prior_text": (LENGTH, c.text_emb_dim), "video": video, "audio": audio}
        for aspect in ASPECTS:
            shapes |= {f"wrong_video_{aspect}": (r, *video), f"wrong_audio_{aspect}": (r, *audio)}
        return {name: torch.empty(rows, *shape, device=device) for name, shape in shapes.items()}

    @torch.no_grad()
    def inputs(self, batch: Batch, device: torch.device, stored: dict[str, Tensor] | None = None) -> PriorInputs:
        """Everything that is drawn for a row is drawn from its own seed: batches, processes and resumes change nothing."""
        if stored is None:
            stored = self.stored(batch, device)
        x, tokens = stored, self.config.spatial_token_num + self.config.temporal_token_num
        return PriorInputs(
            hidden=x["prior_text"],
            noise=to_device(normal((tokens, self.config.out_dim), generators(batch.seeds, "prior")), device),
            video=x["video"],
            audio=x["audio"],
            negatives={a: Negatives(x[f"wrong_video_{a}"], x[f"wrong_audio_{a}"]) for a in ASPECTS},
            height=float(batch.height),
            width=float(batch.width),
        )

    @torch.no_grad()
    def stored(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """What the frozen networks make of a batch, or made when it was encoded: the tensors named by STORED."""
        if isinstance(batch, Encoded):
            return {name: to_device(batch.tensors[name], device) for name in STORED}
        assert batch.video is not None
        encoders, seeds, seconds = self.encoders(device), batch.seeds, batch.frames / batch.fps
        wrong = negatives_of(batch)

        def seen(clips: Tensor, *words: draws.Word) -> Tensor:
            return encoders.video.encode(clips, draws=generators(seeds, "video posterior", *words))

        def heard(waves: Tensor, *words: draws.Word) -> Tensor:
            mel = mel_input(waves, self.mel, seconds)
            return encoders.audio.encode(mel, draws=generators(seeds, "audio posterior", *words))

        def each(encode: Callable[..., Tensor], slots: Tensor, aspect: str) -> Tensor:
            """[B, r, …] → latents [B, r, …]: a pass for each r, so that memory is that of one batch."""
            moved = to_device(slots, device)
            return torch.stack([encode(moved[:, r], aspect, r) for r in range(moved.shape[1])], dim=1)

        made = {"video": seen(to_device(batch.video, device)), "audio": heard(to_device(batch.sound, device))}
        for aspect in ASPECTS:
            made[f"wrong_video_{aspect}"] = each(seen, wrong.video[aspect], aspect)
            made[f"wrong_audio_{aspect}"] = each(heard, wrong.audio[aspect], aspect)
        return {"prior_text": encoders.prior_text.encode(batch.captions), **made}

    def metrics(self) -> tuple[str, ...]:
        """What `validate` measures."""
        if self.recipe.data.valid_split is None:
            return ()
        terms = [f"{a}_{term}_loss" for a in ASPECTS for term in ("token", "disc", "mse", "va", "total")]
        return ("loss", *terms, *(["kl_loss"] if self.config.apply_sampling else []), "clips")

    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        """The loss and its terms over the held-out split, each clip with the same crop, noise and negatives every time."""
        split = self.recipe.data.valid_split
        if split is None:
            return {}
        sums: dict[str, Tensor] = {}
        clips = 0
        source = self.held_out(split, rank, world)
        for batch, counts in in_step(model, source, self.recipe.evaluate_at_most):
            loss, terms = model(self.inputs(batch, device))
            if not counts:
                continue
            for name, value in ({"loss": loss} | terms).items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach() * len(batch.keys)
            clips += len(batch.keys)
        return pooled_means({name: float(value) for name, value in sums.items()}, clips, world)


def pooled_means(sums: dict[str, float], clips: int, world: int) -> dict[str, float]:
    """Means over the clips of all processes. Raises UserError if there are none."""
    parts: list[tuple[dict[str, float], int]] = [(sums, clips)]
    if world > 1:
        parts *= world
        dist.all_gather_object(parts, (sums, clips))
    total = sum(count for _, count in parts)
    if not total:
        raise UserError("the held-out split has no clip that fits: check data.valid_split and the clips' lengths")
    names = next(part for part, count in parts if count)
    means = {name: sum(part.get(name, 0.0) for part, _ in parts) / total for name in names}
    return {**means, "clips": float(total)}
