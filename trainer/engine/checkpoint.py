"""Checkpoints of a run: written by DCP in the background, each complete or not there, loadable on another number of processes.

RUN/checkpoints/step-00001200/   DCP's files: tensors alone      state.json   everything that is no tensor
                                 complete.json                   written last: without it the folder does not count
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.distributed import World

_log = logging.getLogger(__name__)
MARKER = "complete.json"
STATE = "state.json"
#: The folder of a run that holds its checkpoints.
CHECKPOINTS = "checkpoints"
#: The state's entry that tells the digest of what rests, which the checkpoint does not hold; "" if nothing does.
FROZEN = "frozen"
# DCP's writer warns of what DCP's writer itself calls, once a run; nobody who trains can do anything about it.
warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)


_INDEX_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_INDEX_NAMES = (
    "torch Size",
    "torch.serialization _get_layout",
    "collections OrderedDict",
    "pathlib PosixPath",
    "pathlib Path",
)


class _TensorIndex(pickle.Unpickler):
    """Reads DCP's index of tensors, which is a pickle, and builds nothing but it."""

    def find_class(self, module: str, name: str) -> Any:
        known = module in _INDEX_MODULES and "." not in name and name.lstrip("_")[:1].isupper()
        known = known or f"{module} {name}" in _INDEX_NAMES
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")


class _Reader(FileSystemReader):
    """DCP's reader, with the index read by the narrow unpickler."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _TensorIndex(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        assert metadata.storage_meta is not None
        metadata.storage_meta.load_id = self.load_id
        return metadata


def generators() -> dict[str, Tensor]:
    """The state of every random generator of this process, as bytes in tensors."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    numpy["state"]["key"] = [int(word) for word in numpy["state"]["key"]]
    words = json.dumps({"python": python, "numpy": numpy}).encode()
    state = {"torch": torch.get_rng_state(), "others": torch.frombuffer(bytearray(words), dtype=torch.uint8)}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_generators(state: dict[str, Tensor]) -> None:
    """Set every random generator of this process to a state of `generators`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    words = json.loads(bytes(state["others"].tolist()))
    version, numbers, gauss = words["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(words["numpy"])


class Damaged(UserError):
    """A checkpoint that cannot be read, though it may be of this run: an older one may do."""


def steps(folder: Path) -> list[Path]:
    """What lies under a step's name in a run's folder of checkpoints, oldest first; a copy of somebody's has another name."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,18}", path.name))


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder of checkpoints, oldest first."""
    return [path for path in steps(folder) if (path / MARKER).exists()]


def at_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in a run's folder of checkpoints."""
    return folder / f"step-{step:08d}"


def find(run: Path, begin: str) -> Path:
    """The checkpoint that `--from` names: a step of the run, a checkpoint's folder, or the newest of another run.

    Raises UserError that names what there is.
    """
    if begin.isdecimal():
        path = at_step(run / CHECKPOINTS, int(begin))
    else:
        path = Path(begin)
        if not (path / MARKER).is_file() and (there := complete(path / CHECKPOINTS)):
            return there[-1]
    if (path / MARKER).is_file():
        return path
    own = ", ".join(str(int(path.name.removeprefix("step-"))) for path in complete(run / CHECKPOINTS))
    has = f"has the steps {own}" if own else "has none"
    raise UserError(f"--from {begin}: no complete checkpoint is there; {run} {has}")


def complaint(path: Path) -> str:
    """What is wrong with a complete checkpoint's files, "" if nothing is: each must be there in its size."""
    try:
        sizes = json.loads((path / MARKER).read_text(encoding="utf-8"))["files"]
        for name, size in sizes.items():
            if Path(name).name != name:
                return f"{MARKER} names {name!r}"
            if not (path / name).is_file():
                return f"{name} is missing"
            if (found := (path / name).stat().st_size) != size:
                return f"{name} has {found} bytes, {size} were written"
        if not isinstance(json.loads((path / STATE).read_text(encoding="utf-8")), dict):
            return f"{STATE} holds no mapping"
        index = _Reader(path).read_metadata().state_dict_metadata
        told = sum(_bytes(entry) for entry in index.values())
        if told > (there := sum(sizes.values())):  # what is read takes as much memory as the index says
            return f".metadata tells of tensors of {told} bytes, the files have {there}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        return str(error)
    return ""


