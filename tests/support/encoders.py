"""Tiny frozen encoders in the libraries' own folder layouts, as a user has the real ones."""

from __future__ import annotations

from pathlib import Path

from javisc.trainer.models import tiny


def tiny_t5(folder: Path) -> Path:
    encoder = tiny.t5(24)
    encoder.tokenizer.save_pretrained(folder)
    encoder.model.save_pretrained(folder)
    return folder


def tiny_audio(folder: Path) -> Path:
    codec = tiny.audio_vae()
    codec.vae.save_pretrained(folder / "vae")
    codec.vocoder.save_pretrained(folder / "vocoder")
    return folder
