"""Reading foreign `.pt` files without running anything they contain.

`torch.load(weights_only=True)` does the reading. Before it, the pickle inside is walked opcode by opcode against an exact list of
names, and the archive's sizes are checked; beside torch's own names only inert stand-ins are offered for the classes that
published training checkpoints mention (omegaconf nodes, numpy scalars). Neither omegaconf nor numpy unpickles anything.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from javisc.manifests.errors import UserError

#: A training checkpoint's pickle lists tensors and settings; the largest published ones stay under one megabyte.
MAX_PICKLE_BYTES = 64 << 20
MAX_FILE_BYTES = 256 << 30
MAX_NODES = 2_000_000
MAX_DEPTH = 200

_NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "BytesNode", "InterpolationResultNode")
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TORCH = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "collections OrderedDict",
} | {f"torch {kind}Storage" for kind in _STORAGES}


class StandIn:
    """An inert object in the place of a foreign one: keeps the pickled state and does nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def content(self, key: str) -> Any:
        """What the object's `__dict__` held under `key`, or None."""
        return self.state.get(key) if isinstance(self.state, dict) else None


class Config(StandIn):
    """omegaconf's DictConfig or ListConfig."""


class Node(StandIn):
    """One of omegaconf's value nodes."""


class Metadata(StandIn):
    """omegaconf's metadata of a node."""


class TypeName:
    """A type that a pickle mentions but does not make an instance of. Cannot be called."""

    def __init__(self, name: str) -> None:
        self.name = name


class Dtype(StandIn):
    """numpy's dtype, by its code."""

    def __init__(self, code: object = "", align: object = False, copy: object = True) -> None:
        self.code = code


#: numpy's scalar types that occur, as struct formats. Objects and strings are not among them.
_SCALARS = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u1": "B",
    "u4": "I",
    "u8": "Q",
    "b1": "?",
}


def _scalar(dtype: object, data: object) -> float | int | bool:
    """numpy.core.multiarray.scalar: a number from its dtype and little- or big-endian bytes."""
    code = dtype.code if isinstance(dtype, Dtype) else None
    if not isinstance(dtype, Dtype) or code not in _SCALARS or not isinstance(data, bytes):
        raise pickle.UnpicklingError(f"a numpy scalar of type {code!r} is not a number")
    order = ">" if isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",) else "<"
    return struct.unpack(order + _SCALARS[str(code)], data)[0]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """_codecs.encode: how Python 2 protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r} are not read")
    return text.encode("latin1")


def _defaultdict(*_: object) -> dict[Any, Any]:
    return {}


#: name in the pickle → what it becomes. Python 2's `__builtin__` is what protocol 2 writes.
_STAND_INS: dict[str, Any] = {
    "collections defaultdict": _defaultdict,
    "_codecs encode": _encode,
    "numpy dtype": Dtype,
    "numpy.core.multiarray scalar": _scalar,
    "numpy._core.multiarray scalar": _scalar,
    "typing Any": TypeName("Any"),
    "omegaconf.base ContainerMetadata": Metadata,
    "omegaconf.base Metadata": Metadata,
    "omegaconf.dictconfig DictConfig": Config,
    "omegaconf.listconfig ListConfig": Config,
    **{f"omegaconf.nodes {name}": type(name, (Node,), {}) for name in _NODES},
    **{
        f"builtins {name}": TypeName(name) for name in ("dict", "list", "tuple", "int", "float", "bool", "str", "bytes")
    },
}
#: Spellings that torch's unpickler translates by itself before it looks a name up.
_OLD_SPELLINGS = {"__builtin__ long": "builtins int", "__builtin__ unicode": "builtins str"}


def _check_pickle(data: bytes, source: str) -> None:
    """Refuse a pickle that names anything outside the list, or that can name things in ways that are not looked at."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
                raise UserError(
                    f"{source} uses the pickle instruction {opcode.name}: refused; save it again with torch.save"
                )
            if opcode.name == "GLOBAL":
                name = str(argument)
                name = _OLD_SPELLINGS.get(name, name.replace("__builtin__ ", "builtins "))
                if name not in _TORCH and name not in _STAND_INS:
                    raise UserError(
                        f"{source} refers to {str(argument).replace(' ', '.')!r}, which is not among the names a checkpoint may "
                        "hold: refused; if you trust it, save its tensors again as safetensors"
                    )
    except (ValueError, IndexError, UnicodeError) as error:
        raise UserError(f"{source} holds a broken pickle ({error}): get the file again") from error


