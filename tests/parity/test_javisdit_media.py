"""The log-mel spectrogram and the augmentations' cores against the reference's numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from javisc.trainer.transforms import javisdit_audio_negatives as audio
from javisc.trainer.transforms import javisdit_mel as mel
from javisc.trainer.transforms import javisdit_video_negatives as video
from support.parity import check, files, load


def mel_config(options: dict[str, Any], padding: str = "zero") -> mel.MelConfig:
    part = options["audio_cfg"]["preprocessing"]
    return mel.MelConfig(
        sample_rate=part["audio"]["sampling_rate"],
        fft=part["stft"]["filter_length"],
        hop=part["stft"]["hop_length"],
        window=part["stft"]["win_length"],
        mels=part["mel"]["n_mel_channels"],
        low=part["mel"]["mel_fmin"],
        high=part["mel"]["mel_fmax"],
        default_seconds=part["audio"]["duration"],
        multiple=part["audio"].get("scale_factor", 32),
        padding=padding,
    )


@pytest.mark.parametrize("path", files("mel"))
def test_log_mel(path: Path) -> None:
    fixture = load(path)
    config = mel_config(fixture.config)
    for case in fixture.cases.values():
        wave, seconds = case.inputs["wave"], case.scalars["duration"]
        found = {"mel": mel.mel_input(wave, config, seconds), "raw_logmel_T": mel.log_mel(mel.normalise(wave), config)}
        if case.scalars.get("with_basis"):
            found |= {"magnitude": mel.magnitudes(mel.normalise(wave), config), "mel_basis": mel.mel_filters(config)}
        for name, theirs in case.outputs.items():
            check(found[name], theirs, f"{case.name}/{name}")
        batch = torch.stack((wave, wave.flip(0)))
        check(mel.mel_input(batch, config, seconds)[0], case.outputs["mel"], f"{case.name}/batched")


@pytest.mark.parametrize("path", files("mel"))
def test_padding_with_silence_changes_only_what_is_padded(path: Path) -> None:
    fixture = load(path)
    config = mel_config(fixture.config, padding="silence")
    for case in fixture.cases.values():
        ours = mel.mel_input(case.inputs["wave"], config, case.scalars["duration"])[0]
        frames = len(case.outputs["raw_logmel_T"])
        check(ours[:frames], case.outputs["mel"][0, :frames], f"{case.name}/kept")
        assert (ours[frames:] == torch.tensor(math.log(1e-5))).all()


@pytest.mark.parametrize("path", files("augment_core"))
def test_augmentations(path: Path) -> None:
    fixture = load(path)
    for case in fixture.cases.values():
        s, wave, clip = case.scalars, case.inputs["audio"], case.inputs["video"]
        total, span = len(wave), (s["start"], s["start"] + int(s["dur"] * s["sr"]))
        length = s["a1"] - s["a0"]
        # The recorded cells are not those that were masked (one of them is in no recorded pair), so they are read off
        # the output:
        # what is held is that masking greys whole cells of the grid, in all frames, and nothing else.
        side = video.cell_side(clip)
        greyed = (case.outputs["random_mask"] == 0).all(0).all(0)[::side, ::side].nonzero() * side
        cells = greyed[:, 0].tolist(), greyed[:, 1].tolist()
        assert cells[0]
        found = {
            "audio_mute": audio.stall(wave, span),
            "audio_repeat": audio.repeat(wave, span),
            "audio_shift": wave[s["ashift"] : s["ashift"] + length],
            "mirror": video.mirror(clip),
            "random_mask": video.mask_cells(clip, *cells, side),
            "video_shift": video.rotate_frames(clip, s["vshift"]),
            "video_stall": video.stall(clip, s["stall_start"], s["stall_dur"]),
        }
        for name in audio.CURVES:
            window = audio.reference_volume_span(s["start"], s["dur"], total)
            found[f"scale_volume_{name}"] = audio.scale_volume(wave, window, name, s["gain"])
            found[f"volume_{name}"] = audio.scale_volume(wave, (0, total), name, s["gain"])
        for name, theirs in case.outputs.items():
            check(found[name], theirs, f"{case.name}/{name}")
