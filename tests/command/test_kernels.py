"""`javisc kernels` and `javisc bench`: every op and backend with a reason; a benchmark needs a checkout and says so."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from support import forked


class Javisc(Protocol):
    def __call__(
        self, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> "subprocess.CompletedProcess[str]": ...


def outside(**variables: str) -> dict[str, str]:
    """As a user's environment is, without the interpreter that tests have Triton run under."""
    return {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "JAVISC_KERNELS")} | variables


@pytest.fixture(scope="module")
def javisc() -> Iterator[Javisc]:
    """`javisc …` in a process of its own, which has torch already."""
    server = forked.Server(
        ("javisc.commands.kernels", "javisc.kernels.survey"), TRITON_INTERPRET=None, JAVISC_KERNELS=None
    )

    def run(*arguments: str, cwd: Path | None = None, **variables: str) -> "subprocess.CompletedProcess[str]":
        return forked.javisc(*arguments, at=server, cwd=cwd, env=outside(**variables))

    yield run
    server.close()


def test_every_op_has_a_backend_and_every_other_a_reason() -> None:
    command = [sys.executable, "-P", "-m", "javisc", "kernels", "--device", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=outside(), check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    ops = {row["op"] for row in rows}
    assert {"attention", "selector_attention", "prior_attention", "modulated_layer_norm", "temporal_attention"} <= ops
    assert {"gated_residual", "gated_residual_layer_norm", "bidirectional_attention"} <= ops
    for op in ops:
        mine = [row for row in rows if row["op"] == op]
        assert sorted(dim for row in mine for dim in row["chosen_for"]) == [32, 64, 72, 128], op
        assert all(row["available"] == (row["reason"] is None) and row["needs"] and row["when"] for row in mine)
    triton = [row for row in rows if row["backend"] == "triton"]
    assert triton and all("CUDA device, not cpu" in row["reason"] for row in triton)


def test_the_table_is_for_people(javisc: Javisc) -> None:
    out = javisc("kernels", "--device", "cpu", COLUMNS="160").stdout
    assert "selector_attention" in out and "no: it needs a CUDA device, not cpu" in " ".join(out.split())
    assert "JAVISC_KERNELS=auto" in out


@pytest.mark.parametrize(
    "arguments, variables, message",
    [
        (("--device", "gpu7"), {}, "--device gpu7: no such device"),
        (("--device", "cuda:99"), {}, "CUDA devices"),
        ((), {"JAVISC_KERNELS": "fast"}, "JAVISC_KERNELS=fast: 'fast' is no backend"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], variables: dict[str, str], message: str, javisc: Javisc
) -> None:
    done = javisc("kernels", *arguments, **variables)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_benchmark_outside_a_checkout_says_so(tmp_path: Path, javisc: Javisc) -> None:
    done = javisc("bench", "kernels", cwd=tmp_path)
    assert done.returncode == 2 and "is in no checkout of javisc" in done.stderr and done.stderr.count("\n") == 1
