"""VALOR-32K: a stand-in of the published lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from javisc.compiler.inputs.corpora import of_kind
from javisc.manifests.errors import UserError
from support.corpora import annotations


def test_lists_of_descriptions(tmp_path: Path) -> None:
    items = [{"video_id": "x-abc_000_10000", "desc": "a dog barks"}, {"video_id": 1, "desc": "x"}, "text"]
    (tmp_path / "desc_train.json").write_text(json.dumps(items))
    found = annotations(of_kind("video")["valor32k"], tmp_path)
    assert found.frame.select("identity", "text", "split").rows() == [("x-abc_000_10000", "a dog barks", "train")]
    assert found.problems.count == 2
    (tmp_path / "desc_train.json").write_text(
        '[{"video_id": "a", "desc": "\\ud800"}, {"video_id": "b", "desc": "x\\u0000\\u001b[31m y"}]'
    )
    found = annotations(of_kind("video")["valor32k"], tmp_path)
    assert found.frame["text"].to_list() == ["x [31m y"] and "surrogate" in found.problems.rows[0][2]
    (tmp_path / "desc_train.json").write_text("{}")
    with pytest.raises(UserError, match="is no list"):
        annotations(of_kind("video")["valor32k"], tmp_path)
