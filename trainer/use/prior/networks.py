"""Folders with networks: what they hold, their digest, and loading them without a word of advice, a download or a pickle."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from javisc.manifests.errors import UserError
from javisc.manifests.files import sha256_of

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
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
