"""Rows of the manifest: what a clip measures arrives, or is refused aloud."""

from __future__ import annotations

import pytest

from javisc.compiler.store.rows import manifest_row

SOURCE = {"path": "/raw/a.mp4", "id": "a", "relpath": "a.mp4", "key": "k", "source_bytes": 7}


def test_a_misspelt_column_is_refused() -> None:
    assert manifest_row(SOURCE, {"loudness": -20.0, "channels": 1})["loudness"] == -20.0
    with pytest.raises(TypeError, match="'loudnes', which manifests/schema.py does not know"):
        manifest_row(SOURCE, {"loudnes": -20.0, "channels": 1})
