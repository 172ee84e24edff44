"""`javisc build prior`, `encode` and `score` on this machine and on a cluster: the same bytes, a model a process, and what kills
them is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from javisc.compiler.run import parts
from javisc.compiler.run import spread as spreading
from javisc.manifests.errors import UserError
from javisc.trainer.use import devices
from javisc.trainer.use import encode as encoding
from javisc.trainer.use import score as scoring
from javisc.trainer.use.devices import Devices, devices_of
from javisc.trainer.use.encode import EncodeOptions
from javisc.trainer.use.prior import run as runs
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.score import ScoreOptions
from support import compiled, deadly, selector
from support.killing import tree

TESTS = Path(__file__).resolve().parents[2]
NODE = {"num_cpus": 2, "memory": 4_000_000_000, "object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of this machine."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'javisc[ray]')")
    from ray.cluster_utils import Cluster

    before = {
        name: os.environ.get(name)
        for name in ("PYTHONPATH", "RAY_AUTH_MODE", "RAY_worker_niceness", "JAVISC_TEST_DEADLY")
    }
    os.environ.update(
        PYTHONPATH=str(TESTS),
        RAY_AUTH_MODE="disabled",
        RAY_worker_niceness="0",
        JAVISC_TEST_DEADLY=str(tmp_path_factory.mktemp("deadly") / "key"),
    )
    made = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield made.address
    finally:
        made.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def settings_of(stage: str, kind: str, demo: Path, networks: dict[str, Path]) -> dict[str, Any]:
    """A stage's settings with its baseline or its network."""
    if stage == "masklets":
        return {"raw": [str(demo / "raw")], **({"segmenter": str(networks["segmenter"])} if kind == "network" else {})}
    network = {"unpaired": "generator", "separate": "separator"}[stage]
    more = {"steps": 2, "batch_size": 2} if stage == "unpaired" else {}
    chosen = {network: str(networks[network]), **more} if kind == "network" else {}
    return {
        "dataset": str(demo / "dataset"),
        **(chosen or {"baseline": {"unpaired": "phase", "separate": "nmf"}[stage]}),
    }


