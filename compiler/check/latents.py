"""What a member of latents must be: safetensors whose header tells the truth, with finite numbers in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

#: Bytes of an element, and the type that numpy reads it as (bfloat16 is the upper half of a float32).
_TYPES: dict[str, tuple[int, Any]] = {
    "F32": (4, np.float32),
    "F16": (2, np.float16),
    "BF16": (2, np.uint16),
    "I64": (8, np.int64),
}
#: A longer header names more tensors than any clip has.
_MAX_HEADER = 1 << 20


def latent_defects(content: bytes, row: object = None, recipe: object = None) -> Iterator[str]:
    """The defects of a KEY.safetensors: a JSON header, then the tensors' bytes end to end."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(_MAX_HEADER, len(content) - 8):
        yield "no safetensors: its header is cut or too long"
        return
    tensors: list[tuple[int, int, str, str, list[int]]] = []
    try:
        for name, told in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__":
                first, last = map(int, told["data_offsets"])
                tensors.append((first, last, str(name), str(told["dtype"]), [int(n) for n in told["shape"]]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"no safetensors: {type(error).__name__}: {error}"
        return
    data = memoryview(content)[8 + length :]
    end = 0
    for first, last, name, dtype, shape in sorted(tensors):
        size, kind = _TYPES.get(dtype, (0, None))
        if kind is None or first != end or last - first != size * prod(shape) or not first <= last <= len(data):
            yield f"{name}: bytes {first} to {last} are no {dtype} of {shape} after byte {end} of {len(data)}"
            return
        end = last
        values = np.frombuffer(data[first:last], kind)
        if dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(values).all():
            yield f"{name}: holds numbers that are not finite"
    if end != len(data):
        yield f"{len(data) - end} bytes belong to no tensor"
