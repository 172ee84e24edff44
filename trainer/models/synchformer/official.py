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
from javisc.trainer.models.synchformer.audio import AudioExtractor
from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.models.synchformer.visual import VisualExtractor
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
#: How the published settings name what reads many tokens.
AGGREGATORS = {"transformer": "TransformerEncoderLayer", "mean": "AveragePooling"}
TABLES = ("official", "by part")
AST_POSITIONS = ("official", "grid")
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
    settings: dict[str, Mapping[str, Any]] = {}
    for key in ("model", "data"):
        value = checkpoint.config.get(key)
        settings[key] = value if isinstance(value, Mapping) else {}
    config = config_of(state, settings["model"], checkpoint.source)
    with torch.device("meta"):
        model = Synchformer(config)
    # The file's own tensors become the model's: it is in memory once.
    load_strictly(model, state, checkpoint.source, assign=True)
    for extractor in (model.vfeat_extractor, model.afeat_extractor):
        extractor.requires_grad_(False)
    return model, transforms_of(config, settings["data"], checkpoint.advance_sec)


def config_of(state: Mapping[str, Tensor], node: Mapping[str, Any], source: str) -> SynchformerConfig:
    """The model that a state dict under our names is of: sizes by its shapes, heads and dropout by its config {target, params}.

    Raises UserError if it is no Synchformer's.
    """

    def inside(mapping: object, key: str) -> Mapping[str, Any]:
        found = mapping.get(key) if isinstance(mapping, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def params_of(name: str) -> Mapping[str, Any]:
        return inside(inside(inside(node, "params"), name), "params")

    def aggregation(extractor: str, option: str) -> str:
        name = str(params_of(extractor).get(option, AGGREGATORS["transformer"])).rsplit(".", 1)[-1]
        kinds = [kind for kind, theirs in AGGREGATORS.items() if theirs == name]
        if not kinds:
            raise UserError(f"{source}: {option}={name!r} is not supported: {', '.join(AGGREGATORS.values())} are")
        return kinds[0]

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
            aggregation=aggregation("vfeat_extractor", "agg_space_module"),
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
            aggregation=aggregation("afeat_extractor", "agg_freq_module"),
        )
        if positions != 2 + audio.grid[0] * audio.grid[1]:
            raise UserError(
                f"{source}: {positions} positions of the audio transformer, spectrograms of {audio.mels} x {audio.columns} "
                f"have {2 + audio.grid[0] * audio.grid[1]}: it was trained on others, which are not supported"
            )
        table = state["transformer.pos_emb_cfg.pos_emb"]
        join = JoinConfig(
            n_layer=_depth(state, r"transformer\.blocks\.(\d+)\."),
            n_head=int(params.get("n_head", 8)),
            width=table.shape[2],
            rows=table.shape[1],
            classes=state[f"transformer.{'off_head' if head == 'offset' else 'sync_head'}.weight"].shape[0],
            head=head,
        )
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop", "tok_pdrop"):
            setattr(join, name, float(params.get(name, getattr(join, name))))
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is no Synchformer's file: it lacks {error}") from error
    return SynchformerConfig(visual, audio, join, centred=inside(node, "params").get("centred") is True)


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


def fitted(state: Mapping[str, Tensor], model: Synchformer, table: str, source: str) -> dict[str, Tensor]:
    """A whole model's tensors for one of another head or fewer segments: the head stays fresh, the table is cut.

    Raises UserError where the table is too short.
    """
    own, name = model.state_dict(), "transformer.pos_emb_cfg.pos_emb"
    made = dict(state)
    rows = model.config.transformer.rows
    if name in made and made[name].shape[1] != rows:
        if made[name].shape[1] < rows:
            raise UserError(
                f"{source} has positions for {made[name].shape[1]} tokens, the model needs {rows}: use fewer segments"
            )
        config = model.config
        made[name] = trimmed_table(made[name], config.segments, config.visual.steps, config.audio.grid[1], table)
    heads = [key for key in made if key.startswith(("transformer.off_head.", "transformer.sync_head."))]
    if any(key not in own for key in heads):
        made = {key: value for key, value in made.items() if key not in heads}
        made |= {
            key: value for key, value in own.items() if key.startswith(f"transformer.{model.transformer.head_name}.")
        }
    return made


def trimmed_table(table: Tensor, segments: int, seen: int, heard: int, kind: str) -> Tensor:
    """A table (1,R,C) of [OFF | picture | MOD | sound] cut to fewer `segments` of `seen` and `heard` tokens.

    `official` keeps the first rows, so that MOD and sounds get rows of pictures; `by part` the first of each part.
    """
    if kind == "official":
        return table[:, : 2 + segments * (seen + heard)].clone()
    before = (table.shape[1] - 2) // (seen + heard)
    middle = 1 + before * seen
    kept = [*range(1 + segments * seen), *range(middle, middle + 1 + segments * heard)]
    return table[:, torch.tensor(kept)].clone()


def pretrained_visual(state: Mapping[str, Tensor], extractor: VisualExtractor, source: str) -> dict[str, Tensor]:
    """Motionformer's tensors for the extractor: its classifier is dropped, the aggregation stays fresh."""
    fresh = {name: value for name, value in extractor.state_dict().items() if name.startswith("spatial_attn_agg.")}
    taken = {name: value for name, value in state.items() if not name.startswith(("head.", "pre_logits."))}
    if not any(name.startswith("patch_embed_3d.") for name in taken):
        raise UserError(f"{source} is no Motionformer: it has no patch_embed_3d; give its .pyth")
    return {**fresh, **taken}


def pretrained_audio(
    state: Mapping[str, Tensor], extractor: AudioExtractor, positions: str, source: str
) -> dict[str, Tensor]:
    """An AST's tensors (transformers' names, old or new) for the extractor: no classifier, positions cut to its own.

    Of the 12 x 101 positions of ten seconds, `official` keeps the first ones, which are of one band; `grid` those of the first
    columns of every band.
    """
    prefix = "audio_spectrogram_transformer."
    taken = {name.removeprefix(prefix): value for name, value in state.items() if not name.startswith("classifier.")}
    made = own_names({f"ast.{name}": value for name, value in taken.items()})
    name = "ast.embeddings.position_embeddings"
    bands, steps = extractor.config.grid
    if name not in made or made[name].dim() != 3 or made[name].shape[1] < 2 + bands * steps:
        raise UserError(f"{source} is no AST of at least {bands * steps} positions: give its folder")
    table = made[name]
    if positions == "official":
        made[name] = table[:, : 2 + bands * steps].clone()
    else:
        columns = (table.shape[1] - 2) // bands
        grid = table[:, 2:].view(1, bands, columns, -1)[:, :, :steps].flatten(1, 2)
        made[name] = torch.cat((table[:, :2], grid), 1)
    fresh = {name: value for name, value in extractor.state_dict().items() if name.startswith("freq_attn_agg.")}
    return {**fresh, **made}
