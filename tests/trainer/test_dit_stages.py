"""Fresh weights, where stages start from, and what learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.dit.stages import audio_from_video, freeze, initialise, start_from


def fresh(preset: str, seed: int = 0) -> VASTDiT3:
    torch.manual_seed(seed)
    model = VASTDiT3(PRESETS[preset])
    initialise(model)
    return model


def opensora(seed: int = 1) -> dict[str, Tensor]:
    """Random weights under the names that OpenSora's model has."""
    state = fresh("VASTDiT3-tiny", seed).state_dict()
    new = ("audio_", "ax_", "st_", "video_st_", "va_")
    return {name: torch.randn_like(value) for name, value in state.items() if not name.startswith(new)}


def inputs(model: VASTDiT3, rows: int = 2) -> dict[str, Tensor]:
    c = model.config
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "video": noise(rows, 4, 3, 6, 6),
        "audio": noise(rows, 8, 8, 4),
        "timestep": torch.tensor([100.0, 700.0]),
        "y": noise(rows, 1, c.model_max_length, c.caption_channels),
        "mask": torch.arange(c.model_max_length)[None].repeat(rows, 1) < torch.tensor([[3], [9]]),
        "fps": torch.full((rows,), 24.0),
        "height": torch.full((rows,), 48.0),
        "width": torch.full((rows,), 48.0),
        "spatial_prior": noise(rows, c.spatial_prior_len, c.st_prior_channel),
        "temporal_prior": noise(rows, c.temporal_prior_len, c.st_prior_channel),
    }


def test_fresh_blocks_are_silent_where_they_should_be() -> None:
    model = fresh("VASTDiT3-tiny")
    for name, parameter in model.named_parameters():
        head = name.split(".")[0]
        video = head in (
            "t_embedder",
            "fps_embedder",
            "t_block",
            "y_embedder",
            "spatial_blocks",
            "temporal_blocks",
            "final_layer",
        )
        if video and name.endswith(".bias"):
            assert not parameter.any(), name
        silent = head in ("temporal_blocks", "audio_temporal_blocks", "video_st_prior_blocks", "audio_st_prior_blocks")
        if silent and name.endswith(("proj.weight", "mlp.fc2.weight")):
            assert not parameter.any(), name
        if head == "audio_temporal_blocks" and name.endswith("proj.bias"):
            assert parameter.any(), name
    x, y = torch.randn(1, 5, 64), torch.randn(1, 4, 64)
    out = model.va_cross_blocks[0](x, y)
    assert torch.equal(out[0], x) and torch.equal(out[1], y)
    assert not model.fps_embedder(torch.tensor([24.0])).any()


def test_stage_one_starts_as_a_copy_of_the_video_branch() -> None:
    model = fresh("VASTDiT3-tiny-audio")
    weights = opensora()
    report = start_from(model, audio_from_video(weights))
    state = model.state_dict()
    for name, value in weights.items():
        if name.startswith(("spatial_blocks.", "temporal_blocks.", "y_embedder.")):
            assert torch.equal(state[f"audio_{name}"], value), name
    assert {name.split(".")[0] for name in report.fresh} == {"ax_embedder", "audio_final_layer"}
    assert {name.split(".")[0] for name in report.unused} == {"spatial_blocks", "temporal_blocks"}


def test_stage_three_starts_from_stage_one_and_opensora() -> None:
    audio = fresh("VASTDiT3-tiny-audio", 5).state_dict()
    weights = opensora()
    model = fresh("VASTDiT3-tiny")
    report = start_from(model, audio, weights)
    state = model.state_dict()
    assert torch.equal(state["audio_spatial_blocks.0.attn.qkv.weight"], audio["audio_spatial_blocks.0.attn.qkv.weight"])
    assert torch.equal(state["t_embedder.mlp.0.weight"], weights["t_embedder.mlp.0.weight"])
    assert all(name.startswith(("st_", "video_st_", "audio_st_", "va_")) for name in report.fresh)
    assert not report.unused


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="tensors are in none of the sources"):
        start_from(fresh("VASTDiT3-tiny"), opensora())
    wrong = opensora() | {"t_embedder.mlp.0.weight": torch.zeros(3, 3)}
    with pytest.raises(UserError, match=r"has the shape \[3, 3\], the model \[64, 256\]"):
        start_from(fresh("VASTDiT3-tiny-audio"), audio_from_video(wrong))


@pytest.mark.parametrize("preset", ["VASTDiT3-tiny", "VASTDiT3-tiny-audio"])
def test_only_what_learns_gets_gradients(preset: str) -> None:
    model = fresh(preset)
    freeze(model)
    given = inputs(model)
    if model.config.audio_only:
        given = {name: value for name, value in given.items() if "prior" not in name}
    out = model(**given)
    sum(value.square().mean() for value in out.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad or parameter.grad is None, name
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    if model.config.audio_only:
        assert learning == {
            "ax_embedder",
            "audio_y_embedder",
            "audio_spatial_blocks",
            "audio_temporal_blocks",
            "audio_final_layer",
        }
    else:
        blocks = {"video_st_prior_blocks", "audio_st_prior_blocks", "va_cross_blocks"}
        assert learning == {"st_t_block", "st_prior_embedder", *blocks}


def test_captions_and_prior_are_dropped_in_training_only_and_apart() -> None:
    torch.manual_seed(0)
    model = fresh("VASTDiT3-tiny")
    embedder = model.y_embedder
    y = torch.randn(400, 1, *embedder.y_embedding.shape)
    embedder.eval()
    assert torch.equal(embedder(y), embedder.y_proj(y))
    embedder.train()
    null = embedder.y_proj(embedder.y_embedding)
    dropped = (embedder(y)[:, 0] - null).abs().amax((1, 2)) < 1e-6
    assert 0.05 < dropped.float().mean() < 0.16
    with pytest.raises(ValueError, match="rows to drop have"):
        embedder(y[:, :, :-1])


def test_a_missing_input_is_named() -> None:
    model = fresh("VASTDiT3-tiny").eval()
    given = inputs(model)
    for name, message in (("spatial_prior", "must be given"), ("video", "needs video"), ("y", "give y or conditions")):
        with pytest.raises(ValueError, match=message):
            model(**given | {name: None})
    with pytest.raises(ValueError, match="must divide by the audio patch"):
        model(**given | {"audio": given["audio"][:, :, :7]})
    with pytest.raises(ValueError, match="x_mask needs ax_mask"):
        model(**given, x_mask=torch.zeros(2, 3, dtype=torch.bool))


def test_every_block_reads_tokens_in_one_piece() -> None:
    """Sums keep the layout of their first term: what leaves the patch embedders transposed stays so through all blocks."""
    config = PRESETS["VASTDiT3-tiny"]
    model = VASTDiT3(config).eval()
    seen = []

    def look(_: torch.nn.Module, inputs: tuple[object, ...]) -> None:
        seen.append(isinstance(inputs[0], torch.Tensor) and inputs[0].is_contiguous())

    for modules, index in model.blocks():
        modules[index].register_forward_pre_hook(look)
    prior = torch.randn(1, config.spatial_prior_len, config.st_prior_channel)
    model(
        torch.randn(1, 4, 3, 4, 6), torch.randn(1, 8, 8, 4), torch.full((1,), 400.0),
        torch.randn(1, 1, config.model_max_length, config.caption_channels),
        fps=torch.full((1,), 24.0), height=32.0, width=48.0, spatial_prior=prior, temporal_prior=prior,
    )  # fmt: skip
    assert len(seen) == 7 * config.depth and all(seen)
