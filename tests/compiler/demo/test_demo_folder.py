"""The demonstration never touches a folder that it did not make."""

from __future__ import annotations

from pathlib import Path

import pytest

from javisc.compiler.demo.jav import demo
from javisc.manifests.errors import UserError


def test_a_users_own_raw_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "holiday.mp4").write_bytes(b"irreplaceable")
    with pytest.raises(UserError, match="left alone"):
        demo(tmp_path, clips=1, seconds=1.0, say=lambda text: None)
    assert (tmp_path / "raw" / "holiday.mp4").read_bytes() == b"irreplaceable"
    assert not (tmp_path / "dataset").exists()
