"""Sources whose time alone changed: their bytes are compared, by workers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.local import AUDIO_SUFFIXES
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.plan import comparing
from javisc.compiler.recipe import PRESETS
from javisc.compiler.run.digests import digests
from javisc.manifests.files import sha256_of


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b c", os.fsdecode(b"\xff"))]
    for number, file in enumerate(files):
        file.write_bytes(b"x" * number)
    found = digests([*files, tmp_path / "gone", tmp_path], 2, tmp_path / "logs")
    assert found == [*map(sha256_of, files), None, None]


def test_workers_hash_what_was_touched_and_the_planner_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 8000)
        soundfile.write(raw / f"{number}.wav", noise, 16000)

    def planned() -> tuple[str, ...]:
        given = from_raw([str(raw)], suffixes=AUDIO_SUFFIXES)
        return build(given, PRESETS["audio"], tmp_path / "ds", BuildOptions(workers=1)).notes

    planned()
    monkeypatch.setattr(comparing, "sha256_of", lambda path: pytest.fail("the planner reads a source"))
    os.utime(raw / "0.wav", (1, 1))
    assert not any("changed" in note for note in planned())
    content = (raw / "1.wav").read_bytes()
    (raw / "1.wav").write_bytes(content[:-2] + b"\0\1")
    assert any("1 inputs are changed since the last build" in note and "1.wav" in note for note in planned())
