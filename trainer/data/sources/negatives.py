"""The negatives of a loaded batch: each clip's own, from its tensors, its seed and the pools."""

from __future__ import annotations

from concurrent.futures import Executor

import torch

from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.sources.pools import Pools
from javisc.trainer.transforms.javisdit_negatives import NegativeClips, NegativesConfig, Source, make_negatives


def batch_negatives(
    loaded: Loaded,
    pools: Pools,
    config: NegativesConfig,
    *,
    rate: int = 16000,
    executor: Executor | None = None,
    pin: bool = False,
) -> NegativeClips:
    """All negatives of a batch: by aspect `video` [B, r, 3, T, H, W] and `audio` [B, r, n], where the batch's tensors are.

    `loaded`: not empty, from a loader with layout CFHW and `whole_sound` (crops of the same file are taken from it), over a
    catalog whose strings have `relpath`. `executor` makes clips side by side; `pin` leaves them in pinned memory. Raises
    UserError: a pool is broken throughout.
    """
    if loaded.audio is None or len(loaded.sounds) != len(loaded.batch.clips):
        raise ValueError("negatives are made of picture and whole sound: load with LoaderOptions(whole_sound=True)")

    def one(index: int) -> NegativeClips:
        clip, label = loaded.batch.clips[index], loaded.labels[index]
        assert loaded.audio is not None
        wave = loaded.audio[index].mean(-1)
        source = Source(
            clip=loaded.video[index].transpose(0, 1),
            wave=wave,
            rate=rate,
            whole=loaded.sounds[index].mean(-1).to(wave),
            start=clip.window.audio_first,
            name=pools.sound_name(label),
            unpaired=None if pools.unpaired is None else pools.unpaired.sound(pools.unpaired_name(label)),
        )
        return make_negatives(source, clip.seed, config, pools.masklets, pools.sounds)

    made = list((map if executor is None else executor.map)(one, range(len(loaded.batch.clips))))
    stacked = (
        {aspect: torch.stack([clips.video[aspect].transpose(1, 2) for clips in made]) for aspect in made[0].video},
        {aspect: torch.stack([clips.audio[aspect] for clips in made]) for aspect in made[0].audio},
    )
    return NegativeClips(*({a: x.pin_memory() if pin else x for a, x in by.items()} for by in stacked))
