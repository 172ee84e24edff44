"""MACS: a stand-in of the published form."""

from __future__ import annotations

from pathlib import Path

import pytest

from javisc.compiler.inputs.corpora import of_kind
from javisc.manifests.errors import UserError
from support.corpora import annotations, row

MACS = """\
files:
- filename: airport-barcelona-0-0-a.wav
  annotations:
  - annotator_id: 30
    sentence: people are talking
    tags: [adults_talking]
  - annotator_id: 7
    sentence: 'a crowd: walking and talking, with a sentence so long that the writer of the file
      folds it'
    tags: [footsteps]
- filename: park-lisbon-1-2-a.wav
  annotations:
  - annotator_id: 1
    sentence: birds sing
    tags: []
  - annotator_id: 99
    sentence: somebody unknown speaks
    tags: []
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "MACS.yaml").write_text(MACS)
    (tmp_path / "MACS_competence.csv").write_text("annotator_id\tcompetence\n1\t0.5\n7\t0.9\n30\t0.2\n")
    return tmp_path


def test_the_most_competent_speaks_first_and_all_are_kept(root: Path) -> None:
    found = annotations(of_kind("audio")["macs"], root)
    assert row(found, "airport-barcelona-0-0-a")["texts"] == [
        "a crowd: walking and talking, with a sentence so long that the writer of the file folds it",
        "people are talking",
    ]
    assert row(found, "park-lisbon-1-2-a")["text"] == "birds sing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("files: &a []\nmore: *a\n", "aliases"),
        ("files: !!python/object/apply:os.system ['true']\n", "no plain YAML"),
        ("files: {a: 1}\n", "no list 'files'"),
        ("- a\n", "no list 'files'"),
        ("[" * 100_000, "nested deeper than 32 levels"),
        ("files: [\n", "no plain YAML"),
    ],
)
def test_yaml_of_another_form_is_refused(root: Path, content: str, message: str) -> None:
    (root / "MACS.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        annotations(of_kind("audio")["macs"], root)


def test_a_competence_that_is_no_number_is_listed(root: Path) -> None:
    (root / "MACS_competence.csv").write_text("annotator_id\tcompetence\n7\tnan\n30\thigh\n")
    found = annotations(of_kind("audio")["macs"], root)
    assert found.problems.count == 2 and row(found, "airport-barcelona-0-0-a")["text"] == "people are talking"
