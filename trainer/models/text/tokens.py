"""CLIP byte-pair tokens as ImageBind's text tower takes them."""

from __future__ import annotations

import gzip
import html
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.moving import to_device
from javisc.trainer.models.frozen import need_weights
from javisc.trainer.models.text.imagebind import ImageBindText

START, END, LENGTH = 49406, 49407, 77
_MERGES = 49152 - 256 - 2
_MAX_BYTES = 64 << 20


def clean(text: str) -> str:
    """Mend broken encodings, undo HTML escapes twice, join white space, lower the case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip().lower()


class ClipTokens:
    """Captions → ids [B, 77]: start, tokens, end, zeros. A longer caption is cut and loses its end token, as in the
    original."""

    def __init__(self, tokenizer: Any, *, length: int = LENGTH) -> None:
        self.tokenizer, self.length = tokenizer, length

    @classmethod
    def load(cls, path: Path | str | None, *, length: int = LENGTH) -> ClipTokens:
        """`path`: a folder with a CLIP tokenizer (`vocab.json`, `merges.txt`), or `bpe_simple_vocab_16e6.txt.gz`."""
        from transformers import CLIPTokenizer

        path = need_weights(path, "clip_tokenizer")
        if path.is_dir():
            return cls(CLIPTokenizer.from_pretrained(path, local_files_only=True), length=length)
        return cls(byte_pair_tokenizer(_read_merges(path)), length=length)

    def __call__(self, captions: list[str]) -> Tensor:
        out = torch.zeros(len(captions), self.length, dtype=torch.long)
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for row, caption in enumerate(captions):
            ids = self.tokenizer(clean(caption), add_special_tokens=False)["input_ids"]
            ids = [start, *ids, end][: self.length]
            out[row, : len(ids)] = torch.tensor(ids)
        return out


def byte_pair_tokenizer(merges: list[tuple[str, str]]) -> Any:
    """CLIP's tokenizer for these merges: the bytes, the bytes that end a word, the merges, start and end."""
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=cast(Any, merges))


def _byte_alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes, in the order of the published vocabulary: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        with gzip.open(path) as file:
            lines = file.read(_MAX_BYTES).decode("utf-8").split("\n")[1 : _MERGES + 1]
        merges = [(a, b) for a, b in (line.split() for line in lines)]
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is no gzip file of byte-pair merges ({error}); give bpe_simple_vocab_16e6.txt.gz"
        ) from None
    return merges


class ImageBindEncoder:
    """The frozen tower and its tokens: captions → hidden states [B, 77, C]."""

    def __init__(self, tower: ImageBindText, tokens: ClipTokens) -> None:
        self.tower, self.tokens = tower.eval(), tokens

    def encode(self, captions: list[str]) -> Tensor:
        device = next(self.tower.parameters()).device
        return self.tower(to_device(self.tokens(captions), device))
