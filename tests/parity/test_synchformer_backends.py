"""Synchformer's outputs and gradients through the Triton kernels, run by Triton's interpreter."""

from __future__ import annotations

import pytest
from parity import test_synchformer_models

from javisc.kernels import dispatch
from support.kernels import kinds_once
from support.sync_parity import SYNCHFORMER, fixtures


@pytest.mark.slow
def test_every_gradient_through_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model, of which the contrast's two towers are parts, on heads that the kernel can take."""
    if not SYNCHFORMER:
        pytest.skip("no fixtures (set JAVISC_PARITY)")
    if not dispatch.interpreting():
        pytest.skip("a GPU is here, and the model is judged on the CPU")
    every = (fixture.values for fixture in fixtures("synchformer_model", sets=SYNCHFORMER))
    (tiny,) = (values for values in every if values[1] == "synchformer_tiny")
    monkeypatch.setenv(dispatch.VARIABLE, "attention=triton")
    kinds_once(monkeypatch)
    with dispatch.recording() as choices:
        test_synchformer_models.test_whole_model(*tiny)
    asked = {request for request, _ in choices if request.op == "attention"}
    assert asked and asked == {request for request, name in choices if request.op == "attention" and name == "triton"}
