"""TAVGBench: a stand-in of the published caption list."""

from __future__ import annotations

from pathlib import Path

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import annotations


def test_lines_of_name_and_caption(tmp_path: Path) -> None:
    (tmp_path / "release_captions.txt").write_text("---ISVHfTDo_0_10000.mp4 A man plays.\n")
    (tmp_path / "release_captions_clean.txt").write_text(
        "---ISVHfTDo_0_10000.mp4 A man plays the guitar  and sings.\r\nnot_a_clip caption\none_underscore.mp4 x\n"
        "a_b_c_1_2.mp4\n\nZYc410CE4Rg_0_10000.MP4\ttab is no separator\n"
    )
    found = annotations(of_kind("video")["tavgbench"], tmp_path)
    assert found.frame.rows(named=True)[0]["text"] == "A man plays the guitar and sings."
    assert found.frame.height == 1 and found.frame["audio_text"][0] is None
    assert [line for _, line, _ in found.problems.rows] == [2, 3, 4, 6]
