"""What `auto` takes on an H200 that is only imagined, what is computed for frozen inputs, and what waits for a barrier."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from javisc.kernels import dispatch, survey
from javisc.kernels.attention import attention
from javisc.kernels.bidirectional_attention import bidirectional_attention
from javisc.kernels.dispatch import Request
from javisc.kernels.modulated_norm import gated_residual, gated_residual_layer_norm, modulated_layer_norm
from javisc.kernels.prior_attention import prior_attention
from javisc.kernels.selector_attention import selector_attention
from javisc.kernels.temporal_attention import temporal_attention

CUDA = torch.device("cuda", 0)
NORMS = (gated_residual, gated_residual_layer_norm, modulated_layer_norm)


@pytest.fixture
def h200(monkeypatch):
    survey.load_ops()
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "pretended", (9, 0))


def heads(*shape, d=72, dtype=torch.bfloat16):
    """(…, 2, d) on no device at all."""
    return torch.empty(*shape, 2, d, dtype=dtype, device="meta")


def attended(queries, *, d=72, norm=False, dtype=torch.bfloat16):
    q, gain = heads(1, queries, d=d, dtype=dtype), torch.empty(d, device="meta", dtype=dtype)
    return attention(q, q, q, **({"q_weight": gain, "k_weight": gain} if norm else {}))


def text(queries, dtype=torch.bfloat16):
    q, kv = heads(2, queries, dtype=dtype), heads(600, dtype=dtype)
    return attention(q, kv, kv, cu_seqlens_k=torch.tensor([0, 300, 600], device="meta"), max_seqlen_k=300)


def prior(scope, clips, tokens, dtype=torch.bfloat16):
    return prior_attention(heads(clips, 2160, dtype=dtype), *[heads(clips, tokens, dtype=dtype)] * 2, scope=scope)


def both(clips, rows, dtype=torch.bfloat16, d=72):
    q, k = heads(clips, rows, d=d, dtype=dtype), heads(clips, 208, d=d, dtype=dtype)
    return bidirectional_attention(q, k, k, q)


def selected(queries, dtype=torch.bfloat16):
    return selector_attention(heads(2, queries, d=64, dtype=dtype), *[heads(2, 784, d=64, dtype=dtype)] * 2)


def normed(op, dtype):
    x, m = torch.empty(2, 3, 4, 1152, device="meta", dtype=dtype), torch.empty(2, 1152, device="meta", dtype=dtype)
    return op(x, m, m) if op is modulated_layer_norm else op(x, x, m, *([m, m] if "norm" in op.__name__ else []))


def temporal(times):
    return temporal_attention(torch.empty(1, times, 5, 3, 2, 72, device="meta", dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "call, expected",
    [
        # torch for attention with norm at S ≥ 900
        (partial(attended, 900, norm=True), "torch"),
        (partial(attended, 3600, norm=True), "torch"),
        (partial(attended, 899, norm=True), "triton"),
        (partial(attended, 144, norm=True), "triton"),
        # for prior batch with B·P ≥ 256
        (partial(prior, "batch", 8, 32), "torch"),
        (partial(prior, "batch", 5, 51), "triton"),
        # bidirectional where the grid is under one wave: two clips, two heads, two tiles of 64 rows a program (of 32 at 64 wide)
        (partial(both, 2, 4223), "torch"),
        (partial(both, 2, 4224), "triton"),
        (partial(both, 2, 2111, d=64), "torch"),
        (partial(both, 2, 2112, d=64), "triton"),
        # fp32 prior and selector
        (partial(prior, "sample", 2, 32, torch.float32), "torch"),
        (partial(prior, "batch", 2, 32, torch.float32), "torch"),
        (partial(selected, 16, torch.float32), "torch"),
        # Triton for temporal, norms, text cross, prior sample, selector
        (partial(temporal, 15), "triton"),
        (partial(temporal, 120), "triton"),
        *((partial(normed, op, t), "triton") for op in NORMS for t in (torch.bfloat16, torch.float32)),
        (partial(text, 54000), "triton"),
        (partial(text, 100), "triton"),
        (partial(prior, "sample", 16, 32), "triton"),
        (partial(prior, "sample", 8, 255), "triton"),
        (partial(selected, 16), "triton"),
        # and what the list leaves open: heads that PyTorch's kernels do not pad, float32, too many queries
        (partial(attended, 3600, d=64), "torch"),
        (partial(text, 100, torch.float32), "torch"),
        (partial(selected, 65), "torch"),
    ],
)
def test_auto_on_an_h200_until_it_is_measured(call, expected, h200, monkeypatch):
    """What each op chooses at these shapes, on tensors that are nowhere."""

    class Chosen(Exception):
        pass

    choose = dispatch.choose

    def chosen(request, backend=None):
        taken = choose(request, backend)
        assert [v.backend.name for v in dispatch.judge(request) if v.chosen] == [taken]
        raise Chosen(taken)

    monkeypatch.setattr(dispatch, "choose", chosen)
    with pytest.raises(Chosen, match=expected):
        call()


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (12, 0)])
def test_small_devices_take_the_small_tiles_and_torch_for_both_ways(capability, h200, monkeypatch):
    from javisc.kernels.launch import architecture

    monkeypatch.setattr(dispatch, "pretended", capability)
    assert architecture(CUDA) == 80
    request = Request("bidirectional_attention", CUDA, torch.bfloat16, 72)
    assert dispatch.choose(request) == "torch"


def test_an_installed_package_that_does_not_run_is_refused_with_its_own_words_once(monkeypatch):
    tried = []

    def attempt(name):
        tried.append(name)
        raise RuntimeError("no kernel image is\navailable")

    monkeypatch.setattr(dispatch, "_broken", {})
    monkeypatch.setitem(dispatch.INSTALLED, "xformers", True)
    monkeypatch.setattr(dispatch.importlib, "import_module", attempt)
    for _ in range(2):
        reason = dispatch.refuse_xformers(Request("attention", CUDA, torch.float16, 64))
        assert "does not run here" in reason and "no kernel image is available" in reason
    assert len(tried) == 1


LAUNCHES = """
import torch
from javisc.kernels import aot, calls
def launched(op, *frozen, sizes=calls.GATE):
    call = next(c for c in calls.calls(sizes) if c.name.startswith(op))
    inputs = call.make(torch.device("meta"), torch.bfloat16)
    for name in frozen:
        inputs[name] = inputs[name].detach()
    with aot.capturing(90) as seen:
        out = call.ours(**inputs)
        outs = out if isinstance(out, tuple) else (out,)
        seen.clear()
        learn = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
        torch.autograd.grad(outs, learn, [torch.empty_like(o) for o in outs])
    return {name for v in seen for name in (v.name, *(k for k in ("KEYS=True", "KEYS=False") if k in v.label))}
