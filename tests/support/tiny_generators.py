"""Text-to-sound pipelines of diffusers with a few thousand random weights, saved as folders; nothing is downloaded.

The sizes are near those of diffusers' own tests of each pipeline; the tokenizers are made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support.tiny_networks import t5

#: Samples a second of every one.
RATE = 2000


def _oobleck(latents: int) -> Any:
    from diffusers import AutoencoderOobleck

    return AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[4, 5], decoder_channels=3, decoder_input_channels=latents, audio_channels=2,
        channel_multiples=[2, 4], sampling_rate=RATE,
    )  # fmt: skip


def _saved(pipe: Any, folder: Path) -> Path:
    """Save a pipeline. What starts at zero, and is then nothing but the identity, gets random weights, too."""
    with torch.no_grad():
        for part in pipe.components.values():
            for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
                if not weight.any():
                    weight.normal_(0, 0.2)
    pipe.save_pretrained(str(folder))
    return folder


def stable_audio(folder: Path) -> Path:
    """StableAudioPipeline, 0.64 s at most, with a scheduler that needs no torchsde."""
    from diffusers import (
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    pipe = StableAudioPipeline(
        transformer=StableAudioDiTModel(
            sample_size=64, in_channels=3, num_layers=2, attention_head_dim=4, num_key_value_attention_heads=2, out_channels=3,
            cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8, cross_attention_input_dim=4,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction", sigma_data=1.0),
        vae=_oobleck(3),
        text_encoder=T5EncoderModel(T5Config(vocab_size=200, d_model=16, d_ff=37, d_kv=8, num_heads=2, num_layers=2)),
        tokenizer=t5(25),
        projection_model=StableAudioProjectionModel(text_encoder_dim=16, conditioning_dim=4, min_value=0, max_value=32),
    )  # fmt: skip
    return _saved(pipe, folder)


def stable_audio_3(folder: Path) -> Path:
    """StableAudio3Pipeline."""
    from diffusers import (
        AutoencoderSAME,
        FlowMatchEulerDiscreteScheduler,
        StableAudio3DiTModel,
        StableAudio3DurationEmbedder,
        StableAudio3Pipeline,
    )
    from transformers import T5GemmaConfig, T5GemmaEncoderModel
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

    torch.manual_seed(0)
    module = T5GemmaModuleConfig(
        vocab_size=200, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, max_position_embeddings=64, sliding_window=64, layer_types=["full_attention", "full_attention"],
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ).to_dict()  # fmt: skip
    pipe = StableAudio3Pipeline(
        transformer=StableAudio3DiTModel(
            io_channels=8, patch_size=1, embed_dim=32, depth=2, num_heads=4, cond_token_dim=16, global_cond_dim=16,
            local_add_cond_dim=5, timestep_features_dim=16, ff_mult=2, num_memory_tokens=3, use_differential_attention=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderSAME(
            audio_channels=2, patch_size=2, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(2,),
            encoder_transformer_depths=(1,), latent_dim=8, use_differential_attention=False, dim_heads=4, ff_mult=2,
            sampling_rate=RATE,
        ),
        text_encoder=T5GemmaEncoderModel(T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False)),
        tokenizer=t5(25),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
    )  # fmt: skip
    return _saved(pipe, folder)


def longcat(folder: Path) -> Path:
    """LongCatAudioDiTPipeline."""
    from diffusers import LongCatAudioDiTPipeline, LongCatAudioDiTTransformer, LongCatAudioDiTVae
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    pipe = LongCatAudioDiTPipeline(
        tokenizer=t5(),
        text_encoder=UMT5EncoderModel(UMT5Config(d_model=32, num_layers=1, num_heads=4, d_ff=64, vocab_size=200)),
        transformer=LongCatAudioDiTTransformer(
            dit_dim=64, dit_depth=2, dit_heads=4, dit_text_dim=32, latent_dim=8, text_conv=False
        ),
        vae=LongCatAudioDiTVae(
            in_channels=1, channels=16, c_mults=[1, 2], strides=[4], latent_dim=8, encoder_latent_dim=16, downsampling_ratio=16,
            sample_rate=RATE,
        ),
    )  # fmt: skip
    return _saved(pipe, folder)


def ace_step(folder: Path) -> Path:
    """AceStepPipeline."""
    from diffusers import (
        AceStepConditionEncoder,
        AceStepPipeline,
        AceStepTransformer1DModel,
        FlowMatchEulerDiscreteScheduler,
    )
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    common = {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    pipe = AceStepPipeline(
        transformer=AceStepTransformer1DModel(
            **common, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, sliding_window=16
        ),
        text_encoder=Qwen3Model(
            Qwen3Config(**common, num_hidden_layers=2, vocab_size=200, max_position_embeddings=256, pad_token_id=0)
        ),
        tokenizer=t5(256),
        condition_encoder=AceStepConditionEncoder(
            **common, text_hidden_dim=32, timbre_hidden_dim=8, num_lyric_encoder_hidden_layers=2,
            num_timbre_encoder_hidden_layers=2, sliding_window=16,
        ),
        vae=_oobleck(8),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip
    return _saved(pipe, folder)


#: By the class that model_index.json names.
MAKERS = {
    "StableAudioPipeline": stable_audio,
    "StableAudio3Pipeline": stable_audio_3,
    "LongCatAudioDiTPipeline": longcat,
    "AceStepPipeline": ace_step,
}