def _bytes(entry: Any) -> int:
    """The size of a tensor by DCP's index. Raises ValueError if it cannot be."""
    if not isinstance(entry, TensorStorageMetadata):
        return 0
    size = [int(length) for length in entry.size]
    if min(size, default=0) < 0:
        raise ValueError(f"a tensor of size {size} in the index")
    return math.prod(size) * entry.properties.dtype.itemsize


class Checkpoints:
    """The checkpoints of one run folder. All methods are called by all processes together."""

    def __init__(self, folder: Path, world: World, keep: int = 3) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._writing: tuple[Path, Future[Any]] | None = None
        self._stager: DefaultStager | None = None

    def path(self, step: int) -> Path:
        return at_step(self.folder, step)

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete(self.folder)

    def newest(self) -> Path | None:
        """The newest complete checkpoint by the first process's view, which all follow."""
        steps = [int(path.name.removeprefix("step-")) for path in self.complete()] if self.world.first else []
        step = torch.tensor([steps[-1] if steps else -1])
        dist.broadcast(step, 0, group=self.world.control)
        return None if step.item() < 0 else self.path(int(step.item()))

    def discard_incomplete(self) -> None:
        """Remove what a killed process left half written."""
        if self.world.first:
            for path in steps(self.folder):
                if not (path / MARKER).exists():
                    shutil.rmtree(path)
        dist.barrier(self.world.control)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, wait: bool = False) -> None:
        """Start writing; `tensors` may change afterwards. A save still running is waited for first."""
        self.finish()
        path = self.path(step)
        if (path / MARKER).exists():
            return
        if self.world.first:
            with published(path / STATE) as temporary:
                temporary.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        mine = {f"random.{self.world.rank}.{name}": value for name, value in generators().items()}
        # The copy is made here: tensors that live on the CPU would otherwise change while they are written.
        copies = {
            name: value.detach().clone() if value.device.type == "cpu" else value.detach()
            for name, value in tensors.items()
        }
        future = async_save(
            {**copies, **mine},
            storage_writer=FileSystemWriter(path, overwrite=True),
            process_group=self.world.saving,
            async_stager=self._pinned(),
        )
        assert isinstance(future, Future)
        self._writing = (path, future)
        if wait:
            self.finish()

    def _pinned(self) -> DefaultStager | None:
        """On a GPU: copies into pinned memory, which the next save takes again. It is as large as this process's share."""
        if self._stager is None and self.world.device.type == "cuda":
            pinned = StagingOptions(
                use_pinned_memory=True, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=True
            )
            self._stager = DefaultStager(pinned)
        return self._stager

    def poll(self) -> None:
        """Publish the save that runs, if it is done."""
        if self._writing is not None and self._writing[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the save that runs and publish it. Raises what went wrong with it."""
        if self._writing is None:
            return
        path, future = self._writing
        self._writing = None
        future.result()
        if self.world.first:  # the coordinator's future ends after every process has written and flushed
            with published(path / MARKER) as temporary:
                sizes = {
                    file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.name != temporary.name
                }
                temporary.write_text(json.dumps({"world": self.world.size, "files": sizes}) + "\n", encoding="utf-8")
            for old in self.complete()[: -self.keep]:
                # The marker goes first: a folder that is half removed must not count.
                (old / MARKER).unlink()
                shutil.rmtree(old)

    def resume(
        self, tensors: dict[str, Tensor], frozen: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Any], Path]:
        """Load the newest checkpoint that can be read; a damaged one is told of and set aside. Raises UserError if none can."""
        paths: list[Any] = [self.complete()[::-1]]
        dist.broadcast_object_list(paths, 0, group=self.world.control)
        for path in paths[0]:
            try:
                state = self.load(path, tensors, frozen)
            except Damaged as error:
                if self.world.first:
                    print(f"warning: {error}; trying an older one", file=sys.stderr, flush=True)
                continue
            self.set_aside(path)
            return state, path
        raise UserError(f"{self.folder}: none of its {len(paths[0])} checkpoints can be read; give another with --from")

    def set_aside(self, path: Path) -> None:
        """Move complete checkpoints that are newer than `path` to `aside/`, where they do not count: the run takes those steps
        again."""
        if self.world.first:
            for newer in [other for other in self.complete() if other.name > path.name]:
                target = self.folder / "aside" / newer.name
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                newer.rename(target)
                print(f"{newer} is set aside: {target}", file=sys.stderr, flush=True)
        dist.barrier(self.world.control)

    def load(
        self, path: Path, tensors: dict[str, Tensor], frozen: Mapping[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """Fill `tensors` in place and return the state; `frozen` too, if the checkpoint is so old that it holds those itself (its
        state tells no digest of them). Raises UserError if the checkpoint is of another model, Damaged if it cannot be read: on
        every process alike, then."""
        wrong: list[Any] = [complaint(path) if self.world.first else None]
        dist.broadcast_object_list(wrong, 0, group=self.world.control)
        if wrong[0]:
            raise Damaged(f"{path} is damaged ({wrong[0]})")
        reader = _Reader(path)
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        if FROZEN not in state:
            tensors = {**tensors, **(frozen or {})}
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        saved = reader.read_metadata().state_dict_metadata
        prefix = f"random.{self.world.rank}."
        mine = {name: value for name, value in generators().items() if prefix + name in saved}
        _check_same(path, tensors, saved)
        for name, value in mine.items():  # the text of Python's and numpy's state has no fixed length
            index = saved[prefix + name]
            size = tuple(index.size) if isinstance(index, TensorStorageMetadata) else (0,)
            mine[name] = torch.empty(size, dtype=value.dtype)
        wanted = {**tensors, **{prefix + name: value for name, value in mine.items()}}
        try:
            load(wanted, storage_reader=reader, process_group=self.world.control)
        except (CheckpointException, ValueError, RuntimeError) as error:
            first = str(error).strip().split("\n")[-1]
            raise Damaged(f"{path} is damaged ({first})") from error
        if mine:
            restore_generators(mine)
        if marker["world"] != self.world.size:
            _log.info("the checkpoint is of %d processes, this run has %d", marker["world"], self.world.size)
        return state


def _check_same(path: Path, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    """Raise UserError unless a checkpoint holds just these tensors, in these sizes."""
    if missing := sorted(name for name in tensors if name not in saved):
        raise UserError(f"{path} lacks {missing[0]} and {len(missing) - 1} more: it is of another model or optimizer")
    if unused := sorted(name for name in saved if name not in tensors and not name.startswith("random.")):
        raise UserError(
            f"{path} holds {unused[0]} and {len(unused) - 1} more that this run has not: it is of another model"
        )
    for name, value in tensors.items():
        size = getattr(saved[name], "size", None)
        if size is None or tuple(size) != tuple(value.shape):
            raise UserError(
                f"{path} does not fit: {name} is {list(size or ())} in it, here {list(value.shape)}; it is of another model"
            )


def read_tensors(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names are wanted, whole, in one process and without a run. Raises Damaged."""
    if wrong := complaint(path):
        raise Damaged(f"{path} is damaged ({wrong}): give an older one with --from")
    reader = _Reader(path)
    index = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in index.items()
        if isinstance(entry, TensorStorageMetadata) and wanted(name)
    }
    try:
        with warnings.catch_warnings():  # that there are no processes: there are none
            warnings.simplefilter("ignore", UserWarning)
            load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, ValueError, RuntimeError) as error:
        raise Damaged(f"{path} is damaged ({str(error).strip().splitlines()[-1]}): give an older one") from error
    return tensors
