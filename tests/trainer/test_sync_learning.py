"""What lets the demonstration learn in minutes, each piece against its definition; and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.sync import SyncBatch
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.models.sync.alignment import PARTS, SHARPNESS, matching
from javisc.trainer.models.sync.attention import recorded_attention
from javisc.trainer.models.sync.config import CorrelationConfig, FusionConfig, SelectorConfig, SyncTransformerConfig
from javisc.trainer.models.sync.correlation import Correlation
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.models.sync.ordered import time_code
from javisc.trainer.models.sync.transformer import SyncTransformer
from javisc.trainer.tasks.sync import SyncRecipe, SyncTask


def test_correlation_is_the_sum_over_pairs_at_each_lag() -> None:
    torch.manual_seed(1)
    head = Correlation(CorrelationConfig(classes=3, width=8, n_head=2, moments=4))
    vis, aud = torch.randn(3, 4, 8, 2, 2), torch.randn(3, 8, 5, 4)
    v = head.vis_proj(head.pre_lnorm_vis(vis.permute(0, 1, 3, 4, 2)).amax((2, 3))).view(3, 4, 2, 4)
    a = head.aud_proj(head.pre_lnorm_aud(aud.permute(0, 2, 3, 1)).mean(1)).view(3, 4, 2, 4)
    lags = torch.zeros(3, 2, 7)
    for part in range(2):
        for lag in range(-3, 4):
            pairs = [(i, i + lag) for i in range(4) if 0 <= i + lag < 4]
            alike = torch.stack([F.cosine_similarity(v[:, i, part], a[:, j, part]) for i, j in pairs])
            lags[:, part, lag + 3] = alike.sum(0) / len(pairs) ** 0.5
    assert torch.allclose(head(vis, aud), head.off_head(lags.flatten(1)), atol=1e-5)


def test_streams_of_other_lengths_are_resampled_to_the_same_moments() -> None:
    head = Correlation(CorrelationConfig(classes=3, width=8, n_head=1, moments=6))
    head.aud_proj.load_state_dict(head.vis_proj.state_dict())
    ramp = torch.randn(1, 8, 1) + torch.randn(1, 8, 1) * torch.linspace(-1, 1, 2)

    def stretched(steps: int) -> Tensor:
        """A straight line through feature space, seen at the middles of `steps` even parts."""
        return F.interpolate(ramp, size=steps, mode="linear", align_corners=True)

    with torch.no_grad():
        nn.init.eye_(head.vis_proj.weight)
        head.aud_proj.load_state_dict(head.vis_proj.state_dict())
        alike = head.alike(stretched(60).transpose(1, 2)[..., None, None], stretched(90)[:, :, None])
    assert torch.equal(alike[0, 0].argmax(1), torch.arange(6))


def test_alignment_wants_what_sounds_at_each_moment() -> None:
    shift = torch.tensor([0.0, 0.25, -0.5])
    assert matching(shift, 4).tolist() == [[0, 1, 2, 3], [-1, 0, 1, 2], [2, 3, -1, -1]]
    torch.manual_seed(3)
    head = Correlation(CorrelationConfig(classes=3, width=64, n_head=2, moments=4))
    head.aud_proj.load_state_dict(head.vis_proj.state_dict())
    features = torch.randn(1, 64, 4)
    pictures = features.transpose(1, 2)[..., None, None]

    def loss(steps: int, shift: float) -> Tensor:
        return head.aligned(pictures, features.roll(steps, 2)[:, :, None], torch.tensor([shift]))[0]

    # Taken a quarter later, the sound's first moment is the picture's second: columns move one to the left.
    assert loss(0, 0.0) < 0.1 and loss(-1, 0.25) < 0.1 and loss(1, -0.25) < 0.1
    assert loss(1, 0.0) > 5 and loss(-1, -0.25) > 5
    assert loss(0, 2.0) == 0


def test_several_sounds_of_a_picture_are_as_many_pairs() -> None:
    recipe = load_recipe("sync-demo", SyncRecipe)
    torch.manual_seed(2)
    model = AVSync(recipe.model).eval()
    vis, aud = torch.randn(2, 40, 3, 32, 32), torch.randn(6, 1, 257, 201)
    with torch.no_grad():
        together = model(vis, aud)[1]
        apart = model(vis.repeat_interleave(3, 0), aud)[1]
        loss, again = model(vis, aud, shift=torch.zeros(6))
    assert together.shape == (6, 15) and torch.allclose(together, apart, atol=1e-5)
    assert torch.equal(together, again) and loss > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.offsets_per_clip=9"], "1 to 8, half of the classes"),
        (["model.correlation.width=66"], "width that 4 divides, it is 66"),
        (
            ["model.correlation=null", "model.transformer.classes=15", "model.transformer.initial=random"],
            "may be published",
        ),
        (["model.correlation.classes=9"], "the model has 9 classes"),
    ],
)
def test_settings_that_do_not_go_together_are_told(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SyncTask(load_recipe("sync-demo", SyncRecipe, ["data.paths=[x]", *overrides])).build()


def _events(dice: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Streams (count, 20, 8) and (count, 26, 8) that show the same irregular events, and by which of nine offsets they differ."""
    times = np.cumsum(dice.uniform(0.2, 0.8, (count, 20)), 1) - 1.5
    target = dice.integers(9, size=count)
    offset = np.linspace(-0.8, 0.8, 9)[target]

    def shown(at: np.ndarray, steps: int) -> Tensor:
        middle, width = (np.arange(steps) + 0.5) / steps * 1.6, 1.6 / steps
        away = (middle[None, :, None] - at[:, None, :]) / width
        seen = np.stack([np.exp(-((away - place) ** 2) / 2).sum(2) for place in (-1, -0.5, 0, 0.5, 1)], 2)
        seen = np.concatenate([seen, 0.5 * dice.normal(size=(count, steps, 3))], 2)
        return torch.from_numpy(seen + 0.1 * dice.normal(size=seen.shape)).float()

    return shown(times, 20), shown(times - offset[:, None], 26), torch.from_numpy(target)