#: The first stands for all in the suite, since they share one shape; JAVISC_TEST_KILLS tries each.
PAIRS = [("unpaired", "baseline"), ("separate", "baseline"), ("masklets", "baseline")]
PAIRS += [("unpaired", "network"), ("separate", "network"), ("masklets", "network")]


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("warmed")
@pytest.mark.parametrize(("stage", "kind"), PAIRS if "JAVISC_TEST_KILLS" in os.environ else PAIRS[:1])
def test_both_engines_find_the_deadly_item_and_make_the_same_bytes(
    stage: str,
    kind: str,
    demo: Path,
    request: pytest.FixtureRequest,
    cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    networks = request.getfixturevalue("networks") if kind == "network" else {}
    settings = settings_of(stage, kind, demo, networks)
    keys = sorted(item["key"] for item in runs.stage_of(stage, settings).items(tmp_path))
    Path(os.environ["JAVISC_TEST_DEADLY"]).write_text(keys[1])
    monkeypatch.setattr(runs, "_WORKER", "support.deadly_prior")
    monkeypatch.setattr(
        spreading, "MAX_DEATHS", 2
    )  # each costs a process that imports all; tests of `spread` die thrice
    spread, ended = parts.spread, []
    told = Path(os.environ["JAVISC_TEST_DEADLY"] + ".processes")

    def watched(*given: Any, **named: Any) -> Iterator[Any]:
        for outcome in spread(*given, **named):
            ended.append(outcome)
            yield outcome

    monkeypatch.setattr(parts, "spread", watched)
    processes = {}
    for engine, address in (("local", None), ("ray", cluster)):
        ended.clear()
        told.unlink(missing_ok=True)
        options = RunOptions(part_size=2, workers=1, engine=engine, address=address)
        run(stage, settings, str(tmp_path / engine), options)
        # Two items killed their process twice, so did the one of them; the peer was tried, and the other part was made.
        found = [([item["key"] for _, item in one.call.arguments["items"]], one.error) for one in ended]
        assert sorted(found, key=str) == sorted(
            [(keys[:1], None), (keys[1:2], "crashed"), (keys[:2], None), (keys[2:], None)], key=str
        )
        processes[engine] = set(told.read_text().split())
        rejected = pl.read_parquet(tmp_path / engine / "rejected.parquet").filter(reason="crashed")
        assert rejected.height == 1 and "twice" in rejected["message"][0], rejected
    assert tree(tmp_path / "local") == tree(tmp_path / "ray")
    # Each deadly call costs a process; the last round, that published the part, had one of its own.
    assert all(len(found) <= 4 for found in processes.values()), processes


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips; support.deadly dies of the third."""
    return compiled.write(tmp_path_factory.mktemp("clips") / "ds", [30, 35, 40, 32], fps=25, hiss=True)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("warmed")
def test_a_clip_that_kills_encode_costs_its_own_row_and_a_run_goes_on_where_another_engine_stood(
    clips: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "make", deadly.make)
    monkeypatch.setattr(spreading, "MAX_DEATHS", 1)
    settings = [
        f"data.paths=[{clips}]",
        "data.buckets.48x64.17=[1.0,2]",
        "data.train_split=null",
        "data.valid_split=null",
    ]
    here, there = tmp_path / "here", tmp_path / "there"
    said: list[str] = []
    assert encoding.encode("audio-tiny", settings, str(here), EncodeOptions(batches=1), said.append) == 3
    rejected = pl.read_parquet(here / "rejected.parquet")
    assert rejected.select("key", "reason").rows() == [(deadly.KEY, "crashed")]
    assert "SIGSEGV" in rejected["message"][0]
    assert said[0] == "2 shards, 2 to make" and said[-1].startswith("1 clips refused: crashed")
    shutil.copytree(here, there)
    (of,) = [n for n in range(2) if pl.read_parquet(there / f".build/parts/{n:06d}.rejected.parquet").height]
    for lost in ("dataset.json", f".build/parts/{of:06d}.json", f"shards/{of:06d}.tar"):
        (there / lost).unlink()
    options = EncodeOptions(batches=1, engine="ray", address=cluster)
    assert encoding.encode("audio-tiny", settings, str(there), options, said.append) == 3
    assert "2 shards, 1 to make" in said and tree(there) == tree(here)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("warmed")
def test_a_clip_that_kills_score_costs_itself_alone_on_both_engines(
    clips: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FUNCTION", "support.deadly:score_rows")
    monkeypatch.setattr(spreading, "MAX_DEATHS", 1)
    best = str(selector.write_best(tmp_path / "best"))
    made = {}
    for engine, address in (("local", None), ("ray", cluster)):
        options = ScoreOptions(workers=1, part_size=2, engine=engine, address=address)
        told = scoring.score(str(clips), best, str(tmp_path / f"{engine}.parquet"), options=options)
        assert dict(told.reasons) == {"crashed": 1} and told.fresh == 4
        assert told.named[0].startswith(f"{deadly.KEY}: crashed") and "SIGKILL" in told.named[0]
        parts = (tmp_path / f".{engine}.parquet.score").glob("*.parquet")
        made[engine] = {path.name: path.read_bytes() for path in parts}
    assert len(made["local"]) == 2 and made["local"] == made["ray"]


def test_a_part_that_no_item_alone_kills_says_what_to_do(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from javisc.compiler.run.calls import Call, Outcome

    tried = []

    def spread(job: Any, calls: Any, **named: Any) -> Iterator[Outcome]:
        for tag, arguments, limit in calls:
            tried.append(tag.number)
            half = Call(tag, job.function, {**arguments, "items": arguments["items"][:1]}, limit)
            yield Outcome(half, False)

    monkeypatch.setattr(parts, "spread", spread)
    settings = {"dataset": str(demo / "dataset"), "baseline": "phase"}
    with pytest.raises(
        UserError, match="part 0 kills its process, none of its items alone does: give it a smaller --part-size"
    ):
        run("unpaired", settings, str(tmp_path / "pool"))
    assert tried == [0, 0]  # what killed it once may have come from outside


def test_devices_are_those_of_the_machine_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["GPU-a", "GPU-b"])
    assert devices_of("auto", None) == Devices("cuda", ["GPU-a", "GPU-b"], None)
    assert devices_of("auto", 3).gpus == ["GPU-a", "GPU-b", "GPU-a"]
    assert devices_of("cpu", None, on_cpu=4) == Devices("cpu", [], 4)
    assert devices_of("cpu", None) == Devices("cpu", [], 1) and devices_of("cpu", 3) == Devices("cpu", [], 3)
    monkeypatch.setattr(devices, "_cluster_has_gpus", lambda address: False)
    assert devices_of("auto", None, engine="ray") == Devices("cpu", [], None)
    with pytest.raises(UserError, match="--device cuda: no node of the cluster has a GPU"):
        devices_of("cuda", None, engine="ray")
    monkeypatch.setattr(devices, "visible_gpus", list)
    with pytest.raises(UserError, match="--device cuda: this machine has no CUDA device"):
        devices_of("cuda", None)
