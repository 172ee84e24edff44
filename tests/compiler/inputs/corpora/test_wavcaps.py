"""WavCaps: the real SoundBible file and blacklists; the other three sources in the same form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from javisc.compiler.inputs.corpora import of_kind
from javisc.manifests.errors import UserError
from support.corpora import ANNOTATIONS, annotations, real, row
from support.shared import need


def test_the_real_source() -> None:
    found = real("wavcaps", "WavCaps")
    assert found.frame.height == 1232 and found.problems.count == 0
    assert row(found, "SoundBible/2219")["text"] == "An airplane is landing."


def test_four_sources_and_the_splits_that_the_real_blacklists_make(tmp_path: Path) -> None:
    shutil.copytree(need(ANNOTATIONS / "WavCaps/json_files/blacklist"), tmp_path / "json_files/blacklist")
    ids = {
        "as": ["YvfY_TJq7n_U.wav", "Yr1nicOVtvkQ.wav", "YHpnja1gcKN0.wav", "Yzzzzzzzzzzz.wav"],
        "fsd": ["156", "117790", "185374", "999999999"],
        "bbc": ["NHU05093027"],
        "sb": ["2219"],
    }
    for name, clips in ids.items():
        data = [{"id": clip, "caption": f"caption of {clip}"} for clip in clips]
        (tmp_path / f"json_files/{name}_final.json").write_text(json.dumps({"num_captions_per_audio": 1, "data": data}))
    found = annotations(of_kind("audio")["wavcaps"], tmp_path)
    splits = dict(found.frame.select("identity", "split").iter_rows())
    assert splits == {
        "AudioSet_SL/YvfY_TJq7n_U": "test_ac",
        "AudioSet_SL/Yr1nicOVtvkQ": "train_ac",
        "AudioSet_SL/YHpnja1gcKN0": "train_zero_shot",
        "AudioSet_SL/Yzzzzzzzzzzz": "train",
        "BBC_Sound_Effects/NHU05093027": "train",
        "SoundBible/2219": "train",
        "FreeSound/156": "test_ac",
        "FreeSound/117790": "train_ac",
        "FreeSound/185374": "train_zero_shot",
        "FreeSound/999999999": "train",
    }


@pytest.mark.parametrize(
    ("relpath", "identity"),
    [
        ("audio_files/SoundBible_flac/2219.flac", "SoundBible/2219"),
        (
            "mnt/fast/nobackup/scratch4weeks/WavCaps/data/waveforms/AudioSet_SL_flac/Yr1nicOVtvkQ.flac",
            "AudioSet_SL/Yr1nicOVtvkQ",
        ),
        ("audio/FreeSound/156.wav", "FreeSound/156"),
        ("156.flac", None),
    ],
)
def test_files_are_known_by_source_and_id(relpath: str, identity: str | None) -> None:
    assert of_kind("audio")["wavcaps"].identity(relpath) == identity


def test_a_blacklist_of_another_form_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "json_files/blacklist").mkdir(parents=True)
    (tmp_path / "json_files/sb_final.json").write_text('{"data": []}')
    (tmp_path / "json_files/blacklist/blacklist_exclude_all_ac.json").write_text('["a"]')
    with pytest.raises(UserError, match="is no blacklist"):
        annotations(of_kind("audio")["wavcaps"], tmp_path)
