"""A run's folder that cannot be written: a full disk, a quota, rights, a mount that became read-only, told in one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from javisc.manifests.errors import UserError

#: What only writing brings, wherever it is.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
#: What a path that is named may bring, too.
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG})


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """While open, an error that says that the run's folder cannot be written becomes a UserError; others pass."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        if (said := _unwritable(error, folder)) is None:
            raise
        raise UserError(
            f"{folder} cannot be written: {said}; what was published there is whole: mend that (space, rights, mount; "
            "run.keep_checkpoints keeps fewer) and go on with --resume, or give another --run",
            exit_code=1,
        ) from error


def _unwritable(error: BaseException, folder: Path) -> str | None:
    """What the system says of the folder, None if it is not at fault."""
    if isinstance(error, CheckpointException):
        found = (_unwritable(failure[0], folder) for failure in error.failures.values())
        return next((said for said in found if said is not None), None)
    if isinstance(error, OSError):
        named = error.filename is not None and Path(os.fsdecode(error.filename)).absolute().is_relative_to(
            folder.absolute()
        )
        at_fault = error.errno in _FULL if error.filename is None else named and error.errno in _FULL | _REFUSED
        return (error.strerror or str(error)) if at_fault else None
    match = re.search(r"\(os error (\d+)\)", str(error))  # libraries in Rust tell of it in words
    return os.strerror(int(match[1])) if match and int(match[1]) in _FULL else None
