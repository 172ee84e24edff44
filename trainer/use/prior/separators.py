"""Networks that take a sound apart by descriptions: a folder with AudioSep's checkpoint and CLAP's text branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.use.prior.networks import folder, quiet, read_json

Wave = NDArray[np.float64]
#: Queries of a pass: a longer list takes several, each of this size.
BATCH = 4
#: Sounds are filled up to a multiple of this many seconds, so that there are few shapes.
STEP = 2.5


class Network:
    """A folder: one *.ckpt (AudioSep's), and `clap`, a folder of transformers' ClapModel or ClapTextModelWithProjection."""

    def __init__(self, path: str) -> None:
        self.path = folder(path, "--separator")
        found = sorted(self.path.glob("*.ckpt"))
        if len(found) != 1:
            raise UserError(f"--separator {path} holds {len(found)} files *.ckpt: one is needed, AudioSep's")
        self.checkpoint, self.clap = found[0], self.path / "clap"
        read_json(self.clap / "config.json", "--separator")

    def header(self) -> dict[str, Any]:
        """What shapes the sources."""
        return {"separator": "AudioSep", "batch_size": BATCH}

    def load(self, device: str) -> AudioSep:
        """Both networks on a device. Raises UserError."""
        from transformers import AutoTokenizer, ClapTextModelWithProjection

        from javisc.trainer.use.prior.audiosep.weights import load

        quiet()
        model = load(self.checkpoint)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.clap, local_files_only=True)
            text: Any = ClapTextModelWithProjection.from_pretrained(
                self.clap, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"--separator {self.clap} is no CLAP: {' '.join(str(error).split())[:300]}") from error
        if (width := text.config.projection_dim) != model.film.get_submodule(
            "conv_block7a->conv_block1->beta1"
        ).in_features:
            raise UserError(
                f"--separator {self.clap}: its descriptions are of width {width}, the checkpoint wants another"
            )
        return AudioSep(model.to(device).eval(), text.to(device).eval(), tokenizer, device)


class AudioSep:
    """Separates a stretch of sound (a `Separator`)."""

    def __init__(self, model: Any, text: Any, tokenizer: Any, device: str) -> None:
        self.model, self.text, self.tokenizer, self.device = model, text, tokenizer, device

    def described(self, query: str) -> Any:
        """A description's condition [1, c], of length one; each is encoded alone, so that none sees another's length."""
        import torch.nn.functional as F

        length = min(self.tokenizer.model_max_length, 512)
        told = self.tokenizer(
            query, padding="max_length", max_length=min(length, 77), truncation=True, return_tensors="pt"
        )
        states = self.text(input_ids=told.input_ids.to(self.device), attention_mask=told.attention_mask.to(self.device))
        return F.normalize(states.text_embeds, dim=-1)

    def __call__(self, wave: Wave, rate: int, queries: Sequence[str]) -> list[Wave]:
        """The source [samples] of each query."""
        import soxr
        import torch

        from javisc.trainer.use.prior.audiosep.model import RATE
        from javisc.trainer.use.prior.stage import padded

        mixture = wave if rate == RATE else np.asarray(soxr.resample(wave, rate, RATE, "VHQ"))
        length = len(mixture)
        step = int(STEP * RATE)
        mixture = np.pad(mixture, (0, max(step, -(-length // step) * step) - length))
        made: list[Wave] = []
        with torch.no_grad():
            heard = torch.as_tensor(mixture, dtype=torch.float32, device=self.device)
            for batch, count in padded(list(queries), BATCH):
                conditions = torch.cat([self.described(query) for query in batch])
                out = self.model(heard[None].expand(BATCH, -1), conditions).cpu().numpy().astype(np.float64)
                made += [row[:length] for row in out[:count]]
        if rate != RATE:
            made = [np.asarray(soxr.resample(row, RATE, rate, "VHQ")) for row in made]
        return [np.pad(row[: len(wave)], (0, max(0, len(wave) - len(row)))) for row in made]
