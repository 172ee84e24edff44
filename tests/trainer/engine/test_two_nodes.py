"""`javisc train` on two nodes under torchrun: one is lost and comes back, and the run is the one that lost none."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from support.nodes import TESTS, Node, cut_power, two_nodes
from support.toy_training import RECIPE, Ranks, losses, saved

KILLS = random.Random(os.environ.get("JAVISC_TEST_SEED"))
SETTINGS = ["run.log_every=1", "run.keep_checkpoints=9"]
STEPS = 12


def until(step: int, run: Path, *nodes: Node) -> None:
    """Wait for the run's log to tell of a step."""
    while step not in losses(run):
        assert all(node.started[-1].poll() is None for node in nodes), "a node gave up"
        time.sleep(0.02)


#: How a node is lost. On every change the harder way; both where JAVISC_TEST_KILLS asks for more.
LOSSES = {"power cut": True} | ({"killed": False} if "JAVISC_TEST_KILLS" in os.environ else {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that lost nothing."""
    folder = tmp_path_factory.mktemp("whole")
    ranks = Ranks(folder, SETTINGS, world=2)
    assert ranks.wait() == [0, 0], ranks.told()
    return folder


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("silent", LOSSES.values(), ids=LOSSES)
def test_a_node_is_lost_and_comes_back(silent: bool, tmp_path: Path, whole: Path) -> None:
    """Silently: nobody tells its peer, which waits in a collective until the node is back."""
    run, recipe = tmp_path / "run", tmp_path / "toy.yaml"
    recipe.write_text(RECIPE)
    with two_nodes() as (keeps, lost):

        def start(node: Node) -> None:
            """The same command on every node and at every start, as a scheduler gives it.

            --nnodes is fixed: with 1:2 the node that is left would go on alone, and a step would be half as large. Sharing its
            store with the workers, torchrun tells a node that comes back no master address (torch 2.10). Without -- it would
            take --run for its own --run-path.
            """
            node.start(
                tmp_path / f"{node.name}.log",
                *["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"],
                *["--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", f"{keeps.address}:29400"],
                *["--rdzv-conf", f"keep_alive_interval=1,is_host={int(node is keeps)}", "--local-addr", node.address],
                *["-m", "--", "support.toy_node", "train", str(recipe), "--run", str(run), *SETTINGS],
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
                TOY_SLOW="0.3",
            )

        at = KILLS.randint(4, 8)
        try:
            for node in (keeps, lost):
                start(node)
            until(at, run, keeps, lost)
            killed = cut_power(lost, keeps) if silent else lost.kill()
            assert killed >= 2  # torchrun's agent and its worker
            start(lost)
            for node in (keeps, lost):
                assert node.started[-1].wait(300) == 0, at
        except BaseException:
            print(*(log.read_text()[-5000:] for log in tmp_path.glob("javisc*.log")), sep="\n\n")
            raise
    expected, got = saved(whole, STEPS), saved(run, STEPS)
    assert set(got) == set(expected)
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == [], at
    assert losses(run) == losses(whole)
    assert all(json.loads(path.read_text())["world"] == 2 for path in run.glob("checkpoints/*/complete.json"))


@pytest.mark.dist
@pytest.mark.slow
def test_torchrun_passes_sigterm_on_and_the_run_is_saved(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", tmp_path / "toy.yaml"
    recipe.write_text(RECIPE)
    agent = subprocess.Popen(
        [
            *[sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
            *["-m", "--", "support.toy_node", "train", str(recipe), "--run", str(run), "--resume"],
            *["run.log_every=1", "run.checkpoint_every=0"],
        ],
        env=os.environ | {"PYTHONPATH": str(TESTS), "TOY_SLOW": "0.3", "OMP_NUM_THREADS": "1"},
    )
    try:
        while 2 not in losses(run):
            assert agent.poll() is None
            time.sleep(0.02)
        agent.terminate()
        agent.wait(120)
    finally:
        agent.kill()
        agent.wait()
    (marker,) = run.glob("checkpoints/*/complete.json")
    event = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert event["event"] == "terminated" and event["step"] < STEPS
    assert marker.parent.name == f"step-{event['step']:08d}"
