"""Writing a Synchformer's weights in the layouts of published files, for programs that read those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.models.synchformer.config import AudioConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.model import SegmentContrast, Synchformer
from javisc.trainer.models.synchformer.official import AGGREGATORS, published_names
from javisc.trainer.transforms.segment_chain import SegmentTransforms

LAYOUTS = ("training", "bare")


def write_published(
    model: Synchformer | SegmentContrast, transforms: SegmentTransforms, path: Path, layout: str
) -> None:
    """Write a model as a `.pt` with published names: `bare`, a state dict; or `training`, the container of its stage.

    The container holds weights and settings, no optimizer: nothing can be resumed from it. Raises UserError for another layout,
    and for a centred model without settings, which others would run as one that is not.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: it may be {', '.join(LAYOUTS)}")
    if layout == "bare" and isinstance(model, Synchformer) and model.config.centred:
        raise UserError("--layout bare: a state dict cannot say that its model has model.centred=true; give training")
    state = {name: value.detach().cpu().clone() for name, value in published_names(model.state_dict()).items()}
    content: dict[str, Any] = dict(state) if layout == "bare" else _container(model, transforms, state)
    with published(path) as temporary:
        torch.save(content, temporary)


def _container(
    model: Synchformer | SegmentContrast, transforms: SegmentTransforms, state: dict[str, Tensor]
) -> dict[str, Any]:
    settings = {"model": _model(model), "data": _data(transforms)}
    if isinstance(model, SegmentContrast):
        wrapped = {f"module.{name}": value for name, value in state.items()}
        return {
            "epoch": 0,
            "name": "",
            "state_dict": wrapped,
            "optimizer": {},
            "metrics": {},
            "args": settings,
            "scaler": {},
        }
    return {
        "args": settings,
        "loss": 0.0,
        "metrics": {},
        "epoch": 0,
        "optimizer": {},
        "model": state,
        "scaler": {},
        "lr_scheduler": {},
        "model_type": "Synchformer",
    }


def _model(model: Synchformer | SegmentContrast) -> dict[str, Any]:
    """The settings {target, params}; beside the published ones the sizes that a state dict does not tell."""
    config = model.config
    params: dict[str, Any] = {"vfeat_extractor": _visual(config.visual), "afeat_extractor": _audio(config.audio)}
    if isinstance(config, SynchformerConfig):
        join = config.transformer
        names = ("n_layer", "n_head", "tok_pdrop", "embd_pdrop", "resid_pdrop", "attn_pdrop")
        inner: dict[str, Any] = {"n_embd": join.width, **{name: getattr(join, name) for name in names}}
        inner["pos_emb_cfg"] = {"params": {"block_shape": [join.rows], "n_embd": join.width}}
        params["centred"] = config.centred
        params["transformer"] = {"target": "model.sync_model.GlobalTransformer", "params": inner}
    return {"target": f"model.sync_model.{type(model).__name__}", "params": params}


def _visual(config: VisualConfig) -> dict[str, Any]:
    return {
        "params": {
            "extract_features": True,
            "factorize_space_time": True,
            "num_heads": config.heads,
            "agg_space_module": AGGREGATORS[config.aggregation],
        }
    }


def _audio(config: AudioConfig) -> dict[str, Any]:
    sizes = {"max_spec_t": config.columns, "num_mel_bins": config.mels, "num_heads": config.heads}
    return {"params": {**sizes, "agg_freq_module": AGGREGATORS[config.aggregation]}}


def _data(transforms: SegmentTransforms) -> dict[str, Any]:
    return {
        "num_off_cls": transforms.classes,
        "max_off_sec": transforms.max_off_sec,
        "crop_len_sec": transforms.crop_len_sec,
        "step_size_seg": transforms.step,
        "n_segments": transforms.segments,
        "segment_size_vframes": transforms.segment_frames,
        "input_size": transforms.input_size,
        "vfps": transforms.fps,
        "afps": transforms.rate,
    }
