"""The T5 encoder that both text branches of the joint DiT read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from javisc.trainer.engine.moving import to_device
from javisc.trainer.models.frozen import need_weights


class T5:
    """A frozen T5 encoder and its tokenizer; captions are padded or cut to `length` tokens."""

    def __init__(self, model: Any, tokenizer: Any, *, length: int = 300) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.length = tokenizer, length

    @classmethod
    def load(
        cls,
        folder: Path | str | None,
        *,
        length: int = 300,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> T5:
        """From a local folder in `transformers`' own layout."""
        from transformers import AutoTokenizer, T5EncoderModel

        path = need_weights(folder, "t5")
        model: Any = T5EncoderModel.from_pretrained(path, local_files_only=True, dtype=dtype)
        return cls(model.to(device), AutoTokenizer.from_pretrained(path, local_files_only=True), length=length)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions → last hidden state [B, 1, L, C] and mask [B, L], which stays on the CPU: its reader waits for no device."""
        tokens = self.tokenizer(
            captions,
            max_length=self.length,
            padding="max_length",
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        there = self.model.device
        hidden = self.model(input_ids=to_device(ids, there), attention_mask=self._seen(mask)).last_hidden_state
        return hidden[:, None], mask

    def _seen(self, mask: Tensor) -> Tensor:
        """The mask as the model's attention takes it. Of one in two dimensions transformers would read whether it is full."""
        seen = to_device(mask, self.model.device)
        if self.model.config._attn_implementation != "sdpa":
            return seen
        return seen.bool()[:, None, None, :].expand(-1, -1, mask.shape[1], -1)
