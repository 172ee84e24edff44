"""The ops inside a model: activation checkpointing and FSDP2 change no gradient."""

from __future__ import annotations

import copy
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from support.op_model import gradients, made, sharded

BACKENDS = ["torch", "triton"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_checkpointing_changes_no_gradient(backend: str) -> None:
    plain = made(backend)
    again = copy.deepcopy(plain)
    again.recompute = True
    expected, got = gradients(plain), gradients(again)
    for name, grad in expected.items():
        assert torch.equal(got[name], grad), name


@pytest.mark.dist
def test_fsdp2_changes_no_gradient(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(sharded, (port, BACKENDS, str(tmp_path)), nprocs=2)
    for backend in BACKENDS:
        got = torch.load(tmp_path / f"{backend}.pt", weights_only=True)
        for name, grad in gradients(made(backend)).items():
            torch.testing.assert_close(got[name], grad, rtol=1e-5, atol=1e-7, msg=f"{backend}: {name}")
