"""Frame sizes, buckets, batch orders, lengths and the learning rate against the reference's tables."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import aspects, lengths
from javisc.trainer.data.index.assign import BucketTable
from javisc.trainer.data.index.buckets import Assigned, ReferenceBuckets, epoch_batches, feature_bin_indices
from javisc.trainer.engine import schedule
from support.parity import table


def test_frame_sizes() -> None:
    theirs = table("aspect_tables.json")
    ours = {
        name: {"pixels": t.pixels, "ratios": {key: list(size) for key, size in t.sizes.items()}}
        for name, t in aspects.ASPECTS.items()
    }
    assert ours == theirs["tables"]
    assert {name: list(row["ratios"]) for name, row in ours.items()} == {
        n: list(r["ratios"]) for n, r in theirs["tables"].items()
    }
    assert theirs["ar_map"] == aspects.RATIO_NAMES
    assert theirs["num_frames_map"] == aspects.FRAME_NAMES


def test_closest_ratios_and_names() -> None:
    rows = table("buckets.json")
    for resolution, height, width, key, size in rows["closest_ratio"]:
        found = aspects.aspect_table(resolution).closest(height, width)
        assert (found, list(aspects.aspect_table(resolution).sizes[found])) == (key, size)
    for name, frames in rows["num_frames"]:
        assert aspects.frame_count(name) == frames
    for resolution, ratio, size in rows["image_size"]:
        assert list(aspects.image_size(resolution, ratio)) == size
    with pytest.raises(UserError, match="resolution '100p' is unknown; allowed are 144p"):
        aspects.image_size("100p", "9:16")
    with pytest.raises(UserError, match="aspect ratio '5:1' is unknown at 240p"):
        aspects.image_size("240p", "5:1")


def test_buckets_of_clips() -> None:
    for group in table("buckets.json")["assign"]:
        buckets = ReferenceBuckets(group["config"])
        assert buckets.count == group["num_bucket"]
        for *clip, expected in group["rows"]:
            found = buckets.assign(*clip)
            theirs = None
            if expected is not None:
                resolution, frames, ratio, _, height, width, batch = expected
                theirs = Assigned(resolution, frames, ratio, height, width, batch)
            assert found == theirs, clip


def test_the_same_configuration_serves_the_composed_epochs() -> None:
    """Where no coin is involved both rules give the same bucket."""
    for group in table("buckets.json")["assign"]:
        config = {
            name: {frames: (1.0, batch) for frames, (_, batch) in rows.items()}
            for name, rows in group["config"].items()
        }
        reference = ReferenceBuckets(config)
        fast = BucketTable(reference.resolutions())
        # the reference keeps single images apart; the composed epochs leave that to whoever decides what fits
        clips = np.array([row[:3] for row in group["rows"] if row[3] == 1 and row[0] > 1])
        frames, height, width = clips.T
        fits = functools.partial(lambda frames, count: (frames >= count) & (count > 1), frames)
        numbers = fast.assign({"height": height, "width": width}, fits, seed=1, epoch=0)
        for clip, number in zip(clips.tolist(), numbers.tolist()):
            expected = reference.assign(*clip, 1, 0)
            if number < 0:
                assert expected is None, clip
            else:
                bucket = fast.buckets[number]
                assert expected is not None, clip
                assert (bucket.frames, bucket.height, bucket.width) == (
                    expected.frames,
                    expected.height,
                    expected.width,
                )


def test_batch_orders() -> None:
    rows = table("samplers.json")
    for run in rows["bucket_batches"]:
        ours = epoch_batches(
            run["rows"],
            ReferenceBuckets(run["config"]),
            seed=run["seed"],
            epoch=run["epoch"],
            world_size=run["world"],
            shuffle=run["shuffle"],
            drop_last=run["drop_last"],
            last_micro_batch_access_index=run["last_micro_batch_access_index"],
        )
        assert ours == run["batches_per_rank"]
    for run in rows["feature_bins"]:
        for rank, expected in enumerate(run["indices_per_rank"]):
            ours_bins = feature_bin_indices(
                run["num_buffers"], run["len_buffer"], run["world"], rank, run["start_index"]
            )
            assert ours_bins == expected


def test_lengths() -> None:
    rows = table("lengths.json")
    for frames, latents in rows["latent_frames"]:
        assert lengths.latent_frames(frames) == latents
    for frames, fps, mel, mel_padded, latent, latent_inference, samples in rows["mel"]:
        assert lengths.audio_lengths(frames, fps) == lengths.AudioLengths(mel, mel_padded, latent)
        assert latent_inference == latent
        assert lengths.waveform_samples(frames, fps) == samples
    for row in rows["av_crop"]:
        crop = lengths.reference_audio_crop(
            row["audio_len"], row["total_frames"], row["end"], row["num_frames"], row["frame_interval"]
        )
        assert (crop.start, crop.end, crop.count) == (row["audio_start"], row["audio_end"], row["n_audio"])
        indices = crop.indices()
        assert (indices[0], indices[-1], len(indices)) == (*row["first_last_audio"], row["n_audio"])


def test_warm_up() -> None:
    """lr (k + 1) / (warmup + 1) is the trainer's schedule started at 1 / (warmup + 1) of the rate."""
    row = table("lr_warmup.json")
    steps = row["warmup_steps"]
    config = schedule.ScheduleConfig(warmup_steps=steps, start_factor=1 / (steps + 1))
    ours = [row["base_lr"] * schedule.rate_factor(config, k) for k in range(len(row["lr_used_at_step"]))]
    assert ours == pytest.approx(row["lr_used_at_step"], rel=1e-9)
