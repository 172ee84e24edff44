"""`javisc kernels --warm RECIPE`: what it compiles is what Triton then finds in its cache when the same call is launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from javisc.commands.kernels import kernels
from javisc.manifests.errors import UserError

#: Launches ordered sums of these widths by Triton's own way, on a driver that is only imagined: were they found compiled?
LAUNCH = """
import sys, torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor
from javisc.kernels import tiles
class Imagined:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
driver.set_active(Imagined())
hits = []
knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
part, mask, out = (MockTensor(dtype) for dtype in (torch.float32, torch.uint8, torch.bfloat16))
for columns in (int(c) for c in sys.argv[1:]):
    tiles.ordered_sum_kernel.run(
        0, part, mask, out, 0, 3, 1, 1, 1, columns, tiles.SUM_ROWS, tiles.SUM_COLUMNS, tiles.SUM_EACH, num_warps=4, grid=(1,),
        warmup=True)
print(hits)
"""


def outside(**variables: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "JAVISC_KERNELS")} | variables


def javisc(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "javisc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=outside(**variables), check=False)


def found(cache: dict[str, str], *widths: str) -> str:
    launched = subprocess.run(
        [sys.executable, "-P", "-c", LAUNCH, *widths], env=outside(**cache), capture_output=True, text=True
    )
    assert launched.returncode == 0, launched.stderr
    return launched.stdout.strip()


@pytest.mark.aot
@pytest.mark.slow
def test_a_recipe_is_warmed_without_a_gpu_and_a_launch_finds_it(tmp_path: Path) -> None:
    """By Triton's own key; a width of other alignment was not captured, and is not found."""
    cache = {"TRITON_CACHE_DIR": str(tmp_path)}
    changes = ["parallel.precision=bf16", "parallel.strategy=fsdp2"]
    done = javisc("kernels", "--warm", "jav-tiny", "--arch", "90", "--processes", "1", "--json", *changes, **cache)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    names = {row["kernel"] for row in rows}
    assert {"modulated_norm_fwd", "modulated_norm_bwd", "ordered_sum_kernel", "temporal_fwd"} <= names
    assert all(not row["problem"] and row["arch"] == 90 for row in rows)
    assert found(cache, "1152", "1153") == "[True, False]"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--warm", "jav-tiny", "--arch", "70"), "--arch 70: it may be 80, 86"),
        (("--warm", "jav-tiny"), "give --arch 80, 90 or 100"),
        (("--arch", "90"), "go with --warm RECIPE"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = CliRunner().invoke(kernels, arguments)
    assert isinstance(outcome.exception, UserError) and message in str(outcome.exception)
