"""What lets the demonstration learn in minutes, each piece against its definition; and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.config import load_recipe
from javisc.trainer.models.sync.config import FusionConfig, SelectorConfig, SyncTransformerConfig
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.models.sync.positions import moments
from javisc.trainer.models.sync.transformer import FusionCorrelation, SyncTransformer, matching
from javisc.trainer.tasks.sync import SyncRecipe, SyncTask

MOMENTS = SelectorConfig(
    n_layer=1, n_head=1, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, num_selectors=20, start="moments"
)
SMALL = SyncTransformerConfig(
    classes=9,
    width=64,
    visual_shape=(20, 1, 1),
    audio_shape=(1, 26),
    position_start="moments",
    visual_selector=MOMENTS,
    audio_selector=MOMENTS,
    fusion=FusionConfig(kind="correlation", n_head=2),
)


def test_codes_of_a_moment_agree_between_grids() -> None:
    coarse, fine = moments(5, 24), moments(15, 24)
    assert torch.allclose(coarse, fine[1::3], atol=1e-6)
    alike = F.normalize(fine, dim=1) @ F.normalize(fine, dim=1).T
    assert torch.equal(alike.argmax(1), torch.arange(15))
    assert moments(4, 5).shape == (4, 5) and not moments(4, 5)[:, 4].any()


def test_selectors_start_as_readers_of_their_own_moment() -> None:
    torch.manual_seed(0)
    model = SyncTransformer(SMALL)
    block, selector = model.v_selector.blocks[0], model.v_selector
    context = model.vis_pos_emb(model.pre_lnorm_vis(torch.randn(1, 20, 1, 1, 64))).flatten(1, 3)
    queries = selector.selectors[None]
    read = block.xattn.probabilities(block.ln2(queries + block.attn(block.ln1(queries))), context)[0, 0]
    where = (read * torch.arange(20)).sum(1)
    assert (where - torch.arange(20)).abs().mean() < 1.5 and read.max(1).values.mean() > 0.3


def test_correlation_is_the_sum_over_pairs_at_each_lag() -> None:
    torch.manual_seed(1)
    fusion = FusionCorrelation(8, 4, 2)
    vis, aud = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    got = fusion(vis, aud).view(3, 2, 7)
    v = fusion.vis_proj(fusion.vis_in_lnorm(vis)).view(3, 4, 2, 4)
    a = fusion.aud_proj(fusion.aud_in_lnorm(aud)).view(3, 4, 2, 4)
    for head in range(2):
        for lag in range(-3, 4):
            pairs = [(i, i + lag) for i in range(4) if 0 <= i + lag < 4]
            wanted = sum(F.cosine_similarity(v[:, i, head], a[:, j, head]) for i, j in pairs) / len(pairs) ** 0.5
            assert torch.allclose(got[:, head, lag + 3], fusion.scale * wanted, atol=1e-5)


def test_alignment_wants_what_sounds_at_each_moment() -> None:
    shift = torch.tensor([0.0, 0.25, -0.5])
    wanted = matching(shift, 4, 8)
    assert wanted.tolist() == [[1, 3, 5, 7], [-1, 1, 3, 5], [5, 7, -1, -1]]
    fusion = FusionCorrelation(8, 4, 2)
    nn.init.eye_(fusion.vis_proj.weight)
    fusion.aud_proj.load_state_dict(fusion.vis_proj.state_dict())
    features = torch.randn(1, 4, 8)
    right = fusion.alignment(features, features, torch.zeros(1))
    wrong = fusion.alignment(features, features.roll(1, 1), torch.zeros(1))
    assert right < 0.1 < wrong
    assert fusion.alignment(features, features, torch.tensor([2.0])) == 0


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
        (["model.transformer.fusion.kind=transformer"], "fusion.kind=correlation"),
        (["model.transformer.visual_selector.n_head=2"], "n_head=1"),
        (["model.transformer.position_start=normal"], "position_start='moments'"),
        (["model.transformer.audio_selector.num_selectors=8"], "as many visual as audio"),
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


def test_selectors_and_correlation_learn_offsets_of_events_they_have_not_seen() -> None:
    """Three hundred steps where the published start stays at chance for thousands."""
    torch.manual_seed(0)
    dice = np.random.default_rng(0)
    model, seen, heard = SyncTransformer(SMALL), nn.Linear(8, 64), nn.Linear(8, 64)

    def logits(vis: Tensor, aud: Tensor) -> Tensor:
        return model(seen(vis)[..., None, None], heard(aud).transpose(1, 2)[:, :, None])

    weights = [*model.parameters(), *seen.parameters(), *heard.parameters()]
    optimizer = torch.optim.AdamW(weights, 2e-3, betas=(0.9, 0.98))
    for step in range(300):
        vis, aud, target = _events(dice, 64)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100)
        optimizer.zero_grad()
        F.cross_entropy(logits(vis, aud), target).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    with torch.no_grad():
        vis, aud, target = _events(dice, 512)
        assert (logits(vis, aud).argmax(1) == target).float().mean() > 0.7  # chance is 0.11
