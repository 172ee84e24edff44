"""What the audio extractor of Synchformer hears: the log-mel spectrogram of a segment, padded and normalised."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from javisc.manifests.errors import UserError

PADS = ("official", "silence")
#: AudioSet's mean and deviation, as AST takes them (Gong et al., 2021).
MEAN, STD = -4.2677393, 4.5689974
_FLOOR = 1e-6


@cache
def _mel(rate: int, mels: int) -> MelSpectrogram:
    """Hann window of 400 in frames of 1024, hop 160, centred with reflection, power 2; triangular HTK filters, no norm."""
    return MelSpectrogram(rate, n_fft=1024, win_length=400, hop_length=160, n_mels=mels)


def mel_power(wave: Tensor, rate: int, mels: int = 128) -> Tensor:
    """(…,n) → (…,mels, n // 160 + 1)."""
    return _mel(rate, mels).to(wave.device)(wave)


def normalised_log_mel(wave: Tensor, rate: int, mels: int = 128, columns: int = 66, pad: str = "official") -> Tensor:
    """(…,n) → (…,mels,columns): (ln(power + 1e-6) - mean) / (2 · deviation); too long is cut.

    What is too short is padded after the logarithm: `official` with log power 0, a loud stripe that published weights expect;
    `silence` with the logarithm of nothing. Raises UserError for another pad.
    """
    if pad not in PADS:
        raise UserError(f"transforms.pad={pad!r}: it may be {', '.join(PADS)}")
    log = (mel_power(wave, rate, mels) + _FLOOR).log()
    value = 0.0 if pad == "official" else float(torch.tensor(_FLOOR).log())
    log = F.pad(log, (0, max(0, columns - log.shape[-1])), value=value)[..., :columns]
    return (log - MEAN) / (2 * STD)