def test_it_learns_offsets_of_events_it_has_not_seen() -> None:
    torch.manual_seed(0)
    dice = np.random.default_rng(0)
    head = Correlation(CorrelationConfig(classes=9, width=32, n_head=2, moments=20))
    seen, heard = nn.Linear(8, 32), nn.Linear(8, 32)
    weights = [*head.parameters(), *seen.parameters(), *heard.parameters()]
    optimizer = torch.optim.AdamW(weights, 5e-3, betas=(0.9, 0.98))

    def streams(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        vis, aud, target = _events(dice, count)
        shift = (target - 4) * 0.2 / 1.6
        return seen(vis)[..., None, None], heard(aud).transpose(1, 2)[:, :, None], target, shift

    for _ in range(200):
        vis, aud, target, shift = streams(64)
        aligned, logits = head.aligned(vis, aud, shift)
        optimizer.zero_grad()
        (F.cross_entropy(logits, target) + aligned).backward()
        optimizer.step()
    with torch.no_grad():
        vis, aud, target, _ = streams(512)
        assert (head(vis, aud).argmax(1) == target).float().mean() > 0.7  # chance is 0.11


def _small(width: int = 64) -> SyncTransformer:
    """The demonstration's transformer, thinner: streams of 20 and 26 steps, nine offsets."""
    none = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    selector = SelectorConfig(n_layer=1, n_head=8, num_selectors=20, **none)  # type: ignore[arg-type]
    return SyncTransformer(
        SyncTransformerConfig(
            classes=9,
            width=width,
            visual_shape=(20, 1, 1),
            audio_shape=(1, 26),
            position_std=1.0,
            initial="ordered",
            visual_selector=selector,
            audio_selector=selector,
            fusion=FusionConfig(n_layer=2, n_head=8, **none),  # type: ignore[arg-type]
        )
    )


def test_time_has_one_code_at_every_resolution() -> None:
    fine, coarse = time_code(300, 22, 6.0), time_code(20, 22, 6.0)
    assert fine.std() == pytest.approx(1, abs=0.1) and fine.shape == (300, 22)
    nearest = torch.cdist(coarse, fine).argmin(1)
    assert torch.equal(nearest, 15 * torch.arange(20) + 7)  # the middle of each of the twenty parts
    assert not time_code(7, 5, 2.0)[:, 4].any()


@pytest.mark.parametrize("width", [64, 136])
def test_ordered_selectors_read_one_part_of_the_clip_each_and_pass_it_on(width: int) -> None:
    torch.manual_seed(0)
    model = _small(width).eval()
    vis, aud = torch.randn(16, 20, width, 1, 1), torch.randn(16, width, 1, 26)
    names = ("v_selector.blocks.0.xattn", "a_selector.blocks.0.xattn")
    with recorded_attention(model, names) as seen, torch.no_grad():
        model(vis, aud)
        chosen = model.v_selector(model.vis_pos_emb(model.pre_lnorm_vis(vis.permute(0, 1, 3, 4, 2))).flatten(1, 3))
    for name, steps in zip(names, (20, 26)):
        # What surrounds them draws the readers of the ends inwards; even attention would hold all of them at a half.
        middle = seen[name].mean((0, 1)) @ ((torch.arange(steps) + 0.5) / steps)
        wanted = (torch.arange(20) + 0.5) / 20
        assert torch.corrcoef(torch.stack((middle, wanted)))[0, 1] > 0.97 and middle.std() > 0.2, name
    content = F.normalize(F.layer_norm(vis[..., 0, 0], (width,)), dim=2)
    alike = F.normalize(chosen - chosen.mean(0), dim=2) @ F.normalize(content - content.mean(0), dim=2).transpose(1, 2)
    away = (alike.mean(0).argmax(1) - torch.arange(20)).abs()
    assert away.max() <= 1 and (away == 0).sum() >= 17


def test_only_the_start_is_other_than_the_published_models() -> None:
    ordered, published = (load_recipe("sync-demo-sparse", SyncRecipe) for _ in range(2))
    published.model.transformer.initial = "published"
    a, b = AVSync(ordered.model).state_dict(), AVSync(published.model).state_dict()
    assert {key: value.shape for key, value in a.items()} == {key: value.shape for key, value in b.items()}


def test_trunks_are_taught_through_the_norms_that_selectors_read_through() -> None:
    torch.manual_seed(1)
    model = AVSync(load_recipe("sync-demo-sparse-trunks", SyncRecipe).model).eval()
    pictures, sounds, shift = (
        torch.randn(2, 40, 3, 32, 32),
        torch.randn(4, 1, 257, 201),
        torch.tensor([0, 0.25, -0.5, 2]),
    )
    loss, logits = model(pictures, sounds, shift=shift)
    assert torch.equal(logits, model(pictures, sounds)[1])
    vis = model.v_bridge(model.vfeat_extractor(pictures).transpose(1, 2))  # (2, 64, 20, 1, 1)
    aud = model.a_bridge(model.afeat_extractor(sounds))
    seen = model.transformer.pre_lnorm_vis(vis[..., 0, 0].transpose(1, 2)).view(2, 20, PARTS, -1)
    heard = model.transformer.pre_lnorm_aud(aud.permute(0, 2, 3, 1)).mean(1)
    heard = F.interpolate(heard.transpose(1, 2), size=20, mode="linear").transpose(1, 2).view(4, 20, PARTS, -1)
    told = []
    for pair in range(4):
        for moment, wanted in enumerate(matching(shift[pair : pair + 1], 20)[0].tolist()):
            if wanted >= 0:
                alike = F.cosine_similarity(seen[pair // 2, moment], heard[pair], dim=-1).mean(-1)
                told.append(-(SHARPNESS * alike).log_softmax(0)[wanted])
    assert len(told) == 20 + 15 + 10 and loss.item() == pytest.approx(torch.stack(told).mean().item(), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.v_bridge.parameters())


def test_parts_that_are_not_trained_stay_as_they_are() -> None:
    recipe = load_recipe("sync-demo-sparse", SyncRecipe, ["data.paths=[x]"])
    model = AVSync(recipe.model).train()
    still = [model.vfeat_extractor, model.afeat_extractor, model.v_bridge, model.a_bridge]
    assert not any(part.training for part in still) and model.transformer.training
    assert not any(p.requires_grad for part in still for p in part.parameters())
    with pytest.raises(UserError, match="would keep random weights: give start.model or start.visual_trunk"):
        SyncTask(recipe).build()


def test_ordered_readers_start_wide_quiet_and_choosing() -> None:
    torch.manual_seed(0)
    state = _small().state_dict()
    expected = {
        "global_transformer.blocks.0.attn.query": 2 / 8,
        "global_transformer.blocks.1.attn.key": 2 / 8,
        "global_transformer.blocks.0.attn.value": 1 / 8,
        "v_selector.blocks.0.attn.proj": 0.02 / 8,
        "a_selector.blocks.0.mlp.2": 0.02 / 16,
        "off_head": 0.02,
    }
    for name, std in expected.items():
        assert state[f"{name}.weight"].std().item() == pytest.approx(std, rel=0.1), name


def test_offsets_of_weight_zero_teach_the_trunks_alone() -> None:
    torch.manual_seed(0)
    task = SyncTask(load_recipe("sync-demo-sparse-trunks", SyncRecipe, ["data.paths=[x]"]))
    model = task.model().train()
    batch = SyncBatch(
        torch.randn(2, 40, 3, 32, 32), torch.randn(4, 1, 257, 201), torch.arange(4), 0.1 * torch.arange(4), ["a", "b"]
    )
    task.loss(model, batch, torch.device("cpu"))["loss"].backward()
    assert not any(p.grad.any() for p in model.transformer.global_transformer.parameters())
    assert all(p.grad.any() for p in model.afeat_extractor.parameters())
