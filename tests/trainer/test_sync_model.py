"""What the parity sets cannot show of the sync models: initialisation, dropout, frozen trunks, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.sync.attention import attend
from javisc.trainer.models.sync.config import (
    AVSyncConfig,
    FullAttentionConfig,
    FusionConfig,
    SelectorConfig,
    SyncTransformerConfig,
    TrunkConfig,
)
from javisc.trainer.models.sync.model import AudioClassifier, AVSync, to_channels_last
from javisc.trainer.models.sync.official import (
    audio_trunk_state,
    build_transformer,
    transformer_config,
    visual_trunk_state,
)
from javisc.trainer.models.sync.resnet import ResNet18Audio
from javisc.trainer.models.sync.s3d import S3D
from javisc.trainer.models.sync.transformer import FullAttention, SyncTransformer, TokenDropout


def small(**transformer: object) -> AVSyncConfig:
    """A whole model that runs in milliseconds."""
    settings: dict[str, object] = {
        "classes": 5,
        "width": 64,
        "visual_shape": (4, 4, 4),
        "audio_shape": (9, 4),
        "visual_selector": SelectorConfig(n_layer=1, n_head=4, num_selectors=3),
        "audio_selector": SelectorConfig(n_layer=1, n_head=4, num_selectors=2),
        "fusion": FusionConfig(n_layer=1, n_head=4),
        **transformer,
    }
    return AVSyncConfig(
        visual_trunk=TrunkConfig(size="small"),
        audio_trunk=TrunkConfig(size="small"),
        audio_bridge="conv",
        transformer=SyncTransformerConfig(**settings),  # type: ignore[arg-type]
    )


def clip(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 5, 3, 32, 32), torch.randn(batch, 1, 65, 30)


def test_initial_values_are_the_published_ones() -> None:
    torch.manual_seed(0)
    state = SyncTransformer(SyncTransformerConfig()).state_dict()
    for key, value in state.items():
        if key.endswith(("selectors", "_tok")):
            assert value.std().item() == pytest.approx(1, rel=0.1), key
        elif key.endswith("_embed.weight") or (key.endswith("weight") and value.ndim == 2):
            # Position tables too: the reference's uniform start of theirs is overwritten when the whole is initialised.
            assert value.std().item() == pytest.approx(0.02, rel=0.1), key
            assert abs(value.mean().item()) < 6 * 0.02 / math.sqrt(value.numel()), key
        elif key.endswith("bias"):
            assert not value.any(), key
        else:
            assert (value == 1).all(), key


def test_the_audio_stem_keeps_torchs_default_initialisation() -> None:
    torch.manual_seed(0)
    model = ResNet18Audio()
    bound = 1 / math.sqrt(49)  # Kaiming uniform with a = sqrt(5) over 1x7x7 inputs
    assert model.conv1.weight.abs().max() <= bound
    assert model.conv1.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    fan_out = 64 * 9
    assert model.layer1[0].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


def test_dropout_sits_where_the_reference_has_it() -> None:
    model = AVSync()
    drops = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p == 0.1}
    want = set()
    for stack in ("v_selector", "a_selector"):
        want |= {f"transformer.{stack}.drop", f"transformer.{stack}.context_drop"}
        want |= {
            f"transformer.{stack}.blocks.{i}.{part}"
            for i in range(3)
            for part in ("attn.resid_drop", "xattn.resid_drop", "mlp.3")
        }
    want |= {"transformer.global_transformer.drop"}
    want |= {
        f"transformer.global_transformer.blocks.{i}.{part}" for i in range(3) for part in ("attn.resid_drop", "mlp.3")
    }
    assert drops == want
    assert {module.attn_pdrop for module in model.modules() if hasattr(module, "attn_pdrop")} == {0.1}


def test_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        model = AVSync()
    assert sum(p.numel() for p in model.parameters()) == 54_348_652
    assert sum(b.numel() for b in model.buffers()) == 30_913


def test_attention_dropout_is_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    model = AVSync(small()).train()
    for trunk in (model.vfeat_extractor, model.afeat_extractor):
        trunk.eval()  # their norm statistics must not move between the runs
    vis, aud = clip()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(vis, aud)[1]

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    model.eval()
    assert torch.equal(run(3), run(4))


def test_whole_token_dropout_drops_whole_tokens_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    x = TokenDropout(0.25).train()(torch.ones(8, 500, 3))
    assert x.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(x[..., 0], x[..., 2])
    assert (x[..., 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(TokenDropout(0.25).eval()(x), x)


def test_a_frozen_trunk_keeps_weights_and_norm_statistics() -> None:
    config = small()
    config.visual_trunk.trained = False
    model = AVSync(config).train()
    before = {key: value.clone() for key, value in model.vfeat_extractor.state_dict().items()}
    moving = model.afeat_extractor.bn1.running_mean.clone()
    loss, _ = model(*clip(), torch.tensor([0, 4]))
    assert loss is not None
    loss.backward()
    assert all(p.grad is None for p in model.vfeat_extractor.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.v_bridge.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.vfeat_extractor.state_dict().items())
    assert not torch.equal(model.afeat_extractor.bn1.running_mean, moving)


@pytest.mark.parametrize("kind", ["learned", "zeroinit", "none"])
@pytest.mark.parametrize("norm", ["layer", "l2", "identity"])
@pytest.mark.parametrize("fusion", ["transformer", "mlp"])
def test_every_variant_gives_every_parameter_a_gradient(kind: str, norm: str, fusion: str) -> None:
    torch.manual_seed(0)
    config = SyncTransformerConfig(
        classes=3,
        width=12,
        visual_shape=(2, 2, 3),
        audio_shape=(3, 2),
        pre_norm=norm,
        visual_positions=kind,
        audio_positions=kind,
        visual_selector=SelectorConfig(n_layer=2, n_head=2, num_selectors=2, positions=kind != "none"),
        audio_selector=SelectorConfig(n_layer=1, n_head=3, num_selectors=3, positions=kind != "none"),
        fusion=FusionConfig(kind=fusion, n_layer=1, n_head=2),
    )
    model = SyncTransformer(config)
    logits = model(torch.randn(2, 2, 12, 2, 3), torch.randn(2, 12, 3, 2))
    assert logits.shape == (2, 3)
    (logits * torch.randn_like(logits)).sum().backward()
    # The key's bias adds a constant to all scores of a query, which softmax ignores.
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name, p in model.named_parameters() if not p.grad.any() and not name.endswith("key.bias")]


def test_full_attention_trains_in_the_whole_model() -> None:
    config = small()
    config.full_attention = FullAttentionConfig(
        5, 64, (4, 4, 4), (9, 4), stack=FusionConfig(n_layer=1, n_head=4, tok_pdrop=0.1)
    )
    model = AVSync(config)
    assert isinstance(model.transformer, FullAttention)
    loss, logits = model(*clip(), torch.tensor([1, 2]))
    assert loss is not None and logits.shape == (2, 5)
    loss.backward()


def test_channels_last_changes_the_layout_alone() -> None:
    torch.manual_seed(0)
    model = AVSync(small()).eval()
    vis, aud = clip(1)
    with torch.no_grad():
        want = model(vis, aud)[1]
        state = {key: value.clone() for key, value in model.state_dict().items()}
        got = to_channels_last(model)(vis, aud)[1]
    assert model.vfeat_extractor.base[0].conv_s.weight.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_clip_longer_than_the_table_is_refused_with_the_sizes() -> None:
    model = SyncTransformer(SyncTransformerConfig(width=64, visual_shape=(2, 2, 2), audio_shape=(2, 2)))
    with pytest.raises(IndexError, match="3 positions along time, but the table has 2"):
        model(torch.randn(1, 3, 64, 2, 2), torch.randn(1, 64, 2, 2))
    with pytest.raises(ValueError, match="64 channels, audio features 32"):
        model(torch.randn(1, 2, 64, 2, 2), torch.randn(1, 32, 2, 2))


def test_unknown_choices_name_the_option_and_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"pre_norm='batch': it may be layer, l2, identity"):
        SyncTransformer(SyncTransformerConfig(pre_norm="batch"))
    with pytest.raises(UserError, match=r"fusion\.kind='sum'"):
        SyncTransformer(SyncTransformerConfig(fusion=FusionConfig(kind="sum")))
    with pytest.raises(UserError, match=r"visual_trunk\.size='huge'"):
        S3D("huge")
    with pytest.raises(ValueError, match="width=1024"):
        AVSync(AVSyncConfig(visual_bridge="identity"))
    with pytest.raises(UserError, match=r"transformer\.target='os\.system' is not supported"):
        build_transformer({"target": "os.system", "params": {}})
    with pytest.raises(UserError, match="no v_selector_cfg|no global_transformer_cfg|no visual_block_shape"):
        transformer_config({"target": "x.SparseSync", "params": {"num_offset_cls": 3}})


def test_strict_loading_names_what_differs() -> None:
    model = AVSync(small())
    state = model.state_dict()
    less = {key: value for key, value in state.items() if key != "transformer.off_head.weight"}
    with pytest.raises(UserError, match=r"here\.pt .*1 tensors missing \(first 'transformer\.off_head\.weight'"):
        load_strictly(model, less, "here.pt")
    with pytest.raises(UserError, match=r"1 unknown \(first 'module\.x'\)"):
        load_strictly(model, {**state, "module.x": torch.zeros(1)}, "here.pt")
    with pytest.raises(
        UserError,
        match=r"1 of another shape \(first 'transformer\.off_head\.weight': \[3, 64\], the model has \[5, 64\]\)",
    ):
        load_strictly(model, {**state, "transformer.off_head.weight": torch.zeros(3, 64)}, "here.pt")
    load_strictly(model, state, "here.pt")


def test_trunks_start_from_the_files_that_the_reference_starts_from() -> None:
    kinetics = S3D("small", classes=7)
    assert kinetics(torch.randn(2, 9, 3, 32, 32)).shape == (2, 7)
    assert {"fc.0.weight", "fc.0.bias"} <= set(kinetics.state_dict())
    load_strictly(S3D("small"), visual_trunk_state(kinetics.state_dict()), "kinetics")
    classifier = AudioClassifier(11, "small")
    load_strictly(ResNet18Audio("small"), audio_trunk_state({"model": classifier.state_dict(), "epoch": 3}), "audio")
    whole = AVSync(small())
    load_strictly(ResNet18Audio("small"), audio_trunk_state({"model": whole.state_dict()}), "whole")
    load_strictly(S3D("small"), visual_trunk_state(whole.state_dict()), "whole")


def test_selecting_is_attention() -> None:
    """The kernel's path and the plain one agree, forward and backward; with dropout only the plain one can run."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, n, 3, 8, requires_grad=True) for n in (4, 50, 50)]
    outputs = [attend(*inputs, 0.0, selects=selects) for selects in (True, False)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    grads = [torch.autograd.grad((out * weights).sum(), inputs, retain_graph=True) for out in outputs]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    torch.manual_seed(1)
    dropped = attend(*inputs, 0.5, selects=True)
    assert not torch.allclose(dropped, outputs[0])
