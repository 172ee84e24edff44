"""Networks of a few thousand random weights with the layout of published ones, saved as folders; nothing is downloaded.

AudioLDM2's sizes are those of diffusers' own test of that pipeline; its tokenizers are made here.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

WORDS = string.ascii_lowercase + " .,"


def roberta(length: int = 77) -> object:
    """A byte-level tokenizer with RoBERTa's special tokens."""
    from transformers import RobertaTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    ))  # fmt: skip
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=length)


def t5(length: int = 77) -> object:
    """A unigram tokenizer with T5's special tokens."""
    from transformers import T5TokenizerFast

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -10.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in WORDS if letter != " "),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, model_max_length=length, extra_ids=0)


def clap_text(width: int = 16) -> dict[str, object]:
    return {
        "bos_token_id": 0, "eos_token_id": 2, "hidden_size": 16, "intermediate_size": 37, "layer_norm_eps": 1e-5,
        "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 1, "vocab_size": 1000, "projection_dim": width,
    }  # fmt: skip


def audioldm2(folder: Path, sample_size: int = 64) -> Path:
    """A folder of AudioLDM2Pipeline at 16 kHz whose sounds last `sample_size` / 2000 s at most."""
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
        AutoencoderKL,
        DDIMScheduler,
    )
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2Model,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        T5Config,
        T5EncoderModel,
    )

    torch.manual_seed(0)
    clap_audio = {
        "spec_size": 64, "window_size": 4, "num_mel_bins": 64, "intermediate_size": 37, "depths": [2, 2], "hidden_size": 192,
        "num_attention_heads": [2, 2], "num_hidden_layers": 2, "projection_dim": 16, "patch_size": 2, "patch_stride": 2,
        "patch_embed_input_channels": 4,
    }  # fmt: skip
    language = GPT2Model(GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=1000, n_ctx=200, n_positions=200))
    language.config.max_new_tokens = 8
    config = SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]], normalize_before=False,
    )  # fmt: skip
    vocoder = SpeechT5HifiGan(config)
    with torch.no_grad():
        vocoder.conv_post.weight.mul_(500)  # random weights of their usual size are inaudible
    pipe = AudioLDM2Pipeline(
        unet=AudioLDM2UNet2DConditionModel(
            block_out_channels=(32, 64), layers_per_block=2, sample_size=sample_size, in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=([None, 16, 32], [None, 16, 32]),
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
        vae=AutoencoderKL(
            block_out_channels=[32, 64], in_channels=1, out_channels=1, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        ),
        text_encoder=ClapModel(ClapConfig(text_config=clap_text(), audio_config=clap_audio, projection_dim=16)),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=32100, d_model=32, d_ff=37, d_kv=8, num_heads=2, num_layers=2)),
        tokenizer=roberta(),
        tokenizer_2=t5(),
        feature_extractor=ClapFeatureExtractor(hop_length=7900),
        language_model=language,
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16),
        vocoder=vocoder,
    )  # fmt: skip
    pipe.save_pretrained(str(folder))
    return folder


def sam2(folder: Path) -> Path:
    """A folder of Sam2VideoModel with 1.2 million weights, for pictures of 128 pixels."""
    from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor, Sam2VideoVideoProcessor
    from transformers.models.sam2 import Sam2ImageProcessor

    torch.manual_seed(0)
    config = Sam2VideoConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 12, "num_attention_heads": 1,
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [12, 24, 48, 96], "num_attention_heads_per_stage": [1, 2, 4, 8],
                "patch_stride": [4, 4], "image_size": [128, 128], "global_attention_blocks": [3],
                "window_size_per_stage": [8, 4, 8, 4], "window_positional_embedding_background_size": [7, 7],
            },
            "backbone_channel_list": [96, 48, 24, 12], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": 128, "mask_input_channels": 16},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 128},
        image_size=128, memory_attention_hidden_size=128, memory_attention_num_layers=1, memory_encoder_hidden_size=128,
        memory_attention_feed_forward_hidden_size=128, memory_encoder_output_channels=64, mask_downsampler_embed_dim=128,
        memory_attention_rope_feat_sizes=[8, 8], memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=128,
        memory_fuser_num_layers=1,
    )  # fmt: skip
    Sam2VideoModel(config).save_pretrained(folder)
    size = {"height": 128, "width": 128}
    Sam2VideoProcessor(
        Sam2ImageProcessor(size=size, mask_size={"height": 32, "width": 32}),
        Sam2VideoVideoProcessor(size=size),
        target_size=128,
    ).save_pretrained(folder)
    return folder


def audiosep(folder: Path) -> Path:
    """A folder with a narrow ResUNet30 in the published layout, a numpy scalar included, and a tiny CLAP."""
    import numpy as np
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    from javisc.trainer.use.prior.audiosep.model import ResUNet30

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = ResUNet30((4, 4, 6, 6, 8, 8, 8), 512)
    state = {f"ss_model.{name}": value for name, value in model.state_dict().items()}
    state |= {"ss_model.base.stft.conv_real.weight": torch.zeros(2), "query_encoder.model.logit": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 3, "best": np.float64(0.5)}, folder / "audiosep.ckpt")
    ClapTextModelWithProjection(ClapTextConfig(**clap_text(512))).save_pretrained(folder / "clap")
    roberta().save_pretrained(folder / "clap")  # type: ignore[attr-defined]
    return folder
