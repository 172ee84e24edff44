"""Folders with networks: what they hold, their digest, and loading them without a word of advice, a download or a pickle."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from javisc.manifests.errors import UserError
from javisc.manifests.files import sha256_of
from javisc.trainer.use.prior.settings import PRECISIONS

_MAX_JSON = 16 << 20


def folder(path: str, option: str) -> Path:
    """The folder, if it is one. Raises UserError."""
    found = Path(path)
    if not found.is_dir():
        raise UserError(f"{option} {path} is no folder: give a local folder of the model, nothing is downloaded")
    return found


def read_json(path: Path, option: str) -> dict[str, Any]:
    """An object of a configuration. Raises UserError."""
    try:
        with path.open("rb") as stream:
            found = json.loads(stream.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{option} {path.parent}: {path.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{option} {path.parent}: {path.name} is no JSON object")
    return found


def digest_of(path: Path) -> str:
    """SHA-256 over names and digests of all files below a folder, or of a file."""
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_all(paths: Sequence[Path]) -> str:
    """A digest of several folders; "" without any."""
    found = [digest_of(path) for path in paths]
    return "".join(found) if len(found) < 2 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def bytes_of(path: Path) -> int:
    """Bytes of all files below a folder, or of a file."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def check_precision(precision: str) -> str:
    """A precision, if it is one. Raises UserError."""
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: allowed are {', '.join(PRECISIONS)}")
    return precision


def transformer(kind: str, path: Path, option: str, **how: Any) -> Any:
    """What transformers' class `kind` makes of a local folder. Raises UserError, also where it has no such class."""
    import transformers

    quiet()
    if not hasattr(transformers, kind):
        raise UserError(
            f"{option} {path}: transformers {transformers.__version__} has no {kind}, 5.23 has: install that or a newer one"
        )
    try:
        return getattr(transformers, kind).from_pretrained(path, local_files_only=True, **how)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError) as error:
        raise UserError(f"{option} {path} cannot be loaded as {kind}: {' '.join(str(error).split())[:300]}") from error


def class_of(path: Path, option: str, known: Sequence[str]) -> str:
    """The class that a folder's config.json names. Raises UserError if it is none of `known`."""
    names = read_json(path / "config.json", option).get("architectures") or ["?"]
    if (kind := str(names[0])) not in known:
        raise UserError(f"{option} {path}: config.json names the class {kind[:80]}; known are {', '.join(known)}")
    return kind


def quiet() -> None:
    """Keep the libraries' advice out of the log; errors stay."""
    import diffusers
    import transformers

    logs: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def dtype_of(precision: str, device: str) -> Any:
    """The type of the weights: auto is bf16 on a GPU, fp32 on a CPU."""
    import torch

    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision == "auto":
        return kinds["bf16" if device.startswith("cuda") else "fp32"]
    return kinds[precision]
