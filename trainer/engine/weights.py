"""Weight files: reading them without executing anything, loading them strictly, writing them where others can read them.

Read: one `.safetensors` file, a folder with `model.safetensors`, a sharded folder with an index, or torch's own `.pt`
and `.bin` through `checkpoint_io`. Written: safetensors, sharded with an index when large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.manifests.files import kept_folder, published
from javisc.trainer.engine.checkpoint_io import read_pt, state_dict_of

#: An index may be hostile: larger ones are refused unread.
_MAX_INDEX_BYTES = 64 << 20
_MAX_CONFIG_BYTES = 1 << 20
_SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors", "model.pt", "pytorch_model.bin")
_INDEXED = (
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file or folder by name, on the CPU.

    Raises UserError if nothing is there, if a file does not parse, or if an index names a file outside its folder.
    """
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise UserError(f"{path} is not there; give a folder with model.safetensors (or its index), or a weight file")
    for name in _SINGLE:
        if (path / name).is_file():
            return _read_file(path / name)
    for name in _INDEXED:
        if (path / name).is_file():
            return _read_shards(path / name)
    raise UserError(f"{path} holds no weights; looked for {', '.join(_SINGLE + _INDEXED)}")


def run_weights(path: Path) -> Path:
    """Where the weights of `path` lie: in it, or, if it is the folder of a run, in its `best`, else its `last`."""
    named = [path / name for name in ("best", "last")]
    return next((place for folder in named for place in (folder, kept_folder(folder)) if place.is_dir()), path)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
    except (SafetensorError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path} is no safetensors file ({first}); download it again") from None
    return state_dict_of(read_pt(path), str(path))


def _read_shards(index: Path) -> dict[str, Tensor]:
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise UserError(f"{index} has {index.stat().st_size} bytes; an index has at most {_MAX_INDEX_BYTES}")
    try:
        weight_map: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of shards: {error}") from None
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names the shard {name!r}; shards must lie beside their index")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name} is missing, {index.name} names it; download the folder again")
        tensors |= _read_file(index.parent / name)
    if missing := sorted(set(weight_map) - set(tensors)):
        raise UserError(
            f"{index}: {len(missing)} tensors are in no shard, the first {missing[0]!r}; download the folder again"
        )
    return tensors


def read_options(path: Path) -> dict[str, Any]:
    """The options of a `config.json`, {} if there is none. Raises UserError if it is too large or no JSON object."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes; a config.json has at most {_MAX_CONFIG_BYTES}")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(options, dict):
        raise UserError(f"{path} is no config; it must hold options by name")
    return options


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Load every tensor into `module`; none may be missing, left over or of another shape. `assign` replaces meta
    tensors.

    Raises UserError with the counts and the first offending name.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    shapes = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} tensors missing (first {missing[0]!r})")
    if unexpected:
        complaints.append(f"{len(unexpected)} unknown (first {unexpected[0]!r})")
    if shapes:
        name = shapes[0]
        complaints.append(
            f"{len(shapes)} of another shape (first {name!r}: {list(tensors[name].shape)}, "
            f"the model has {list(own[name].shape)})"
        )
    if complaints:
        raise UserError(
            f"{where} does not fit this model: {'; '.join(complaints)}; check that file and configuration belong together"
        )
    if assign:
        tensors = {name: value.to(own[name].dtype) for name, value in tensors.items()}
    module.load_state_dict(dict(tensors), strict=True, assign=assign)


def write_weights(folder: Path, tensors: Mapping[str, Tensor], *, max_shard_bytes: int = 5 << 30) -> None:
    """Write `model.safetensors`, or shards and their index above `max_shard_bytes`; the index appears last."""
    state = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
    )
    for name, members in plan.filename_to_tensors.items():
        with published(folder / name) as temporary:
            # clone: tensors that share storage are separate entries in the official layouts
            save_file({key: state[key].clone() for key in members}, temporary, metadata={"format": "pt"})
    if plan.is_sharded:
        with published(folder / "model.safetensors.index.json") as temporary:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
