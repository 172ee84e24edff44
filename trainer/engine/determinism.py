"""Sums in a fixed order: what a bitwise equal run needs of PyTorch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from javisc.manifests.errors import UserError


@contextmanager
def deterministic(wanted: bool, *, strict: bool = False) -> Iterator[None]:
    """Only operations whose sums run in a fixed order, where PyTorch has them on the device; of others it warns, once each.

    With `strict`, such an operation ends the run: raises UserError that names it. New memory is not filled, as PyTorch does by
    default in this mode: it costs a kernel for every tensor and only turns reads of memory that nobody wrote into a constant.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise UserError(
            f"run.nondeterministic=raise: {found[1]} has no form with a fixed order on this device; set "
            "run.nondeterministic=warn and accept that runs differ in their last bits, or run.deterministic=false"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
