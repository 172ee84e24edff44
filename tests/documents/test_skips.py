"""A skip that this machine does not explain is a failure, in CI and elsewhere, and a run ends with what was not tried and why."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.documents import ROOT

FEW = """
import pytest
def test_seen(): pass
def test_expected(): pytest.skip("the file has no such rows")
def test_nobody_expects(): pytest.skip("not today")
"""


def test_what_is_not_expected_fails_and_the_rest_is_told(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_few.py").write_text(FEW)
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('a_library_that_is_not_there')\n")
    command = [sys.executable, "-P", "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    ran = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "no:xdist", "--continue-on-collection-errors"],
        env={**os.environ, "CI": "true", "PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1 and "1 failed, 1 passed, 1 skipped, 1 error" in ran.stdout, ran.stdout + ran.stderr
    assert "skipped, which is not expected on this machine: not today" in ran.stdout
    assert "not expected on this machine: could not import 'a_library_that_is_not_there'" in ran.stdout
    assert re.search(r"-+ not tried -+\n +1 asks more than this fixture of the reference holds\n", ran.stdout)
