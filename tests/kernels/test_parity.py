"""The published model's own numbers, through the ops: attention blocks rebuilt from a projection, an op and a projection."""

import json

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import layer_norm, linear

from javisc.kernels.attention import attention
from javisc.kernels.attention.reference import rms_norm
from javisc.kernels.bidirectional_attention import bidirectional_attention
from javisc.kernels.temporal_attention import rope_table, temporal_attention
from javisc.kernels.temporal_attention.reference import rotate
from support.kernels import relative_error
from support.shared import PARITY, need

TOLERANCE = 1e-4
backends = pytest.mark.parametrize("backend", ["torch", "triton"])


def load(name):
    """(meta, weights, cases) of a fixture file, as its README lays them out."""
    with safe_open(need(PARITY / "javisdit" / f"{name}.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = json.loads(file.metadata()["meta"])
    weights = {key[2:]: value for key, value in tensors.items() if key.startswith("w/")}
    cases = {case: {"in": {}, "out": {}} for case in meta["cases"]}
    for key, value in tensors.items():
        if not key.startswith("w/"):
            case, side, tensor = key.split("/", 2)
            cases[case][side][tensor] = value
    return meta, weights, cases


def project(weights, name, x):
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def close(got, want):
    assert relative_error(got, want) <= TOLERANCE


def test_rms_norm():
    meta, weights, cases = load("rmsnorm")
    close(rms_norm(cases["c"]["in"]["x"], weights["weight"], meta["config"]["eps"]), cases["c"]["out"]["y"])


def test_rope():
    _, weights, cases = load("rope")
    for case in cases.values():
        x = case["in"]["x"]
        close(rotate(x, *rope_table(weights["freqs"], x.shape[-2])), case["out"]["y"])


@backends
@pytest.mark.parametrize("name", ["attention", "attention_rope"])
def test_self_attention(name, backend):
    meta, weights, cases = load(name)
    x, heads = cases["c"]["in"]["x"], meta["config"]["heads"]
    qkv = project(weights, "qkv", x).unflatten(-1, (3, heads, -1))
    gains = (weights["q_norm.weight"], weights["k_norm.weight"])
    if meta["config"]["rope"]:
        d = qkv.shape[-1]
        table = rope_table(10000 ** (-torch.arange(0, d, 2) / d), x.shape[1])
        out = temporal_attention(qkv[:, :, None], *gains, *table, backend=backend)[:, :, 0]
    else:
        out = attention(*qkv.unbind(2), q_weight=gains[0], k_weight=gains[1], backend=backend)
        close(
            project(weights, "proj", temporal_attention(qkv[:, :, None], *gains, backend=backend).flatten(-2)[:, :, 0]),
            cases["c"]["out"]["y"],
        )
    close(project(weights, "proj", out.flatten(-2)), cases["c"]["out"]["y"])


@backends
def test_text_cross_attention(backend):
    meta, weights, cases = load("text_cross_attention")
    heads = meta["config"]["heads"]
    for name, case in cases.items():
        x = case["in"]["x"]
        q = project(weights, "q_linear", x).unflatten(-1, (heads, -1))
        k, v = project(weights, "kv_linear", case["in"]["cond"]).unflatten(-1, (2, heads, -1)).unbind(2)
        if name == "packed":
            lens = meta["cases"][name]["lens"]
            bounds = torch.tensor([0, *lens]).cumsum(0).int()
            out = attention(q, k[0], v[0], cu_seqlens_k=bounds, max_seqlen_k=max(lens), backend=backend)
        else:  # without lengths the reference flattens the batch into one sequence
            out = attention(*(t.flatten(0, 1)[None] for t in (q, k, v)), backend=backend).unflatten(1, x.shape[:2])[0]
        close(project(weights, "proj", out.flatten(-2)), case["out"]["y"])


def both_ways(weights, heads, x1, x2, prefix="", **options):
    q, k, v_row, v_col = (
        project(weights, prefix + name, x).unflatten(-1, (heads, -1))
        for name, x in (("m1_proj", x1), ("m2_proj", x2), ("values_m2_proj", x2), ("values_m1_proj", x1))
    )
    row, col = bidirectional_attention(q, k, v_row, v_col, **options)
    return project(weights, prefix + "out_m1_proj", row.flatten(-2)), project(
        weights, prefix + "out_m2_proj", col.flatten(-2)
    )


@backends
@pytest.mark.parametrize("name", ["bi_attention_eager", "bi_attention_sdpa"])
def test_bidirectional_attention(name, backend):
    meta, weights, cases = load(name)
    for case in cases.values():
        masks = {"mask_row": case["in"].get("mask1"), "mask_col": case["in"].get("mask2"), "mask_mode": "or"}
        got = both_ways(weights, meta["config"]["heads"], case["in"]["x1"], case["in"]["x2"], backend=backend, **masks)
        close(got[0], case["out"]["y1"])
        close(got[1], case["out"]["y2"])


@backends
def test_va_cross_block(backend):
    meta, weights, cases = load("va_cross_block")
    for case in cases.values():
        x1, x2 = case["in"]["x1"], case["in"]["x2"]
        normed = (layer_norm(x, x.shape[-1:], eps=1e-6) for x in (x1, x2))
        y1, y2 = both_ways(weights, meta["config"]["heads"], *normed, prefix="cross_attn.", backend=backend)
        close(x1 + weights["gamma_m1"] * y1, case["out"]["x1"])
        close(x2 + weights["gamma_m2"] * y2, case["out"]["x2"])
