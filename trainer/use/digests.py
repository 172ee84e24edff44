"""Digests of what decides a result: a model's weights, and the settings that it is used with."""

from __future__ import annotations

import hashlib

import torch


def digest_of(model: torch.nn.Module, settings: object) -> str:
    """A digest of a model's weights and of the settings it is used with."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