assert {"KEYS=True", "KEYS=False"} <= launched("attention, text")
assert "KEYS=True" not in launched("attention, text", "k", "v")
assert "KEYS=False" not in launched("attention, text", "q")
assert "ordered_sum_kernel" in launched("modulated_layer_norm, short")
assert "ordered_sum_kernel" not in launched("modulated_layer_norm, short", "shift", "scale")
assert "ordered_sum_kernel" not in launched("prior_attention, sample", "k", "v")
assert "ordered_sum_kernel" not in launched("temporal_attention", "q_weight", "k_weight")
"""
BARRIERS = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from javisc.kernels import aot
from javisc.kernels.bidirectional_attention import triton as kernels
class Stop(Exception): pass
found = {}
for variant in aot.variants(90, "bidirectional_attention, 1696 audio, 144p 51"):
    if variant.name not in ("bidirectional_fwd", "bidirectional_bwd"):
        continue
    source = ASTSource(fn=getattr(kernels, variant.name), signature=dict(variant.signature), constexprs=dict(variant.constants))
    def stop(self, *args): raise Stop(str(args[0]))
    from triton.backends.nvidia.compiler import CUDABackend
    CUDABackend.make_ttir = stop
    try:
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(variant.options))
    except Stop as seen:
        previous = "HAS_PREVIOUS=True" in variant.label
        found[variant.name, previous] = str(seen).count("barrier")
print(found)
assert found["bidirectional_fwd", True] == 1 and found["bidirectional_bwd", True] == 2, found
assert found["bidirectional_fwd", False] == found["bidirectional_bwd", False] == 0, found
"""


def test_frozen_gradients_are_not_computed_and_what_is_updated_in_place_waits_for_a_barrier(tmp_path):
    """Which kernels a backward launches, caught without a device. And in the compiler's first form of the bidirectional ones: a
    barrier between reading and overwriting, where there is anything to read."""
    outside = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-P", "-c", LAUNCHES + BARRIERS]
    done = subprocess.run(command, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
