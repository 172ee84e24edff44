"""What javisc whole does on this machine, a JSON line a cell: the second half of `first_contact.sh`, for sounding clips.

    python -P benchmarks/contact.py DATASET --budget 120 --results contact.jsonl

load: batches of the loader's path on the device (NVDEC and DALI where there are), their checksums on an idle device and beside a
busy stream, which must be the same bits. step: a training step of each family at the size of its tiny recipe, and how often the
host waited for the device in it. encode, score: the commands, timed whole. What cannot run is "not measured", with the reason.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernels import Log, Record, device

#: A recipe of each family, and what makes it start from nothing.
FAMILIES = {
    "jav": ("jav-tiny", "data.valid_split=null"),
    "audio": ("audio-tiny", "data.valid_split=null"),
    "prior": ("prior-tiny", "data.valid_split=null"),
    "synchformer": (
        "synchformer-tiny",
        "data.valid_split=null",
        "model.train_extractors=true",
        "data.feature_cache_mb=0",
    ),
    "synchformer-avclip": ("synchformer-avclip-tiny", "data.valid_split=null"),
    "sync-audio": ("sync-audio-tiny",),
}
STAGES = ("load", *(f"step/{family}" for family in FAMILIES), "encode", "score")
BATCHES = 4


@contextmanager
def waits() -> Iterator[list[str]]:
    """The places where the host waited for the device, as PyTorch warns of them; empty without one."""
    found: list[str] = []
    if not torch.cuda.is_available():
        yield found
        return
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, kind, file, line, *_: (
            found.append(f"{Path(file).name}:{line}") if "synchronizing" in str(message) else None
        )
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def checksums(dataset: str, busy: bool) -> tuple[list[int], float]:
    """CRC-32 of the first batches' pictures and sound, and seconds; busy: while products fill a stream of their own."""
    from javisc.trainer.data.bytes.graph import GraphOptions
    from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
    from javisc.trainer.data.index.assign import single_bucket
    from javisc.trainer.data.index.catalog import Catalog
    from javisc.trainer.data.index.sampler import Sampler, SamplerOptions

    cuda = torch.cuda.is_available()
    size = (17, 240, 426, 4) if cuda else (17, 48, 64, 2)
    sampler = Sampler(Catalog.open([dataset]), single_bucket(*size), SamplerOptions(remainder="drop"))
    graph = GraphOptions(device="gpu" if cuda else "cpu", threads=4 if cuda else 1, max_batch_size=size[3])
    found: list[int] = []
    side = torch.randn(4096, 4096, device=device(), dtype=torch.bfloat16) if busy and cuda else None
    stream = torch.cuda.Stream() if side is not None else None
    started = time.perf_counter()
    with Loader(sampler, LoaderOptions(threads=graph.threads, graph=graph)) as loader:
        for loaded in loader:
            if stream is not None and side is not None:
                with torch.cuda.stream(stream):
                    for _ in range(50):
                        side @ side
            for tensor in (loaded.video, loaded.audio):
                found.append(zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes()))
            if len(found) >= 2 * BATCHES:
                break
    return found, time.perf_counter() - started


def load(dataset: str) -> Record:
    idle, seconds = checksums(dataset, False)
    busy, _ = checksums(dataset, True)
    assert idle, "the loader gave no batch"
    return {"batches": len(idle) // 2, "batches/s": len(idle) / 2 / seconds, "checksums": idle, "same": idle == busy}


def step(dataset: str, family: str) -> Record:
    """The second training step: the first one compiles and fills caches."""
    from javisc.trainer.engine.distributed import autocast
    from javisc.trainer.tasks import registry

    name, *changes = FAMILIES[family]
    recipe, task = registry.load(name, [*changes, f"data.paths=[{dataset}]"])
    place = device()
    torch.manual_seed(0)
    model = task.build().to(place).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    source = task.source(0, 1)
    record: Record = {}
    try:
        batch = next(iter(source))
        for _ in range(2):
            with waits() as waited:
                started = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                with autocast(model, recipe.parallel, place):
                    losses = task.loss(model, batch, place)
                (losses if isinstance(losses, torch.Tensor) else losses["loss"]).backward()
                optimizer.step()
            if place.type == "cuda":
                torch.cuda.synchronize()
            record = {"seconds a step": time.perf_counter() - started, "host waits": len(waited), "where": waited[:20]}
    finally:
        source.close()
    return record


def command(*arguments: str) -> float:
    """Seconds of a javisc command; raises with its last words if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "javisc", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-250:])
    return time.perf_counter() - started


def encode(dataset: str) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        changes = ("--set", "data.valid_split=null")
        return {"seconds": command("encode", dataset, "--recipe", "audio-tiny", "--out", f"{folder}/latents", *changes)}


def score(dataset: str) -> Record:
    """With the weights of one step: how fast, not how well."""
    with tempfile.TemporaryDirectory() as folder:
        name, *changes = FAMILIES["synchformer"]
        command("train", name, "--data", dataset, "--run", f"{folder}/run", "run.steps=1", *changes)
        taken = command("score", dataset, "--checkpoint", f"{folder}/run", "--out", f"{folder}/scored.parquet")
        return {"seconds": taken}


def stage(log: Log, name: str, dataset: str) -> None:
    kind, _, rest = name.partition("/")
    runs = {"load": load, "encode": encode, "score": score}
    log.measure(name, lambda: step(dataset, rest) if kind == "step" else runs[kind](dataset))


def main() -> int:
    """Every stage in a process of its own, within the budget; 1 if a batch's bits depended on what ran beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--budget", type=float, default=120, metavar="SECONDS")
    parser.add_argument(
        "--results", type=Path, default=Path("contact.jsonl"), metavar="FILE", help="measured cells are kept"
    )
    parser.add_argument("--only", nargs="+", choices=STAGES)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage(Log(options.results), options.stage, options.dataset)
        return 0
    end = time.monotonic() + options.budget
    for name in options.only or STAGES:
        if name in Log(options.results).cells:
            continue
        left, ended = end - time.monotonic(), ""
        if left < 1:
            ended = "the budget is spent"
        else:
            command_ = [sys.executable, "-P", "-W", "ignore", __file__, options.dataset, "--stage", name]
            try:
                done = subprocess.run(
                    [*command_, "--results", str(options.results)],
                    timeout=left,
                    stderr=subprocess.PIPE,
                    text=True,
                    check=False,
                )
                ended = " ".join(done.stderr.split())[-300:] if done.returncode else ""
            except subprocess.TimeoutExpired:
                ended = "stopped: the budget is spent"
        if ended:
            Log(options.results).write({"cell": name, "not measured": ended})
    cells = Log(options.results).cells
    for name in STAGES:
        if name in cells:
            print({k: v for k, v in cells[name].items() if k not in ("checksums", "where")}, flush=True)
    return int(cells.get("load", {}).get("same") is False)


if __name__ == "__main__":
    sys.exit(main())
