"""What holds for every corpus: names, file identities of any text, and annotation files of any bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.annotations import Json, Lines, Source, Table, Yaml
from javisc.compiler.inputs.corpora import ANNOTATION_SCHEMA, EXCLUDED_SCHEMA, Corpus, of_kind, registry
from javisc.compiler.inputs.sync_lists import SyncCorpus
from javisc.manifests.errors import UserError
from support.corpora import annotations

CORPORA = registry()
NAMES = [f"{corpus.name}-{'-'.join(sorted(corpus.kinds))}" for corpus in CORPORA]
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def files_of(corpus: Corpus) -> list[Source]:
    """Every file that the corpus may read."""
    groups = (needed if isinstance(needed, tuple) else (needed,) for needed in corpus.sources)
    found = [source for group in groups for source in group]
    if isinstance(corpus, SyncCorpus):
        found += [
            *corpus.split_lists().values(),
            Table(("vggsound.csv",), ("id", "start", "label", "split"), header=False),
        ]
    return [source for source in found if type(source) is not Source]


def sample(source: Source) -> bytes:
    """A small file of the source's form."""
    if isinstance(source, Table):
        head = source.delimiter.join(source.columns) + "\n" if source.header else ""
        return (head + source.delimiter.join("a1" for _ in source.columns) + "\n").encode()
    if isinstance(source, Yaml):
        return b"files:\n- filename: a.wav\n  annotations:\n  - {annotator_id: 1, sentence: b}\n"
    if isinstance(source, Json):
        return b'{"data": [{"id": "1", "wav": "Yr1nicOVtvkQ.wav", "caption": "c"}]}'
    assert isinstance(source, Lines)
    return b"AAAAAAAAAAA_0_10000.mp4 a caption\n"


@pytest.mark.parametrize("corpus", CORPORA, ids=NAMES)
def test_a_corpus_says_what_it_is(corpus: Corpus, tmp_path: Path) -> None:
    assert corpus.name == corpus.name.lower() and corpus.folders and corpus.layout and corpus.kinds
    assert corpus in of_kind(next(iter(corpus.kinds))).values()
    assert corpus.missing(tmp_path / "nowhere") == [f"{tmp_path / 'nowhere'} is no folder"]
    for report in corpus.missing(tmp_path):
        assert "is not there" in report or "is there" in report


@pytest.mark.parametrize("corpus", CORPORA, ids=NAMES)
@given(path=PATHS)
@settings(max_examples=40)
def test_any_path_has_one_identity_or_none_whatever_the_extension(corpus: Corpus, path: str) -> None:
    identity = corpus.identity(f"{path}x.wav")
    assert identity is None or isinstance(identity, str)
    assert identity == corpus.identity(f"{path}x.FLAC") == corpus.identity(f"./{path}x.mp4")


@pytest.mark.parametrize("corpus", CORPORA, ids=NAMES)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_read_or_refused(
    corpus: Corpus, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("corpus")
    for source in files_of(corpus):
        whole = sample(source)
        at = data.draw(st.integers(0, len(whole)))
        junk = data.draw(
            st.binary(max_size=12) | st.sampled_from([b'"', b"\r", b"\0", b"\xef\xbb\xbf", b"1e999", b"[" * 50])
        )
        path = root / source.places[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole[:at] + junk + whole[at + data.draw(st.integers(0, 3)) :])
    try:
        found = annotations(corpus, root, ["a.wav", "pretrain/v/00001.mp4", "AAAAAAAAAAA_0_10000.mp4"])
    except UserError:
        return
    assert found.frame.schema == ANNOTATION_SCHEMA and found.excluded.schema == EXCLUDED_SCHEMA
    assert found.frame["identity"].is_unique().all()
    assert found.frame["text"].null_count() == 0 or not corpus.captioned
