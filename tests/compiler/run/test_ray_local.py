"""`--address local` makes a cluster, whatever runs on the machine already."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from javisc.compiler.run import ray as engine


def test_a_cluster_of_its_own_is_none_that_runs_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own rule: an address that is not given is the environment's, or that of the last cluster that was started here."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'javisc[ray]')")
    from ray._private.services import canonicalize_bootstrap_address

    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    joined: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda **given: joined.append(canonicalize_bootstrap_address(given["address"])))
    monkeypatch.setattr(engine, "_standing", lambda ray: nullcontext())
    with engine.connected("local"):
        pass
    assert joined == [None]
