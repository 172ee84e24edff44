"""The DiT's parts against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from javisc.kernels.temporal_attention.reference import rotate
from javisc.trainer.models.dit import attention, blocks, embeddings
from support.parity import Case, check, files, load

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _built(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    module.load_state_dict(weights, strict=True)
    return module.eval()


def _modulation(case: Case) -> blocks.Modulation:
    return blocks.Modulation(case.inputs["t"], case.inputs.get("t0"), case.inputs.get("x_mask"))


@pytest.mark.parametrize("path", files("rmsnorm"))
def test_rms_norm(path: Path) -> None:
    fixture = load(path)
    module = _built(attention.RMSNorm(fixture.config["dim"]), fixture.weights)
    for case in fixture.cases.values():
        check(module(case.inputs["x"]), case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("rope"))
def test_rope(path: Path) -> None:
    fixture = load(path)
    module = _built(attention.Rope(fixture.config["dim"]), fixture.weights)
    for case in fixture.cases.values():
        x = case.inputs["x"]
        ours = rotate(x, *module.turns(x.shape[-2]))
        check(ours, case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("attention"))
@torch.no_grad()
def test_self_attention(path: Path) -> None:
    fixture = load(path)
    config = fixture.config
    module = _built(attention.SelfAttention(config["dim"], config["heads"], config["qk_norm"]), fixture.weights)
    rope = attention.Rope(config["dim"] // config["heads"])
    for case in fixture.cases.values():
        x = case.inputs["x"]
        ours = module(x[:, :, None], rope.turns(x.shape[1]))[:, :, 0] if config["rope"] else module(x[:, None])[:, 0]
        check(ours, case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("text_cross_attention"))
@torch.no_grad()
def test_text_cross_attention(path: Path) -> None:
    fixture = load(path)
    config = fixture.config
    packed = _built(attention.TextCrossAttention(config["dim"], config["heads"]), fixture.weights)
    flattened = _built(attention.PriorCrossAttention(config["dim"], config["heads"]), fixture.weights)
    for case in fixture.cases.values():
        x, context = case.inputs["x"], case.inputs["cond"]
        if "lens" in case.scalars:
            ours = packed(x, attention.PackedText.of(context.flatten(0, 1), case.scalars["lens"]))
        else:
            ours = flattened(x, context, "batch")
        check(ours, case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("stdit3_block"))
@torch.no_grad()
def test_stdit3_block(path: Path) -> None:
    fixture = load(path)
    config = fixture.config
    width, heads = config["hidden"], config["heads"]
    module = blocks.STDiT3Block(width, heads, config["mlp_ratio"], config["qk_norm"], config["temporal"])
    _built(module, fixture.weights)
    rope = attention.Rope(width // heads)
    for case in fixture.cases.values():
        text = attention.PackedText.of(case.inputs["y"].flatten(0, 1), case.scalars["lens"])
        ours = module(case.inputs["x"], _modulation(case), text, case.scalars["T"], rope.turns(case.scalars["T"]))
        check(ours, case.outputs["x"], case.name)


@pytest.mark.parametrize("path", files("cross_stdit3_block"))
@pytest.mark.parametrize("scope", ["batch", "sample"])
@torch.no_grad()
def test_prior_block(path: Path, scope: str) -> None:
    fixture = load(path)
    config = fixture.config
    module = blocks.CrossSTDiT3Block(config["hidden"], config["heads"], config["mlp_ratio"], config["mode"], scope)
    _built(module, fixture.weights)
    for case in fixture.cases.values():
        inputs = case.inputs
        ours = module(
            inputs["x"], _modulation(case), inputs["spatial_prior"], inputs["temporal_prior"], case.scalars["T"]
        )
        name = "x" if scope == "batch" or len(ours) == 1 else "x_per_sample"
        check(ours, case.outputs[name], f"{case.name}/{name}")


@pytest.mark.parametrize("path", files("bi_attention"))
@torch.no_grad()
def test_bidirectional_attention(path: Path) -> None:
    fixture = load(path)
    config = fixture.config
    module = attention.BidirectionalAttention(config["m1"], config["m2"], config["embed"], config["heads"])
    _built(module, fixture.weights)
    for case in fixture.cases.values():
        inputs = case.inputs
        ours = module(inputs["x1"], inputs["x2"], inputs.get("mask1"), inputs.get("mask2"))
        for i in (1, 2):
            check(ours[i - 1], case.outputs[f"y{i}"], f"{case.name}/y{i}")


@pytest.mark.parametrize("path", files("va_cross_block"))
@torch.no_grad()
def test_va_block(path: Path) -> None:
    fixture = load(path)
    config = fixture.config
    module = blocks.CrossModalityBiAttentionBlock(config["m1"], config["m2"], config["hidden"], config["heads"])
    _built(module, fixture.weights)
    for case in fixture.cases.values():
        for i, ours in enumerate(module(case.inputs["x1"], case.inputs["x2"]), 1):
            check(ours, case.outputs[f"x{i}"], f"{case.name}/x{i}")


@pytest.mark.parametrize("path", files("caption_embedder"))
@torch.no_grad()
def test_caption_embedder(path: Path) -> None:
    fixture = load(path)
    config = fixture.config
    module = embeddings.CaptionEmbedder(config["cin"], config["hidden"], config["p"], config["tokens"])
    _built(module, fixture.weights)
    for case in fixture.cases.values():
        check(module(case.inputs["y"], case.inputs.get("drop")), case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("timestep_embedder"))
@torch.no_grad()
def test_timestep_embedder(path: Path) -> None:
    fixture = load(path)
    module = _built(embeddings.TimestepEmbedder(fixture.config["hidden"]), fixture.weights)
    for case in fixture.cases.values():
        check(module.sinusoid(case.inputs["t"]), case.outputs["sinusoid"], "sinusoid")
        check(module(case.inputs["t"]), case.outputs["y"], "y")


@pytest.mark.parametrize("path", files("size_embedder"))
@torch.no_grad()
def test_size_embedder(path: Path) -> None:
    fixture = load(path)
    module = _built(embeddings.SizeEmbedder(fixture.config["hidden"]), fixture.weights)
    for case in fixture.cases.values():
        s = case.inputs["s"]
        ours = module(s, case.scalars["bs"])
        check(ours[: case.scalars["bs"]], case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("pos_embed_1d", "pos_embed_2d"))
def test_position_codes(path: Path) -> None:
    fixture = load(path)
    cpu = torch.device("cpu")
    for case in fixture.cases.values():
        row = case.scalars
        if fixture.kind == "pos_embed_1d":
            ours = embeddings.position_code_1d(row["l"], fixture.config["dim"], device=cpu)
        else:
            ours = embeddings.position_code_2d(
                row["h"], row["w"], fixture.config["dim"], scale=row["scale"], base_size=row["base_size"], device=cpu
            )
        check(ours, case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("patch_embed_2d", "patch_embed_3d"))
@torch.no_grad()
def test_patch_embedders(path: Path) -> None:
    fixture = load(path)
    config = fixture.config
    kind = embeddings.PatchEmbed2d if fixture.kind == "patch_embed_2d" else embeddings.PatchEmbed3d
    module = _built(kind(tuple(config["patch"]), config["cin"], config["hidden"]), fixture.weights)
    for case in fixture.cases.values():
        check(module(case.inputs["x"]), case.outputs["y"], case.name)


@pytest.mark.parametrize("path", files("final_layer"))
@pytest.mark.parametrize("given", ["twice", "once"])
@torch.no_grad()
def test_final_layer(path: Path, given: str) -> None:
    fixture = load(path)
    config = fixture.config
    module = _built(blocks.T2IFinalLayer(config["hidden"], config["num_patch"], config["out"], given), fixture.weights)
    for case in fixture.cases.values():
        ours, theirs, mask = module(case.inputs["x"], _modulation(case)), case.outputs["y"], case.inputs.get("x_mask")
        if given == "once" and mask is not None:
            generated = mask.repeat_interleave(case.scalars["S"], dim=1)
            assert not torch.allclose(ours[~generated], theirs[~generated])
            ours, theirs = ours[generated], theirs[generated]
        check(ours, theirs, case.name)
