"""Clips of one film (video, recording, dance) have one group, whatever corpus names them; no split divides it."""

from __future__ import annotations

import pytest

from javisc.compiler.inputs.corpora import registry

CORPORA = {(corpus.name, "sync" in corpus.kinds): corpus for corpus in registry()}


@pytest.mark.parametrize(
    ("name", "sync", "one", "other", "group"),
    [
        ("vggsound", False, "ab-defghijk_000030.mp4", "x/ab-defghijk_000110.mp4", "youtube/ab-defghijk"),
        ("vggsound", True, "ab-defghijk_30000_40000.mp4", "ab-defghijk_0_10000.mp4", "youtube/ab-defghijk"),
        ("audiocaps", False, "Yab_defghij1.wav", "ab_defghij1_30.wav", "youtube/ab_defghij1"),
        ("audioset", False, "Yab_defghij1.flac", "ab_defghij1_30_40.wav", "youtube/ab_defghij1"),
        ("ave", False, "AVE/ab_defghij1.mp4", "AVE/ab_defghij1.mp4", "youtube/ab_defghij1"),
        ("valor32k", False, "ab_defghij1_30.000_40.000.mp4", "ab_defghij1_0.000_10.000.mp4", "youtube/ab_defghij1"),
        ("tavgbench", False, "ab_defghij1_0_10000.mp4", "ab_defghij1_10000_20000.mp4", "youtube/ab_defghij1"),
        ("wavcaps", False, "AudioSet_SL/Yab_defghij1.flac", "AudioSet_SL_flac/Yab_defghij1.flac", "youtube/ab_defghij1"),
        ("lrs3", True, "pretrain/00j9bKdiOjk/00001.mp4", "pretrain/00j9bKdiOjk/00002.mp4", "youtube/00j9bKdiOjk"),
        ("esc50", False, "audio/1-100032-A-0.wav", "audio/1-100032-B-0.wav", "freesound/100032"),
        ("urbansound8k", False, "audio/fold5/100032-3-0-0.wav", "audio/fold5/100032-3-0-1.wav", "freesound/100032"),
        ("aist", False, "gBR_sBM_c01_d04_mBR0_ch01.mp4", "gBR_sBM_c02_d04_mBR0_ch01.mp4", "aist/gBR_sBM_cAll_d04_mBR0_ch01"),
    ],
)  # fmt: skip
def test_the_names_of_clips_say_their_film(name: str, sync: bool, one: str, other: str, group: str) -> None:
    corpus = CORPORA[name, sync]
    identities = [corpus.identity(path) for path in (one, other)]
    assert None not in identities
    assert [corpus.film(identity) for identity in identities if identity] == [group, group]


def test_a_clip_whose_name_says_nothing_is_its_own_film() -> None:
    clotho = CORPORA["clotho", False]
    assert clotho.film("development/Distorted AM Radio noise") is None
