"""What lets the demonstration learn in minutes, each piece against its definition; and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.config import load_recipe
from javisc.trainer.models.sync.config import CorrelationConfig
from javisc.trainer.models.sync.correlation import Correlation, matching
from javisc.trainer.models.sync.model import AVSync
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
        (["model.correlation=null", "transforms.classes=21"], "needs model.correlation"),
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
