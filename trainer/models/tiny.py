"""Frozen networks of a few thousand random weights, the same from the same seed: for recipes that run on a CPU, and for tests.

They have every part and every shape rule of the real ones and know nothing: a model trained on them learns to denoise their
latents, no more.
"""

from __future__ import annotations

from typing import Any

import torch

from javisc.trainer.models.prior import STIBPrior
from javisc.trainer.models.prior.config import TINY as TINY_PRIOR
from javisc.trainer.models.text.imagebind import ImageBindText
from javisc.trainer.models.text.t5 import T5
from javisc.trainer.models.text.tokens import ClipTokens, ImageBindEncoder, byte_pair_tokenizer
from javisc.trainer.models.vae.audio import AudioLDM2
from javisc.trainer.models.vae.opensora import OpenSoraVAE

WIDTH = TINY_PRIOR.text_emb_dim
SPATIAL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (4, 4, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}
TEMPORAL: dict[str, Any] = {"filters": 4, "res": 1, "groups": 2}


def t5(length: int, seed: int = 0) -> T5:
    """Two layers of width 32 over the bytes of a caption."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    marks = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    kind: Any = PreTrainedTokenizerFast
    tokenizer = kind(tokenizer_object=raw, **named)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options: dict[str, Any] = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
        model = T5EncoderModel(T5Config(vocab_size=len(vocabulary), feed_forward_proj="gated-gelu", **options))
    return T5(model, tokenizer, length=length)


def imagebind_text(seed: int = 0, *, length: int = 77) -> ImageBindEncoder:
    """Two blocks of width 32 over the bytes of a caption."""
    tokenizer = byte_pair_tokenizer([])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = ImageBindText(positions=length, vocabulary=len(tokenizer), width=WIDTH, blocks=2, heads=1)
    return ImageBindEncoder(tower, ClipTokens(tokenizer, length=length))


def video_vae(seed: int = 0) -> OpenSoraVAE:
    """OpenSora's autoencoder with 4 to 16 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OpenSoraVAE(SPATIAL, TEMPORAL)


def audio_vae(seed: int = 0) -> AudioLDM2:
    """AudioLDM2's autoencoder and vocoder with 4 to 32 channels."""
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    kind: Any = AutoencoderKL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coder = kind(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=8,
            scaling_factor=0.41,
            mid_block_add_attention=False,
        )
        vocoder = SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=64,
                upsample_initial_channel=32,
                upsample_rates=[5, 4, 2, 2, 2],
                upsample_kernel_sizes=[16, 16, 8, 4, 4],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1, 3, 5]],
                initializer_range=0.2,  # loud enough to survive a file
            )
        )
    return AudioLDM2(coder, vocoder)


def prior(seed: int = 0) -> STIBPrior:
    """An untrained prior of 8 + 8 tokens of width 32, without its training-only part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return STIBPrior(TINY_PRIOR)
