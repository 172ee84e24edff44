"""Published sync models: their configs read as ours, their state dicts loaded strictly under their own key names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.sync.checkpoint import SyncCheckpoint
from javisc.trainer.models.sync.config import (
    AVSyncConfig,
    FullAttentionConfig,
    FusionConfig,
    SelectorConfig,
    StackConfig,
    SyncTransformerConfig,
    TrunkConfig,
)
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.models.sync.transformer import FullAttention, SyncTransformer
from javisc.trainer.transforms.sync_chain import SyncTransforms

#: Class names that published configs use, by what they mean here. Only the last part of a dotted path is looked at.
_PRE_NORMS = {"LayerNorm": "layer", "L2Normalize": "l2", "Identity": "identity"}
_FUSIONS = {"GlobalTransformer": "transformer", "GlobalMLP": "mlp"}
_BRIDGES = {"ConvBridgeVisual": "conv", "ConvBridgeAudio": "conv", "DoNothingBridge": "identity"}


def _target(node: Mapping[str, Any] | None, option: str, known: Mapping[str, str]) -> str:
    if node is None:
        raise UserError(f"the model's config has no {option}: give one whose target is one of {', '.join(known)}")
    name = str(node.get("target", "")).rsplit(".", 1)[-1]
    if name not in known:
        raise UserError(f"{option}.target={node.get('target')!r} is not supported: use one of {', '.join(known)}")
    return known[name]


def _positions(node: Mapping[str, Any] | None, option: str) -> str:
    name = str((node or {}).get("target", "")).rsplit(".", 1)[-1]
    if "Learned" in name:
        return "learned"
    if "zero" in name.lower():
        return "zeroinit"
    if name.startswith("NoPos"):
        return "none"
    raise UserError(
        f"{option}.target={(node or {}).get('target')!r} is not supported: learned, zero-initialised or no positions are"
    )


def _stack(params: Mapping[str, Any], fallback: Mapping[str, Any]) -> dict[str, Any]:
    keys = StackConfig.__dataclass_fields__
    return {key: params.get(key, fallback.get(key, field.default)) for key, field in keys.items()}


def _selector(node: Mapping[str, Any], fallback: Mapping[str, Any]) -> SelectorConfig:
    params = node["params"]
    return SelectorConfig(
        **_stack(params, fallback),
        num_selectors=int(params["num_selectors"]),
        positions=params.get("pos_emb_cfg") is not None,
    )


def _common(params: Mapping[str, Any]) -> dict[str, Any]:
    t, h, w = params["visual_block_shape"]
    f, at = params["audio_block_shape"]
    return {
        "classes": int(params["num_offset_cls"]),
        "width": int(params["n_embd"]),
        "visual_shape": (int(t), int(h), int(w)),
        "audio_shape": (int(f), int(at)),
        "pre_norm": _target(params.get("pre_norm_cfg"), "pre_norm_cfg", _PRE_NORMS),
        "visual_positions": _positions(params.get("vis_pos_emb_module"), "vis_pos_emb_module"),
        "audio_positions": _positions(params.get("aud_pos_emb_module"), "aud_pos_emb_module"),
    }


def transformer_config(node: Mapping[str, Any]) -> SyncTransformerConfig | FullAttentionConfig:
    """The config of a published transformer, {target, params}, as ours. UserError names what is unknown or missing."""
    params = node["params"]
    try:
        if _target(node, "transformer", {"SparseSync": "sparse", "Transformer": "full"}) == "full":
            stack = FusionConfig(**_stack(params, {}), tok_pdrop=float(params.get("tok_pdrop", 0.0)))
            return FullAttentionConfig(**_common(params), stack=stack)
        fusion = params["global_transformer_cfg"]
        fusion_params = fusion.get("params", {})
        return SyncTransformerConfig(
            **_common(params),
            visual_selector=_selector(params["v_selector_cfg"], params),
            audio_selector=_selector(params["a_selector_cfg"], params),
            fusion=FusionConfig(
                **_stack(fusion_params, params),
                kind=_target(fusion, "global_transformer_cfg", _FUSIONS),
                tok_pdrop=float(fusion_params.get("tok_pdrop", params.get("tok_pdrop", 0.0))),
            ),
        )
    except KeyError as error:
        raise UserError(
            f"the transformer's config has no {error.args[0]}: it is not one of a published sync model"
        ) from error


def build_transformer(node: Mapping[str, Any]) -> SyncTransformer | FullAttention:
    """The transformer that a published config {target, params} describes, freshly initialised."""
    config = transformer_config(node)
    return FullAttention(config) if isinstance(config, FullAttentionConfig) else SyncTransformer(config)


def model_config(node: Mapping[str, Any]) -> AVSyncConfig:
    """The config of a published model, {target, params}, as ours. Extractor files it may name are not looked at."""
    params = node["params"]
    transformer = transformer_config(params["transformer"])
    return AVSyncConfig(
        visual_trunk=TrunkConfig(trained=bool(params["vfeat_extractor"].get("is_trainable", True))),
        audio_trunk=TrunkConfig(trained=bool(params["afeat_extractor"].get("is_trainable", True))),
        visual_bridge=_target(params.get("v_bridge_cfg"), "v_bridge_cfg", _BRIDGES),
        audio_bridge=_target(params.get("a_bridge_cfg"), "a_bridge_cfg", _BRIDGES),
        transformer=transformer if isinstance(transformer, SyncTransformerConfig) else SyncTransformerConfig(),
        full_attention=transformer if isinstance(transformer, FullAttentionConfig) else None,
    )


def build_model(node: Mapping[str, Any]) -> AVSync:
    """The whole model that a published config {target, params} describes, freshly initialised."""
    return AVSync(model_config(node))


def audio_trunk_state(container: Mapping[str, Any]) -> dict[str, Tensor]:
    """The audio trunk's weights, without a head, from what an audio checkpoint holds.

    It is {'model': state dict, ...} or a bare state dict; of a whole model (`model_type` AVCorrModel or AVSyncModel) the part
    under `afeat_extractor.` is taken.
    """
    state: Mapping[str, Tensor] = container["model"] if isinstance(container.get("model"), Mapping) else container
    prefix = "afeat_extractor."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def visual_trunk_state(container: Mapping[str, Any]) -> dict[str, Tensor]:
    """S3D's weights without the Kinetics classifier, from a bare state dict or from a whole model's under `vfeat_extractor.`."""
    state: Mapping[str, Tensor] = container["model"] if isinstance(container.get("model"), Mapping) else container
    prefix = "vfeat_extractor."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def published(checkpoint: SyncCheckpoint) -> tuple[AVSync, SyncTransforms]:
    """The model that a checkpoint's own config describes, with its weights, and its transforms. Raises UserError."""
    node = checkpoint.config.get("model")
    if not isinstance(node, Mapping):
        raise UserError(f"{checkpoint.source} holds no config of its model: name the model's settings instead")
    model = build_model(node)
    load_strictly(model, checkpoint.model, checkpoint.source)
    data, known = checkpoint.config.get("data") or {}, SyncTransforms()
    return model, SyncTransforms(
        crop_len_sec=float(data.get("crop_len_sec", known.crop_len_sec)),
        max_off_sec=float(data.get("max_off_sec", known.max_off_sec)),
        input_size=int(data.get("input_size", known.input_size)),
        classes=model.config.head.classes,
        audio_advance_sec=checkpoint.advance_sec,
    )
