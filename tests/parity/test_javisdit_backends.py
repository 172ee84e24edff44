"""The whole model's loss and gradients through the Triton kernels, run by Triton's interpreter."""

from __future__ import annotations

import pytest
from parity import test_javisdit_flow

from javisc.kernels import dispatch
from support.kernels import kinds_once
from support.parity import JAVISDIT, files
from support.shared import need


@pytest.mark.slow
def test_gradients_through_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case with masks takes the kernels' paths of the case without them, and theirs."""
    need(JAVISDIT / "MANIFEST.json")
    if not dispatch.interpreting():
        pytest.skip("a GPU is here, and the model is judged on the CPU")
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    (fixture,) = files("vastdit3_train")
    kinds_once(monkeypatch)
    with dispatch.recording() as choices:
        test_javisdit_flow.test_training_gradients_of_the_whole_model(*fixture.values, "stage3_framemask")
    assert {request for request, _ in choices} == {request for request, name in choices if name == "triton"}
