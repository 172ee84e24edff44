"""`javisc build prior separate --activity` with a tiny PE-AV: where it says that a description is heard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from javisc.manifests.errors import UserError
from javisc.trainer.use.prior.activity import Asked, spans
from javisc.trainer.use.prior.run import RunOptions, run
from support import tiny_vision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.pe_audio(tmp_path_factory.mktemp("pe_audio"))


def test_frames_become_spans_without_short_pauses_and_bursts() -> None:
    loud = np.zeros(100, bool)
    loud[10:20] = loud[24:30] = loud[60:61] = loud[94:100] = True
    assert spans(loud, 320.0, 31_990, 16_000) == [[3200, 9600], [30_080, 31_990]]
    assert spans(np.zeros(0, bool), 320.0, 0, 16_000) == []


def test_each_description_is_asked_for_by_itself_and_to_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hearing = Asked(str(folder)).load("cpu")
    wave = np.random.default_rng(0).normal(0, 0.1, 40_000) * (np.arange(40_000) > 20_000)
    queries = ["rain that falls on a very large tin roof", "wind", "a cat", "a bell", "a dog"]
    likely = hearing._frames(wave, 16_000, queries)
    assert likely.shape == (5, 125) and len({row.tobytes() for row in likely}) == 5  # 2.5 s at fifty frames a second
    assert np.array_equal(hearing._frames(wave, 16_000, queries[4:])[0], likely[4])
    assert likely.min() < 0.3 < likely.max(), "the threshold decides"
    told = hearing(wave, 16_000, queries)
    assert told == [spans(row > 0.3, 320.0, 40_000, 16_000) for row in likely]
    monkeypatch.setattr("javisc.trainer.use.prior.activity.CHUNK", 1.0)
    assert len(hearing(wave, 16_000, ["wind"])) == 1 and max(np.array(told[0]).ravel(), default=0) <= 40_000


@pytest.mark.usefixtures("here")
def test_the_pool_holds_what_it_said(folder: Path, networks: dict[str, Path], demo: Path, tmp_path: Path) -> None:
    settings = {"dataset": str(demo / "dataset"), "separator": str(networks["separator"]), "activity": str(folder)}
    run("separate", settings, str(tmp_path / "pool"), RunOptions(workers=1))
    header = json.loads((tmp_path / "pool/dataset.json").read_text())["prior"]
    assert header["activity"] == "PeAudioFrameLevelModel"
    rows = pl.read_parquet(tmp_path / "pool/manifest.parquet")
    asked = rows.filter(pl.col("text") != "rest")
    assert asked.height >= 4
    for row in rows.iter_rows(named=True):
        told = json.loads(row["label"])["activity"]
        assert all(0 <= first < last <= row["num_samples"] for first, last in told)


def test_other_folders_and_versions_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["PeAudioModel"]}')
    with pytest.raises(UserError, match="names the class PeAudioModel; known are PeAudioFrameLevelModel"):
        Asked(str(tmp_path))
    monkeypatch.setattr("javisc.trainer.use.prior.activity.KIND", "PeAudioLaterModel")
    (tmp_path / "config.json").write_text('{"architectures": ["PeAudioLaterModel"]}')
    with pytest.raises(UserError, match=r"--activity .*: transformers .* has no PeAudioLaterModel, 5\.23 has"):
        Asked(str(tmp_path)).load("cpu")
