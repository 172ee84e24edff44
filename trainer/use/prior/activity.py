"""Where a source is to be heard: by its own level, or by PE-AV's frame-level network, which is asked for its description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from javisc.trainer.use.prior.networks import class_of, folder, transformer
from javisc.trainer.use.prior.stage import padded

Wave = NDArray[np.float64]
#: A source is active where its level is less than 20 dB below its own loud places, and above what nobody hears; pauses and
#: bursts shorter than these (seconds) do not count.
RELATIVE, FLOOR, WINDOW, PAUSE, BURST = 0.1, 1e-3, 0.05, 0.25, 0.1
KIND = "PeAudioFrameLevelModel"
#: From which probability on a frame counts (as in transformers' example of the network), descriptions of a pass, tokens that each
#: is padded to, and seconds that are heard at once.
LIKELY, BATCH, TOKENS, CHUNK = 0.3, 4, 77, 30.0


def active(wave: Wave, rate: int) -> list[list[int]]:
    """Where a source is to be heard, [first, last) in samples, by its own level: see RELATIVE."""
    size = max(1, round(WINDOW * rate))
    count = -(-len(wave) // size)
    power = np.pad(np.square(wave), (0, count * size - len(wave))).reshape(count, size)
    level = np.sqrt(power.mean(axis=1))
    loud = level >= max(RELATIVE * float(np.quantile(level, 0.95)), FLOOR)
    return spans(loud, size, len(wave), rate)


def spans(loud: NDArray[np.bool_], size: float, length: int, rate: int) -> list[list[int]]:
    """Frames of `size` samples that are loud as spans [first, last) of a sound of `length` samples, without PAUSE and BURST."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(np.int8)))
    joined: list[list[int]] = []
    for first, last in edges.reshape(-1, 2).tolist():
        if joined and (first - joined[-1][1]) * size < PAUSE * rate:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    kept = [[round(first * size), min(round(last * size), length)] for first, last in joined]
    return [span for span in kept if span[1] - span[0] >= BURST * rate]


class Asked:
    """A folder of transformers' with KIND. Raises UserError for anything else."""

    def __init__(self, path: str) -> None:
        self.path = folder(path, "--activity")
        class_of(self.path, "--activity", (KIND,))

    def load(self, device: str) -> Hearing:
        """The network on a device. Raises UserError, also where transformers does not have it."""
        model = transformer(KIND, self.path, "--activity", use_safetensors=True).to(device).eval()
        return Hearing(model, transformer("PeAudioProcessor", self.path, "--activity"), device)


class Hearing:
    """Says when what a description tells is heard."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self.model, self.processor, self.device = model, processor, device

    def __call__(self, wave: Wave, rate: int, queries: Sequence[str]) -> list[list[list[int]]]:
        """For each description its spans [first, last) in samples of the whole sound."""
        likely = [self._frames(wave[first : first + round(CHUNK * rate)], rate, queries)
                  for first in range(0, len(wave), round(CHUNK * rate))]  # fmt: skip
        size = self.processor.feature_extractor.hop_length * rate / self.processor.feature_extractor.sampling_rate
        return [spans(row > LIKELY, size, len(wave), rate) for row in np.concatenate(likely, axis=1)]

    def _frames(self, wave: Wave, rate: int, queries: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [queries, frames] of a stretch."""
        import soxr
        import torch

        extractor = self.processor.feature_extractor
        own = int(extractor.sampling_rate)
        heard = np.asarray(wave if rate == own else soxr.resample(wave, rate, own, "VHQ"), np.float32)
        told = extractor(heard, sampling_rate=own, return_tensors="pt")
        made = []
        with torch.no_grad():
            for batch, count in padded(list(queries), BATCH):
                words = self.processor.tokenizer(
                    batch, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
                )
                out = self.model(
                    input_ids=words["input_ids"].to(self.device),
                    attention_mask=words["attention_mask"].to(self.device),
                    input_values=told["input_values"].to(self.device),
                )
                made.append(out.logits_audio_text[0, :count].sigmoid().float().cpu().numpy())
        found: NDArray[np.float32] = np.concatenate(made)
        frames = max(1, round(len(wave) * own / rate / extractor.hop_length))
        return np.pad(found[:, :frames], ((0, 0), (0, max(0, frames - found.shape[1]))))
