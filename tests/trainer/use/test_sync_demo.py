"""The training demonstration from end to end, and what `javisc demo` says where training is not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.demo.acts import HELD_OUT, LEARNT
from javisc.compiler.demo.sync import fresh
from javisc.manifests.errors import UserError
from javisc.trainer.use.sync_demo import LATE, learn, told
from support.sane import split_by_hash


@pytest.mark.slow
def test_clips_are_made_learnt_measured_and_a_late_one_is_rated(tmp_path: Path) -> None:
    out, said = tmp_path / "sync", []
    fresh(out)
    (out / "run").mkdir()
    (out / "run" / "metrics.jsonl").write_text("{}\n")  # of an earlier one, which is replaced
    made = learn(out, clips=22, test_clips=2, steps=2, seed=2, workers=2, say=said.append)
    assert json.loads((out / "run" / "metrics.jsonl").read_text().splitlines()[0])["kind"]
    rows = {name: pl.read_parquet(out / name / "manifest.parquet") for name in ("learn", "test")}
    kinds = {name: set(row["id"].str.split("_").list.first()) for name, row in rows.items()}
    assert kinds == {"learn": set(LEARNT), "test": set(HELD_OUT)}
    assert rows["learn"]["split"].to_list() == split_by_hash(rows["learn"]["group"], {"train": 0.9, "val": 0.1})
    assert set(rows["test"]["split"]) == {"test"}
    assert made.chance == pytest.approx(1 / 15) and made.unseen["clips"] == 8
    text = told(made)
    assert "the right one of 15 offsets" in text and "chance" in text and len(made.shifted) == 2
    for path, found in made.shifted.items():
        right = abs(found.ranked[0].offset_sec + LATE) < 1e-3
        assert path.is_file() and f"{path.name}, sound made 0.30 s late" in text
        line = next(line for line in text.splitlines() if path.name in line)
        assert line.endswith("right" if right else "wrong")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="left alone"):
        learn(tmp_path / "mine", clips=1, test_clips=1, steps=1, say=said.append)


@pytest.mark.slow
def test_without_torch_one_line_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("javisc.trainer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = ["demo", "--out", str(tmp_path / "demo"), "--clips", "1", "--seconds", "1", "--workers", "1"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    assert not result.return_value
    assert "training left out: torch is not installed; pip install 'javisc[train]'" in result.output
    assert not (tmp_path / "demo" / "sync").exists()
