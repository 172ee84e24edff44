"""What a seed decides and what a channel says: epochs of two seeds differ, and sound of two channels is heard from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from javisc.trainer.data.sources.clips import ClipData, ClipSource
from javisc.trainer.data.sources.sync import SyncBatches, SyncDataOptions
from javisc.trainer.transforms.sync_chain import SyncTransforms
from support import compiled

TRANSFORMS = SyncTransforms(crop_len_sec=1.0, max_off_sec=0.4, classes=5, input_size=32, p_audio_aug=0.0)


def sync(dataset: Path, seed: int) -> Any:
    return SyncBatches([dataset], TRANSFORMS, SyncDataOptions(batch_size=2, split=None, seed=seed))


def clips(dataset: Path, seed: int) -> Any:
    data = ClipData(paths=[str(dataset)], buckets={"32x32": {"9": [1.0, 2]}}, train_split=None, decoder="cpu")
    return ClipSource(data, None, seed=seed)


@pytest.mark.parametrize("source", [sync, clips])
def test_another_seed_is_another_epoch_and_the_same_one_the_same(source: Any, tmp_path: Path) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50, 36, 45, 60, 38], fps=25)

    def epoch(seed: int) -> list[Any]:
        made = source(dataset, seed)
        batches = list(made.loader.sampler.upcoming())
        made.close()
        return [(clip.row, clip.window.first, clip.window.audio_first, clip.seed) for b in batches for clip in b.clips]

    one, other = epoch(1), epoch(2)
    assert epoch(1) == one
    for place, what in enumerate(("order", "picture", "sound", "draws")):
        assert [row[place] for row in one] != [row[place] for row in other], what


def test_two_channels_are_heard_as_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right one is silent: half of the left is left."""
    noise = np.random.default_rng(0).integers(-(2**14), 2**14, 16000 * 3).astype(np.float32) / 2**15
    sounds = {
        "both": lambda count, fps: np.stack([noise[: count * 640], 0 * noise[: count * 640]], axis=1),
        "half": lambda count, fps: noise[: count * 640] / 2,
    }
    made = {}
    for name, sound in sounds.items():
        monkeypatch.setattr(compiled, "sound", sound)
        source = sync(compiled.write(tmp_path / name, [40, 50, 36], fps=25), 1)
        made[name] = torch.cat([batch.aud for batch in source])
        source.close()
    assert torch.equal(made["both"], made["half"]) and made["half"].std() > 0
