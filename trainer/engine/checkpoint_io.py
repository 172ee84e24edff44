"""Reading foreign `.pt` files without running anything they contain.

`torch.load(weights_only=True)` does the reading. It calls what allocates (`bytearray(1 << 40)`, `torch.FloatTensor(1 << 40)`),
and inflate compressed entries, so before it the archive's sizes are checked, and its pickle's names against an exact list.
For classes that published training checkpoints mention (omegaconf's nodes, numpy's scalars) it is offered inert stand-ins.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
#: Of the names that torch takes by itself, those that allocate no more than the file holds.
_TORCH = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "collections OrderedDict",
    "_codecs encode",
} | {f"torch {kind}Storage" for kind in _STORAGES}
_NUMBERS = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}


class StandIn:
    """An inert object in the place of a foreign one. `inside`: the key of its pickled state that holds its value."""

    inside = ""
    made: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *made: Any) -> None:
        self.made = made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def value(self) -> Any:
        """What stands in the state under `inside`, or None."""
        return self.state.get(self.inside) if isinstance(self.state, dict) else None


def _scalar(dtype: Any, data: Any) -> float | int | bool:
    """numpy.core.multiarray.scalar: a number from its dtype and little- or big-endian bytes."""
    code = dtype.made[0] if isinstance(dtype, StandIn) and dtype.made else None
    if code not in _NUMBERS or not isinstance(data, bytes):
        raise ValueError(f"a numpy scalar of type {code!r} is not a number")
    order = ">" if isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",) else "<"
    (number,) = np.frombuffer(data, order + code).tolist()
    return number  # type: ignore[no-any-return]


#: name in the pickle → what it becomes; a type that is only mentioned becomes its name, which cannot be called.
_STAND_INS: dict[str, Any] = {
    "collections defaultdict": lambda *_: {},
    "numpy dtype": type("Dtype", (StandIn,), {}),
    "numpy.core.multiarray scalar": _scalar,
    "numpy._core.multiarray scalar": _scalar,
    "typing Any": "Any",
    "omegaconf.base ContainerMetadata": type("Metadata", (StandIn,), {}),
    "omegaconf.base Metadata": type("Metadata", (StandIn,), {}),
    "omegaconf.dictconfig DictConfig": type("Config", (StandIn,), {"inside": "_content"}),
    "omegaconf.listconfig ListConfig": type("Config", (StandIn,), {"inside": "_content"}),
    **{f"omegaconf.nodes {name}": type(name, (StandIn,), {"inside": "_val"}) for name in _NODES},
    **{f"builtins {name}": name for name in ("dict", "list", "tuple", "int", "float", "bool", "str", "bytes")},
}
#: Python 2's spellings, which torch's unpickler translates before it looks a name up.
_OLD = {"__builtin__ long": "builtins int", "__builtin__ unicode": "builtins str"}


def _check_names(data: bytes, source: str) -> None:
    """Refuse a pickle that names anything outside the list. No other instruction of torch's unpickler names things."""
    try:
        named = [str(argument) for opcode, argument, _ in pickletools.genops(data) if opcode.name == "GLOBAL"]
    except (ValueError, IndexError, UnicodeError) as error:
        raise UserError(f"{source} holds a broken pickle ({error}): get the file again") from error
    for name in named:
        if _OLD.get(name, name.replace("__builtin__ ", "builtins ")) not in _TORCH | _STAND_INS.keys():
            raise UserError(
                f"{source} refers to {name.replace(' ', '.')!r}, which is not among the names a checkpoint may hold: refused; if "
                "you trust it, save its tensors again as safetensors"
            )


def _check_archive(path: Path) -> None:
    """Sizes and names of the archive before anything of it is read into memory, then the names in its pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if len({entry.filename for entry in entries}) != len(entries) or [
                entry.filename.partition("/")[2] for entry in pickles
            ] != ["data.pkl"]:
                raise UserError(f"{path} is none of torch.save's: it needs exactly one data.pkl and no name twice")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(f"{path} holds compressed entries, which torch.save never writes: save it again")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path} declares more bytes than it has: get the file again")
            if (size := pickles[0].file_size) > MAX_PICKLE_BYTES:
                raise UserError(f"{path}: its data.pkl has {size} bytes, at most {MAX_PICKLE_BYTES} are read")
            _check_names(archive.read(pickles[0]), str(path))
    except UserError:
        raise
    except (
        Exception
    ) as error:  # whatever reading a broken or hostile archive stumbles over, it is the file that is wrong
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
    except (
        Exception
    ) as error:  # whatever a hostile pickle makes the unpickler stumble over, it is the file that is wrong
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0][:200]
        raise UserError(f"{path} cannot be read as tensors and settings ({reason}): get the file again") from error
    return _plain(loaded, str(path), [0])


def _plain(value: Any, source: str, nodes: list[int], depth: int = 0) -> Any:
    """What was unpickled as plain values, counted: shared references can spell out more nodes than there are bytes."""
    nodes[0] += 1
    if nodes[0] > MAX_NODES or depth > MAX_DEPTH:
        raise UserError(f"{source}: its settings nest too deep or are too many: refused")
    match value:
        case Tensor() | str() | bytes() | bool() | int() | float() | None:
            return value
        case StandIn() if value.inside:
            return _plain(value.value, source, nodes, depth + 1)
        case dict() if all(isinstance(key, str | bytes | int | float | None) for key in value):
            return {key: _plain(item, source, nodes, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return (list if isinstance(value, list) else tuple)(
                _plain(item, source, nodes, depth + 1) for item in value
            )
    raise UserError(f"{source} holds a {type(value).__name__} where a value was expected, or as a key: refused")


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
