"""Checkpoints of a run: written by DCP in the background, each complete or not there, loadable on another number of processes.

RUN/checkpoints/step-00001200/   DCP's files: tensors alone      state.json   everything that is no tensor
                                 complete.json                   written last: without it the folder does not count
"""

from __future__ import annotations

import json
import logging
import pickle
import random
import shutil
import warnings
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
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.distributed import World

_log = logging.getLogger(__name__)
MARKER = "complete.json"
STATE = "state.json"
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


class Checkpoints:
    """The checkpoints of one run folder. All methods are called by all processes together."""

    def __init__(self, folder: Path, world: World, keep: int = 3) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._writing: tuple[Path, Future[Any]] | None = None

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"step-*/{MARKER}"))

    def newest(self) -> Path | None:
        """The newest complete checkpoint by the first process's view, which all follow."""
        steps = [int(path.name.removeprefix("step-")) for path in self.complete()] if self.world.first else []
        step = torch.tensor([steps[-1] if steps else -1])
        dist.broadcast(step, 0, group=self.world.control)
        return None if step.item() < 0 else self.path(int(step.item()))

    def discard_incomplete(self) -> None:
        """Remove what a killed process left half written."""
        if self.world.first:
            for path in self.folder.glob("step-*"):
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
        )
        assert isinstance(future, Future)
        self._writing = (path, future)
        if wait:
            self.finish()

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
                sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.suffix == ".distcp"}
                temporary.write_text(json.dumps({"world": self.world.size, "files": sizes}) + "\n", encoding="utf-8")
            for old in self.complete()[: -self.keep]:
                # The marker goes first: a folder that is half removed must not count.
                (old / MARKER).unlink()
                shutil.rmtree(old)

    def load(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Fill `tensors` in place and return the state. Raises UserError if the checkpoint is of another model."""
        reader = _Reader(path)
        try:
            state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
            marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
            saved = reader.read_metadata().state_dict_metadata
        except (OSError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is no checkpoint of javisc ({error}): resume from another") from error
        prefix = f"random.{self.world.rank}."
        mine = {name: value for name, value in generators().items() if prefix + name in saved}
        if missing := sorted(name for name in tensors if name not in saved):
            raise UserError(
                f"{path} lacks {missing[0]} and {len(missing) - 1} more: it is of another model or optimizer"
            )
        if unused := sorted(name for name in saved if name not in tensors and not name.startswith("random.")):
            raise UserError(
                f"{path} holds {unused[0]} and {len(unused) - 1} more that this run has not: it is of another model"
            )
        for name, value in mine.items():  # the text of Python's and numpy's state has no fixed length
            index = saved[prefix + name]
            size = tuple(index.size) if isinstance(index, TensorStorageMetadata) else (0,)
            mine[name] = torch.empty(size, dtype=value.dtype)
        wanted = {**tensors, **{prefix + name: value for name, value in mine.items()}}
        try:
            load(wanted, storage_reader=reader, process_group=self.world.control)
        except (CheckpointException, ValueError, RuntimeError) as error:
            first = str(error).strip().split("\n")[-1]
            raise UserError(f"{path} does not load ({first}): it is of another model, or damaged") from error
        if mine:
            restore_generators(mine)
        if marker["world"] != self.world.size:
            _log.info("the checkpoint is of %d processes, this run has %d", marker["world"], self.world.size)
        return state
