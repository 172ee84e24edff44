"""The backend table: auto prefers in order, a name is honoured or refused with a reason, nothing falls back silently."""

import subprocess
import sys

import pytest
import torch

from javisc.kernels import dispatch
from javisc.kernels.dispatch import BackendError, Request


@pytest.fixture
def op(monkeypatch):
    monkeypatch.setattr(dispatch, "TABLE", {})
    dispatch.register(
        "toy",
        "triton",
        needs="CUDA",
        when="heads of 72",
        refuse=dispatch.refuse_triton,
        prefer=lambda r: r.head_dim == 72,
    )
    dispatch.register("toy", "torch", needs="nothing", when="otherwise")
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    return Request("toy", torch.device("cpu"), torch.float32, 72)


def test_auto_takes_the_first_row_that_runs_and_is_preferred(op, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.choose(op) == "triton"
    assert dispatch.choose(Request("toy", op.device, op.dtype, 64)) == "torch"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert dispatch.choose(op) == "torch"


@pytest.mark.parametrize("how", ["argument", "variable", "variable for the op"])
def test_a_named_backend_that_cannot_run_raises_and_says_why(op, monkeypatch, how):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if how != "argument":
        monkeypatch.setenv(dispatch.VARIABLE, "triton" if how == "variable" else "auto,toy=triton")
    with pytest.raises(BackendError, match="'triton' was asked for and cannot run: it needs a CUDA device, not cpu"):
        dispatch.choose(op, "triton" if how == "argument" else None)


def test_an_op_without_the_named_backend_says_which_it_has(op):
    with pytest.raises(BackendError, match="'xformers' was asked for and cannot run: it has triton, torch"):
        dispatch.choose(op, "xformers")


def test_misspelt_settings_are_refused(op, monkeypatch):
    with pytest.raises(ValueError, match="allowed are auto, triton, xformers, torch"):
        dispatch.choose(op, "trition")
    for value in ("fast", "toi=torch"):
        monkeypatch.setenv(dispatch.VARIABLE, value)
        with pytest.raises(ValueError, match=value.partition("=")[0]):
            dispatch.choose(op)


def test_an_argument_overrules_the_variable_and_choices_are_recorded(op, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with dispatch.recording() as choices:
        dispatch.choose(op, "torch")
    assert choices == [(op, "torch")]


def test_judge_gives_every_row_with_its_reason(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = {verdict.backend.name: verdict for verdict in dispatch.judge(op)}
    assert rows["torch"].chosen and rows["torch"].reason is None
    assert not rows["triton"].chosen and "CUDA" in (rows["triton"].reason or "")


def test_float64_is_left_to_torch(op, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="not float64"):
        dispatch.choose(Request("toy", op.device, torch.float64, 72), "triton")


def test_choosing_torch_imports_neither_triton_nor_xformers():
    code = (
        "import sys, torch\nfrom javisc.kernels.dispatch import *\nfrom javisc.kernels import registration, launch\n"
        "register('toy', 'triton', needs='', when='', refuse=refuse_triton)\nregister('toy', 'torch', needs='', when='')\n"
        "choose(Request('toy', torch.device('cpu'), torch.float64))\n"
        "print(sorted({'triton', 'xformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
