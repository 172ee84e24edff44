"""Published Synchformer files: names, sizes and settings read as ours, and ours written as theirs.

Our names are theirs, but for the audio transformer's, which are transformers' own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.sync.checkpoint import SyncCheckpoint
from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms

#: A layer of the audio transformer: (published, ours).
_LAYER = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)
#: The extractors in files of the first stage, and in those of the others.
_STAGE_1 = (("v_encoder.", "vfeat_extractor."), ("a_encoder.", "afeat_extractor."))
#: Heads of the published model: a state dict does not tell them.
_HEADS = 12


def _renamed(name: str, layers: tuple[tuple[str, str], ...], before: str, after: str) -> str:
    match = re.fullmatch(rf"(.*\b|)ast\.{re.escape(before)}\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return name
    head, number, middle, last = match.groups()
    return f"{head}ast.{after}.{number}.{dict(layers).get(middle, middle)}.{last}"


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names."""
    return {_renamed(name, _LAYER, "encoder.layer", "layers"): value for name, value in state.items()}


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under published names."""
    back = tuple((own, published) for published, own in _LAYER)
    return {_renamed(name, back, "layers", "encoder.layer"): value for name, value in state.items()}


def extractor_states(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The visual and the audio extractor's tensors under our names, out of a file of any stage. Raises UserError."""
    state = own_names(state)
    found = []
    for first, later in _STAGE_1:
        prefix = first if any(name.startswith(first) for name in state) else later
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not part:
            raise UserError(f"{source} holds no extractor ({later}… or {first}…): give a file of a Synchformer")
        found.append(part)
    return found[0], found[1]


def _depth(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in state if (found := re.match(pattern, name))), default=-1)


def published(checkpoint: SyncCheckpoint) -> tuple[Synchformer, SegmentTransforms]:
    """The model of a checkpoint of the second or third stage, with its weights, and its transforms. Raises UserError."""
    state = own_names(checkpoint.model)
    config = config_of(state, checkpoint.config.get("model") or {}, checkpoint.source)
    with torch.device("meta"):
        model = Synchformer(config)
    # The file's own tensors become the model's: it is in memory once.
    load_strictly(model, state, checkpoint.source, assign=True)
    for extractor in (model.vfeat_extractor, model.afeat_extractor):
        extractor.requires_grad_(False)
    return model, transforms_of(config, checkpoint.config.get("data") or {}, checkpoint.advance_sec)


def config_of(state: Mapping[str, Tensor], node: Mapping[str, Any], source: str) -> SynchformerConfig:
    """The model that a state dict under our names is of: sizes by its shapes, heads and dropout by its config {target, params}.

    Raises UserError if it is no Synchformer's.
    """
    every = node.get("params") or {}

    def params_of(name: str) -> Mapping[str, Any]:
        found = (every.get(name) or {}).get("params")
        return found if isinstance(found, Mapping) else {}

    params = params_of("transformer")
    try:
        head = "offset" if "transformer.off_head.weight" in state else "sync"
        width, _, tubelet, patch, _ = state["vfeat_extractor.patch_embed_3d.proj.weight"].shape
        steps = state["vfeat_extractor.temp_embed"].shape[1]
        places = state["vfeat_extractor.pos_embed"].shape[1] - 1
        visual = VisualConfig(
            width=width,
            depth=_depth(state, r"vfeat_extractor\.blocks\.(\d+)\."),
            heads=int(params_of("vfeat_extractor").get("num_heads", _HEADS)),
            image=round(places**0.5) * patch,
            patch=patch,
            frames=steps * tubelet,
            tubelet=tubelet,
        )
        hidden, heard = state["afeat_extractor.ast.layers.0.mlp.fc1.weight"].shape
        positions = state["afeat_extractor.ast.embeddings.position_embeddings"].shape[1]
        known = AudioConfig()
        audio = AudioConfig(
            width=heard,
            depth=_depth(state, r"afeat_extractor\.ast\.layers\.(\d+)\."),
            heads=int(params_of("afeat_extractor").get("num_heads", _HEADS)),
            intermediate=hidden,
            mels=int(params_of("afeat_extractor").get("num_mel_bins", known.mels)),
            columns=int(params_of("afeat_extractor").get("max_spec_t", known.columns)),
        )
        if positions != 2 + audio.grid[0] * audio.grid[1]:
            raise UserError(
                f"{source}: {positions} positions of the audio transformer, spectrograms of {audio.mels} x {audio.columns} "
                f"have {2 + audio.grid[0] * audio.grid[1]}: it was trained on others, which are not supported"
            )
        table = state["transformer.pos_emb_cfg.pos_emb"]
        drop = {key: float(params[key]) for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop", "tok_pdrop") if key in params}
        join = JoinConfig(
            n_layer=_depth(state, r"transformer\.blocks\.(\d+)\."),
            n_head=int(params.get("n_head", 8)),
            width=table.shape[2],
            rows=table.shape[1],
            classes=state[f"transformer.{'off_head' if head == 'offset' else 'sync_head'}.weight"].shape[0],
            head=head,
            **drop,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{source} is no Synchformer's file: it lacks {error}") from error
    return SynchformerConfig(visual, audio, join)


def transforms_of(config: SynchformerConfig, data: Mapping[str, Any], advance: float) -> SegmentTransforms:
    """The chain that a published model wants, by its own settings where it has any."""
    known = SegmentTransforms()
    own = SegmentTransforms(
        max_off_sec=float(data.get("max_off_sec", known.max_off_sec)),
        classes=config.transformer.classes if config.transformer.head == "offset" else known.classes,
        input_size=config.visual.image,
        audio_advance_sec=advance,
        segments=config.segments,
        segment_frames=config.visual.frames,
        fps=int(data.get("vfps", known.fps)),
        step=float(data.get("step_size_seg", known.step)),
        mels=config.audio.mels,
        columns=config.audio.columns,
    )
    if config.transformer.head == "sync":
        own.target = "synchronizability"
        own.crop_len_sec = round(own.covered_sec, 2)
    else:
        own.crop_len_sec = max(float(data.get("crop_len_sec", known.crop_len_sec)), own.covered_sec)
    return own


def trimmed_table(table: Tensor, rows: int, seen: int, heard: int, kind: str) -> Tensor:
    """A position table (1,R,C) of [OFF, `seen`, MOD, `heard`] for `rows`, which are fewer, in the same shares of seen and heard.

    `official` keeps the first rows, so that MOD and the sound get rows of the picture; `by part` keeps the first of each part.
    """
    if kind == "official":
        return table[:, :rows].clone()
    segments = table.shape[1] - 2
    kept = (rows - 2) * seen // segments
    first = [0, *range(1, 1 + kept)]
    second = [1 + seen, *range(2 + seen, 2 + seen + rows - 2 - kept)]
    assert seen + heard == segments
    return table[:, torch.tensor([*first, *second])].clone()
