"""AudioSep's published checkpoint, read without running any of its code."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.use.prior.audiosep.model import CONDITION, ResUNet30

#: In Lightning's state the separator's weights begin so; everything else is CLAP's, which comes from its own folder.
PREFIX = "ss_model."
#: Tables of the transform that the checkpoint holds and that are computed here.
_COMPUTED = ("base.stft.", "base.istft.")
#: How a pickled numpy scalar is called: one stands in the checkpoint's bookkeeping.
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


class Inert:
    """What stands for a numpy scalar of a checkpoint: nothing, and nothing of numpy's is called to make it."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read(path: Path) -> dict[str, Tensor]:
    """The separator's weights of a checkpoint. Raises UserError for a file that is none, or that wants code to be run."""
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in _SCALAR]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except (UnpicklingError, BadZipFile, RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        told = " ".join(str(error).split("\n")[-1].split())[:200]
        raise UserError(f"--separator {path} is no checkpoint that can be read without running code: {told}") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else {}
    kept = {
        name.removeprefix(PREFIX): value
        for name, value in state.items()
        if isinstance(value, Tensor) and name.startswith(PREFIX)
    }
    if not kept:
        raise UserError(f"--separator {path}: no tensor's name begins with {PREFIX}: it is no checkpoint of AudioSep")
    return {name: value for name, value in kept.items() if not name.startswith(_COMPUTED)}


def load(path: Path) -> ResUNet30:
    """The separator with a checkpoint's weights; its widths are those of the file. Raises UserError."""
    state = read(path)
    names = [f"base.encoder_block{number}.conv_block1.conv2.weight" for number in range(1, 7)]
    names.append("base.conv_block7a.conv_block1.conv2.weight")
    if missing := [name for name in names if name not in state]:
        raise UserError(f"--separator {path} lacks {missing[0]}: it is no ResUNet30")
    first = next((value for name, value in state.items() if name.startswith("film.") and value.ndim == 2), None)
    widths = tuple(int(state[name].shape[0]) for name in names)
    if max(widths) > 4096:
        raise UserError(f"--separator {path}: a level of {max(widths)} channels is no ResUNet30's")
    model = ResUNet30(widths, CONDITION if first is None else int(first.shape[1]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"--separator {path} does not fit a ResUNet30: {' '.join(str(error).split())[:300]}") from error
    return model
