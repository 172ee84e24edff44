"""Every op × backend as seen from one device: can it run here, if not why, and for which shapes it is chosen."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch

from javisc.kernels import dispatch

#: Widths of a head that are tried: the prior's, the sync selector's, the joint DiT's, and the widest.
HEAD_DIMS = (32, 64, 72, 128)


@dataclass(frozen=True)
class Row:
    """One backend of one op. reason: why it cannot run on this device, None if it can (for some head dims at least).

    chosen_for: the head dims for which a plain call takes it here.
    """

    op: str
    backend: str
    available: bool
    reason: str | None
    needs: str
    when: str
    chosen_for: tuple[int, ...]


def load_ops() -> list[str]:
    """Import every op's module, which fills the backend table; return the ops' names in the table's order."""
    for path in sorted(Path(__file__).parent.glob("*/__init__.py")):
        importlib.import_module(f"javisc.kernels.{path.parent.name}")
    return list(dispatch.TABLE)


def survey(device: torch.device, dtype: torch.dtype, backend: str | None = None) -> list[Row]:
    """Return a row for every op × backend. `backend` asks for one by name, as the ops' own argument does.

    Raises ValueError if `JAVISC_KERNELS` names no backend.
    """
    rows = []
    for op in load_ops():
        answers = {
            dim: dispatch.judge(dispatch.Request(op, device, dtype, dim), backend) for dim in HEAD_DIMS
        }  # plain calls: norms, lengths and masks may prefer another row, as `when` says
        for index, entry in enumerate(dispatch.TABLE[op]):
            here = {dim: verdicts[index] for dim, verdicts in answers.items()}
            reasons = [verdict.reason for verdict in here.values()]
            able = any(reason is None for reason in reasons)
            rows.append(
                Row(
                    op,
                    entry.name,
                    able,
                    None if able else reasons[0],
                    entry.needs,
                    entry.when,
                    tuple(dim for dim, verdict in here.items() if verdict.chosen),
                )
            )
    return rows
