"""How long a WAVE file says it is, whatever chunks stand before its sound and however much of that is there."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import pytest

from javisc.compiler.media.clip import declared_seconds


def wave(path: Path, declared: int, *, coding: int = 1, extra: int = 0, before: int | None = None) -> Path:
    """16-bit mono at 8 kHz, one second of it; declared: what the header says of its bytes; before: a chunk's odd length."""
    form = struct.pack("<HHIIHH", coding, 1, 8000, 16000, 2, 16) + bytes(extra)
    chunks = b"" if before is None else b"LIST" + struct.pack("<I", before) + bytes(before + before % 2)
    chunks += b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", declared)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 4 + len(chunks) + declared & 0xFFFFFFFF) + b"WAVE" + chunks + bytes(16000)
    )
    return path


@pytest.mark.parametrize("more", [{}, {"before": 26}, {"before": 27}, {"extra": 2}, {"extra": 2, "before": 5}], ids=str)
def test_a_header_is_believed_where_bytes_per_second_are_exact(more: dict[str, int], tmp_path: Path) -> None:
    with av.open(str(wave(tmp_path / "a.wav", 40_000, **more))) as file:
        assert declared_seconds(file) == 2.5
    for strange in ({"coding": 2, "declared": 40_000}, {"declared": 0xFFFFFFFF}, {"declared": 0xFFFFF000}):
        with av.open(str(wave(tmp_path / "b.wav", **strange, **more))) as file:  # type: ignore[arg-type]
            known = None if file.duration is None else file.duration / av.time_base
            assert declared_seconds(file) == known, "what FFmpeg makes of it"
