"""The deliberate faults still fit the code: each text stands once where its row says, makes code, and its tests are there."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from support.documents import ROOT

FAULTS: list[dict[str, Any]] = tomllib.loads((ROOT / "tests/faults.toml").read_text())["fault"]


@pytest.mark.parametrize("file", sorted({row["file"] for row in FAULTS}))
def test_rows_fit_the_code(file: str) -> None:
    source = (ROOT / file).read_text()
    for row in (row for row in FAULTS if row["file"] == file):
        assert source.count(row["old"]) == 1, (
            f"{file} has changed: update this row of tests/faults.toml: {row['old']!r}"
        )
        compile(source.replace(row["old"], row["new"]), file, "exec")
        for test in row["tests"]:
            path, _, name = test.partition("::")
            assert (ROOT / path).exists(), test
            name = re.sub(r"\[.*", "", name)
            assert not name or f"def {name}(" in (ROOT / path).read_text(), test
