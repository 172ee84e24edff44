"""A corpus is added by one file in the folder of corpora: nothing else has to be told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import soundfile
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.inputs import corpora

BIRDS = """
from javisc.compiler.inputs.annotations import Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem

META = Table(("birds.csv",), columns=("file", "species"))


class Birds(Corpus):
    name = "birds"
    folders = ("Birds",)
    kinds = frozenset({"audio"})
    layout = "birds.csv (file, species), *.wav"
    sources = (META,)

    def rows(self, root, files, problems):
        path = META.need(root)
        for line, (file, species) in META.rows(root, problems):
            yield Row(stem(file), (f"a {species} sings",), label=species, split="train", where=(path, line))

    def identity(self, relpath):
        return stem(relpath)


CORPORA = (Birds(),)
"""


@pytest.fixture
def with_birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the file lay among the others."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more/birds.py").write_text(BIRDS)
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path / "more")])
    corpora.registry.cache_clear()
    yield
    corpora.registry.cache_clear()


def test_one_file_makes_a_corpus(with_birds: None, tmp_path: Path) -> None:
    folder = tmp_path / "raw/Birds"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", [0.1, -0.1] * 8000, 16000)
    (folder / "birds.csv").write_text("file,species\na.wav,wren\nb.wav,owl\n")
    listed = CliRunner().invoke(cli, ["build", "audio", "--list-corpora"])
    assert "birds" in listed.output
    words = [
        "build",
        "audio",
        str(tmp_path / "raw"),
        "--corpus",
        "birds",
        "--out",
        str(tmp_path / "ds"),
        "--workers",
        "1",
    ]
    done = CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
    assert done.return_value == 0, done.output
    made = pl.read_parquet(tmp_path / "ds/manifest.parquet").sort("relpath")
    assert made.select("text", "label", "split", "corpus").rows() == [
        ("a wren sings", "wren", "train", "birds"),
        ("a owl sings", "owl", "train", "birds"),
    ]
