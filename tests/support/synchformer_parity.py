"""Synchformer's fixtures: their settings as ours."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.model import JoinTransformer
from support.sync_parity import SYNCHFORMER, fixtures


def cases(*kinds: str) -> Any:
    return pytest.mark.parametrize(("folder", "name"), fixtures(*kinds, sets=SYNCHFORMER))


def visual_config(config: dict[str, Any], drop_path: float = 0.0) -> VisualConfig:
    v = config["visual"]
    kind = "mean" if config.get("agg_space") == "AveragePooling" else "transformer"
    return VisualConfig(
        v["dim"], v["depth"], v["heads"], v["image"], v["patch"], v["frames"], v["tubelet"], drop_path, kind
    )


def audio_config(config: dict[str, Any]) -> AudioConfig:
    a = config["audio"]
    kind = "mean" if config.get("agg_freq") == "AveragePooling" else "transformer"
    return AudioConfig(a["dim"], a["depth"], a["heads"], a["ff"], a["mels"], a["columns"], kind)


def join_config(config: dict[str, Any], drop: float = 0.1) -> JoinConfig:
    t = config["transformer"]
    return JoinConfig(t["depth"], t["heads"], drop, drop, drop, width=t["dim"], rows=t["rows"], classes=t["classes"],
                      head=t["head"])  # fmt: skip


class Upper(nn.Module):
    """What the samples hold: the projections and the transformer."""

    def __init__(self, state: dict[str, Tensor], heads: int, depth: int) -> None:
        super().__init__()
        self.config = SynchformerConfig()
        width, seen = state["vproj.weight"].shape
        self.vproj, self.aproj = nn.Linear(seen, width), nn.Linear(state["aproj.weight"].shape[1], width)
        rows, classes = state["transformer.pos_emb_cfg.pos_emb"].shape[1], state["transformer.off_head.bias"].shape[0]
        self.transformer = JoinTransformer(JoinConfig(depth, heads, width=width, rows=rows, classes=classes))