def _check_archive(path: Path) -> None:
    """Sizes and names of the archive before anything of it is read into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if len(set(names)) != len(names) or len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
                raise UserError(
                    f"{path} is no checkpoint of torch.save: it needs exactly one data.pkl and no name twice"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(
                    f"{path} holds compressed entries, which torch.save never writes: refused; save it again"
                )
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path} declares more bytes than it has: get the file again")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise UserError(
                    f"{path}: its data.pkl has {pickles[0].file_size} bytes, at most {MAX_PICKLE_BYTES} are read"
                )
            _check_pickle(archive.read(pickles[0]), str(path))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, UnicodeDecodeError, struct.error) as error:
        raise UserError(
            f"{path} is no zip archive of torch.save ({error}): get it again, or save it with a torch since 1.6"
        ) from error


def read_pt(path: Path | str) -> Any:
    """What a `.pt` file of torch.save holds, as plain dicts, lists, numbers, strings and tensors (on the CPU).

    Raises UserError, before anything is executed or large memory taken, for a file that is missing, broken, or that refers to
    anything but tensors, numbers and omegaconf's settings.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a .pt checkpoint")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    _check_archive(path)
    offered: list[Any] = [(value, name.replace(" ", ".")) for name, value in _STAND_INS.items()]
    try:
        with torch.serialization.safe_globals(offered):
            # Not memory-mapped: a mapped storage may claim more bytes than its record has and read its neighbours'.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        # Whatever a hostile pickle makes the unpickler stumble over, it is the file that is wrong.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0][:200]
        raise UserError(f"{path} cannot be read as tensors and settings ({reason}): get the file again") from error
    return _Plain(str(path)).value(loaded)


class _Plain:
    """Turns what was unpickled into plain values, counting: shared references can spell out more nodes than there are bytes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.nodes = 0

    def value(self, value: Any, depth: int = 0) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise UserError(f"{self.source}: its settings nest too deep or are too many: refused")
        match value:
            case Tensor() | str() | bytes() | bool() | int() | float() | None:
                return value
            case Config():
                return self.value(value.content("_content"), depth + 1)
            case Node():
                return self.value(value.content("_val"), depth + 1)
            case OrderedDict() | dict():
                return {self._key(key): self.value(item, depth + 1) for key, item in value.items()}
            case list():
                return [self.value(item, depth + 1) for item in value]
            case tuple():
                return tuple(self.value(item, depth + 1) for item in value)
            case TypeName():
                return value.name
        raise UserError(f"{self.source} holds a {type(value).__name__} where a value was expected: refused")

    def _key(self, key: object) -> str | int | float | bool | bytes | None:
        if isinstance(key, str | int | float | bool | bytes) or key is None:
            return key
        raise UserError(f"{self.source} has a {type(key).__name__} as a key: refused")


def state_dict_of(loaded: Any, source: str) -> dict[str, Tensor]:
    """The state dict in what `read_pt` gave: the value itself, or its entry `model` or `state_dict`; else a UserError."""
    for candidate in (loaded, *(loaded.get(key) for key in ("model", "state_dict") if isinstance(loaded, Mapping))):
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(value, Tensor) for value in candidate.values())
        ):
            return {str(key): value for key, value in candidate.items()}
    raise UserError(f"{source} holds no state dict, neither by itself nor under 'model' or 'state_dict'")
