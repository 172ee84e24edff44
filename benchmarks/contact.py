"""What javisc whole does on this machine, a function a stage of `kernels.py`: it needs what `pip install 'javisc[train]'` brings.

load: batches of the loader's path on the device (NVDEC and DALI where there are), their checksums on an idle device and beside a
busy stream, which must be the same bits. step: a training step of each family at the size of its tiny recipe, and how often the
host waited for the device in it. encode, score: the commands, timed whole. programs: other benchmarks and the tests that need a
GPU. Without a dataset one is made of clips that `javisc demo` draws; the sync families always take clips of their own, of 25
frames a second. What is made lies beside the results until all is measured: a call that was killed leaves it to the next.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cells import Log, Record
from checkout import ROOT

#: A recipe of each family, the dataset it takes, and what makes it start from nothing.
FAMILIES = {
    "jav": ("jav-tiny", "whole", "data.valid_split=null"),
    "audio": ("audio-tiny", "whole", "data.valid_split=null"),
    "prior": ("prior-tiny", "whole", "data.valid_split=null"),
    "sync": ("sync-demo", "sync", "data.batch_size=4"),
    "synchformer": (
        *("synchformer-tiny", "sync", "data.batch_size=4"),
        *("model.train_extractors=true", "data.feature_cache_mb=0"),
    ),
    "synchformer-avclip": ("synchformer-avclip-tiny", "sync", "data.batch_size=4"),
    "sync-audio": ("sync-audio-tiny", "sync", "data.batch_size=4", "model.classes=2"),
}
BATCHES = 4


@contextmanager
def waits() -> Iterator[list[str]]:
    """The places where the host waited for the device, as PyTorch warns of them; empty without one."""
    import torch

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
    import torch

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
    side = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16) if busy and cuda else None
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
    import torch

    from javisc.trainer.engine.distributed import autocast
    from javisc.trainer.tasks import registry

    name, _, *changes = FAMILIES[family]
    recipe, task = registry.load(name, [*changes, f"data.paths=[{dataset}]"])
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    """Seconds of a javisc command, in this process, which has imported what commands import; raises what it raises."""
    from javisc.cli import cli

    started = time.perf_counter()
    try:
        code = cli.main(list(arguments), standalone_mode=False, prog_name="javisc")
    except SystemExit as stopped:
        code = stopped.code
    if code:
        raise RuntimeError(f"javisc {arguments[0]} ended with {code}")
    return time.perf_counter() - started


def encode(dataset: str) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        changes = ("--set", "data.valid_split=null")
        return {"took": command("encode", dataset, "--recipe", "audio-tiny", "--out", f"{folder}/latents", *changes)}


def score(dataset: str) -> Record:
    """With the weights of one step: how fast, not how well."""
    with tempfile.TemporaryDirectory() as folder:
        name, _, *changes = FAMILIES["synchformer"]
        command("train", name, "--data", dataset, "--run", f"{folder}/run", "run.steps=1", *changes)
        taken = command("score", dataset, "--checkpoint", f"{folder}/run/best", "--out", f"{folder}/scored.parquet")
        return {"took": taken}


#: Makes clips of 25 frames a second with labels, which the sync families take: of FOLDER, CLIPS.
SYNC = """
import sys
from pathlib import Path
import polars as pl
from javisc.compiler.demo.sync import make_datasets
made = make_datasets(Path(sys.argv[1]), clips=int(sys.argv[2]), test_clips=1, say=print)
table = made.learn / "manifest.parquet"
pl.read_parquet(table).with_columns(label=(pl.int_range(pl.len()) % 2).cast(pl.String)).write_parquet(table)
"""


def made(kind: str, folder: str, tiny: bool) -> Record:
    """Draw clips and compile them into FOLDER/KIND/…: "whole", as `javisc demo` does, or "sync". What an end left there goes."""
    started = time.perf_counter()
    shutil.rmtree(Path(folder, kind), ignore_errors=True)
    if kind == "whole":
        clips, seconds = ("4", "2") if tiny else ("32", "4")
        call = ("-m", "javisc", "demo", "--out", f"{folder}/whole", "--clips", clips, "--seconds", seconds)
        call += ("--train", "no")
    else:
        call = ("-c", SYNC, f"{folder}/sync", "7" if tiny else "48")
    done = subprocess.run([sys.executable, "-P", *call], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"not measured": " ".join(done.stderr.split())[-250:]}
    return {"made in": time.perf_counter() - started}


MADE = {"whole": "whole/dataset", "sync": "sync/learn"}


#: Other programs: their arguments to Python, with words in capitals to be filled in.
PROGRAMS = {
    "tests that need a GPU": (
        *("-m", "pytest", "-c", f"{ROOT}/pyproject.toml", "--rootdir", f"{ROOT}", "-q", "-p", "no:cacheprovider"),
        *("-m", "gpu", "FILES"),
    ),
    "step of the joint DiT beside plain torch": (
        *["benchmarks/train.py", "--model", "dit", "--repeats"],
        "REPEATS",
        "TINY",
    ),
    "step of the sync model beside plain torch": (
        *["benchmarks/train.py", "--model", "sync", "--repeats"],
        "REPEATS",
        "TINY",
    ),
    "loading beside others": ("benchmarks/load.py", "DATASET"),
}


def program(name: str, dataset: str, tiny: bool) -> Record:
    """Seconds of a program and the end of what it printed; raises if it fails."""
    marked = [str(f) for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in f.read_text()]
    filled = {
        "DATASET": [dataset],
        "REPEATS": ["1" if tiny else "3"],
        "TINY": ["--tiny"] if tiny else [],
        "FILES": marked,
    }
    arguments = [a for argument in PROGRAMS[name] for a in filled.get(argument, [argument])]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    words = done.stdout.strip()[-4000:]
    if done.returncode and not (done.returncode == 5 and "pytest" in arguments):  # 5: no test was wanted
        raise RuntimeError(f"ended with {done.returncode}: {' '.join(words.split())[-250:]}")
    return {"took": time.perf_counter() - started, "printed": words}


def wants(name: str) -> str:
    """Which dataset a stage takes: "whole", "sync", or none, ""."""
    kind, _, rest = name.partition("/")
    if kind == "step":
        return FAMILIES[rest][1]
    if kind == "program":
        return "whole" if "DATASET" in PROGRAMS[rest] else ""
    return "sync" if kind == "score" else "whole"


def stage(log: Log, tiny: bool, name: str, dataset: str, folder: str, caller: str) -> None:
    """One of load, step/FAMILY, encode, score, program/NAME; on the dataset given, else on one that is made in `folder` first,
    unless this call or one before it has. caller: another for every call, so that each tries once what failed."""
    wanted = wants(name)
    if name in log:
        return
    if wanted == "sync" or (wanted and not dataset):
        dataset, place = f"{folder}/{MADE[wanted]}", f"dataset/{wanted}"
        before = log.cells.get(place, {})
        if before.get("caller") != caller and ("not measured" in before or not Path(dataset).is_dir()):
            log.cells.pop(place, None)
        cell = log.measure(place, lambda: made(wanted, folder, tiny) | {"caller": caller})
        if "not measured" in cell:
            log.measure(
                name, lambda: {"not measured": f"there is no dataset: {cell['not measured']}"[:300], "again": True}
            )
            return
    kind, _, rest = name.partition("/")
    runs = {"load": load, "encode": encode, "score": score}
    if kind == "step":
        log.measure(name, lambda: step(dataset, rest))
    elif kind == "program":
        log.measure(name, lambda: program(rest, dataset, tiny))
    else:
        log.measure(name, lambda: runs[kind](dataset))
