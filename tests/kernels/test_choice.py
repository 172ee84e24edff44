"""What `auto` takes on an H200 that is only imagined, what is computed for frozen inputs, and what waits for a barrier."""

import os
import subprocess
import sys

import pytest
import torch

from javisc.kernels import dispatch, survey
from javisc.kernels.dispatch import Request

CUDA = torch.device("cuda", 0)


@pytest.fixture
def h200(monkeypatch):
    survey.load_ops()
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "pretended", (9, 0))


@pytest.mark.parametrize(
    "op, dtype, head_dim, features, expected",
    [
        ("attention", torch.bfloat16, 72, {"norm"}, "triton"),
        ("attention", torch.bfloat16, 72, {"norm", "long"}, "torch"),
        ("attention", torch.bfloat16, 72, {"lengths", "long"}, "triton"),
        ("attention", torch.bfloat16, 64, {"long"}, "torch"),
        ("attention", torch.float32, 72, {"lengths"}, "torch"),
        ("temporal_attention", torch.bfloat16, 72, set(), "triton"),
        ("prior_attention", torch.bfloat16, 72, set(), "triton"),
        ("prior_attention", torch.bfloat16, 72, {"many"}, "torch"),
        ("prior_attention", torch.float32, 72, set(), "torch"),
        ("selector_attention", torch.bfloat16, 64, set(), "triton"),
        ("selector_attention", torch.float32, 64, set(), "torch"),
        ("selector_attention", torch.bfloat16, 64, {"many"}, "torch"),
        ("bidirectional_attention", torch.bfloat16, 72, set(), "triton"),
        ("bidirectional_attention", torch.bfloat16, 72, {"small"}, "torch"),
        ("modulated_layer_norm", torch.float32, 0, set(), "triton"),
        ("gated_residual", torch.bfloat16, 0, set(), "triton"),
    ],
)
def test_auto_on_an_h200_until_it_is_measured(op, dtype, head_dim, features, expected, h200):
    request = Request(op, CUDA, dtype, head_dim, frozenset(features))
    assert dispatch.choose(request) == expected
    assert [v.backend.name for v in dispatch.judge(request) if v.chosen] == [expected]


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
    return {v.name for v in seen}
assert {"attention_bwd_dq", "attention_bwd_dkv"} <= launched("attention, text")
assert "attention_bwd_dkv" not in launched("attention, text", "k", "v")
assert "attention_bwd_dq" not in launched("attention, text", "q")
assert "modulated_norm_sum" in launched("modulated_layer_norm, short")
assert "modulated_norm_sum" not in launched("modulated_layer_norm, short", "shift", "scale")
assert "ordered_sum_kernel" not in launched("prior_attention, sample", "k", "v")
assert "ordered_sum_kernel" not in launched("temporal_attention", "q_weight", "k_weight")
"""


def test_gradients_of_frozen_inputs_are_not_computed():
    """Which kernels a backward launches, caught without a device."""
    outside = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-P", "-c", LAUNCHES], env=outside, check=True)


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


def test_what_is_updated_in_place_waits_for_a_barrier(tmp_path):
    """In the compiler's first form of both: a barrier between reading and overwriting, where there is anything to read."""
    outside = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", BARRIERS], env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
