"""Networks of transformers that find and follow objects, or hear them, of about a million random weights, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from support.tiny_networks import roberta


def sam3(folder: Path) -> Path:
    """Sam3VideoModel for pictures of 224 pixels that takes whatever it sees for an object, three at most.

    Its tracker must be wider than its memory: transformers 5.23 joins them only then.
    """
    from transformers import (
        Sam2VideoVideoProcessor,
        Sam3ImageProcessor,
        Sam3VideoConfig,
        Sam3VideoModel,
        Sam3VideoProcessor,
    )

    torch.manual_seed(0)
    small = {"hidden_size": 128, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    vision = {
        "model_type": "sam3_vision_model", "fpn_hidden_size": 128, "scale_factors": [4.0, 2.0, 1.0, 0.5],
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "backbone_config": {
            "model_type": "sam3_vit_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "image_size": 224, "patch_size": 14, "window_size": 8, "global_attn_indexes": [0, 1],
            "pretrain_image_size": 224,
        },
    }  # fmt: skip
    words = {
        "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "projection_dim": 128, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    config = Sam3VideoConfig(
        detector_config={
            "model_type": "sam3", "vision_config": vision, "text_config": words, "geometry_encoder_config": small,
            "detr_encoder_config": small, "detr_decoder_config": {**small, "num_queries": 5},
            "mask_decoder_config": {"hidden_size": 128, "num_upsampling_stages": 2, "num_attention_heads": 4},
        },
        tracker_config={
            "model_type": "sam3_tracker_video", "vision_config": vision, "image_size": 224,
            "prompt_encoder_config": {"hidden_size": 128, "image_size": 224, "patch_size": 14, "mask_input_channels": 4},
            "mask_decoder_config": {"hidden_size": 128, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 128},
            "memory_attention_hidden_size": 128, "memory_attention_num_layers": 1,
            "memory_attention_feed_forward_hidden_size": 128, "memory_encoder_hidden_size": 128,
            "memory_encoder_output_channels": 64, "mask_downsampler_embed_dim": 128,
            "memory_attention_rope_feat_sizes": [16, 16], "memory_fuser_embed_dim": 128,
            "memory_fuser_intermediate_dim": 128, "memory_fuser_num_layers": 1,
        },
        low_res_mask_size=64, score_threshold_detection=0.0, new_det_thresh=0.0, hotstart_delay=0, det_nms_thresh=0.9,
        max_num_objects=3,
    )  # fmt: skip
    Sam3VideoModel(config).save_pretrained(folder)
    size = {"height": 224, "width": 224}
    pictures = Sam3ImageProcessor(size=size, mask_size={"height": 64, "width": 64})
    Sam3VideoProcessor(pictures, Sam2VideoVideoProcessor(size=size), roberta(32), target_size=224).save_pretrained(
        folder
    )
    return folder


def grounding_dino(folder: Path) -> Path:
    """GroundingDinoForObjectDetection with four queries, all of which score high."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    torch.manual_seed(0)
    letters = [chr(97 + number) for number in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin", "window_size": 7, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "image_size": 98,
            "out_indices": [2, 3, 4],
        },
        text_config={
            "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
            "max_position_embeddings": 64, "vocab_size": 100,
        },
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=8,
        decoder_ffn_dim=8, num_queries=4, encoder_n_points=2, decoder_n_points=2, num_feature_levels=4, max_text_len=64,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    GroundingDinoProcessor(pictures, BertTokenizerFast(tokenizer_object=tokenizer)).save_pretrained(folder)
    return folder


def edgetam(folder: Path) -> Path:
    """EdgeTamVideoModel for pictures of 128 pixels; its backbone is not timm's RepViT but four convolutions that give maps of the
    same shapes, registered in this process."""
    from transformers import (
        AutoConfig,
        AutoModel,
        EdgeTamVideoConfig,
        EdgeTamVideoModel,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import BaseModelOutput

    from support.tiny_networks import sam2

    class TinyConfig(PreTrainedConfig):
        model_type = "javisc_tiny_backbone"

    class Tiny(PreTrainedModel):
        config_class = TinyConfig
        main_input_name = "pixel_values"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            sizes = ((3, 8, 4), (8, 16, 2), (16, 24, 2), (24, 32, 2))
            self.steps = nn.ModuleList(nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in sizes)
            self.post_init()

        def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
            maps = []
            for step in self.steps:
                pixel_values = step(pixel_values)
                maps.append(pixel_values)
            return BaseModelOutput(last_hidden_state=maps)  # type: ignore[arg-type]

    AutoConfig.register("javisc_tiny_backbone", TinyConfig, exist_ok=True)
    AutoModel.register(TinyConfig, Tiny, exist_ok=True)
    torch.manual_seed(0)
    config = EdgeTamVideoConfig(
        vision_config={
            "model_type": "edgetam_vision_model", "backbone_config": {"model_type": "javisc_tiny_backbone"},
            "backbone_channel_list": [32, 24, 16, 8], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": 128, "mask_input_channels": 16},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 128},
        image_size=128, memory_attention_hidden_size=128, memory_attention_num_layers=1, memory_attention_mlp_hidden_size=128,
        memory_encoder_hidden_size=128, memory_encoder_output_channels=64, mask_downsampler_embed_dim=128,
        memory_attention_rope_feat_sizes=[8, 8], memory_attention_rope_k_sizes=[4, 4], perceiver_resampler_num_latents=16,
        perceiver_resampler_num_latents_2d=16, memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=128,
        memory_fuser_num_layers=1,
    )  # fmt: skip
    sam2(folder)  # the same processor
    EdgeTamVideoModel(config).save_pretrained(folder)
    return folder


def pe_audio(folder: Path) -> Path:
    """PeAudioFrameLevelModel at 8 kHz, fifty frames a second."""
    from transformers import PeAudioConfig, PeAudioFeatureExtractor, PeAudioFrameLevelModel, PeAudioProcessor

    torch.manual_seed(0)
    config = PeAudioConfig(
        text_config={
            "model_type": "modernbert", "vocab_size": 400, "pad_token_id": 1, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 37, "max_position_embeddings": 128, "bos_token_id": 0,
            "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2,
        },
        audio_config={
            "dac_config": {
                "encoder_hidden_size": 8, "downsampling_ratios": [4, 5, 8], "decoder_hidden_size": 16, "n_codebooks": 2,
                "codebook_size": 32, "codebook_dim": 8,
            },
            "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16,
        },
    )  # fmt: skip
    model = PeAudioFrameLevelModel(config)
    with torch.no_grad():
        model.text_audio_logit_scale.fill_(40.0)  # zero in a fresh one: every frame would be as likely
        model.text_audio_logit_bias.fill_(-0.85)  # the odds of 0.3
    model.save_pretrained(folder)
    PeAudioProcessor(PeAudioFeatureExtractor(sampling_rate=8000, hop_length=160), roberta(77)).save_pretrained(folder)
    return folder
