"""SparseSync's transforms in their order: first which part of the clip, from lengths alone; then what happens to that part.

The two halves are apart so that a loader can plan from metadata and decode nothing but the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import setting
from javisc.trainer.transforms import sync_audio, sync_video
from javisc.trainer.transforms.draws import Draws, happens
from javisc.trainer.transforms.sync_window import ClassGrid, CropRule, Lengths, Window, equalify, kept_part

#: How much earlier than its picture sound may have been taken for a checkpoint: more is no reader's mistake.
MAX_ADVANCE_SEC = 1.0


@dataclass
class SyncTransforms:
    """The settings of the chains: defaults are the pre-training recipe's. All p_* are probabilities.

    `audio_advance_sec`: by how much the sound is taken later than the clock says, for weights whose training data was read so.
    """

    crop_len_sec: float = setting(5.0, "Seconds of a crop.", above=0, most=3600)
    max_off_sec: float = setting(2.0, "The largest offset of the grid, in seconds.", above=0, most=3600)
    classes: int = setting(21, "Offsets of the grid.", least=3, most=100_000)
    do_offset: bool = True
    clip_max_len_sec: float = setting(10.0, "Seconds of a clip that are looked at.", above=0)
    input_size: int = setting(224, "Pixels of a crop's side.", least=8, most=4096)
    upscaled_from: int = setting(192, "Pixels of the smaller picture that is enlarged.", least=1, most=4096)
    audio_jitter_sec: float = setting(0.05, "The sound's random shift in training, in seconds.", least=0)
    p_horizontal_flip: float = setting(0.5, "Probability of a mirrored picture.", least=0, most=1)
    p_color_jitter: float = setting(0.0, "Probability of changed colours.", least=0, most=1)
    p_gray_scale: float = setting(0.0, "Probability of grey pictures.", least=0, most=1)
    sometimes_upscale_p: float = setting(0.0, "Probability of a picture made smaller and enlarged.", least=0, most=1)
    p_audio_aug: float = setting(0.0, "Probability of masks in the spectrogram.", least=0, most=1)
    freq_mask: float = setting(64.0, "The widest mask over frequencies, in bins.", least=0)
    time_mask: float = setting(200.0, "The widest mask over time, in frames.", least=0)
    to_freeze_frames: bool = False
    to_corrupt_audio: bool = False
    corrupt_type: str = "mute"
    active_min_overlap_sec: float = setting(1.0, "Seconds that picture and sound must share.", least=0)
    audio_advance_sec: float = setting(
        0.0,
        "By how much sound is taken later than the clock says: of weights whose data was read so.",
        least=0,
        most=MAX_ADVANCE_SEC,
    )

    def check(self) -> None:
        """Raise UserError for settings that cannot be."""
        if not 0 <= self.audio_advance_sec <= MAX_ADVANCE_SEC:
            raise UserError(f"audio_advance_sec={self.audio_advance_sec}: it may be 0 to {MAX_ADVANCE_SEC:g} seconds")
        try:
            self.crop_rule(train=True)
        except ValueError as error:
            raise UserError(f"transforms.{error}") from error

    def crop_rule(self, *, train: bool) -> CropRule:
        """The crop rule of the settings; there is no jitter outside training."""
        grid = ClassGrid(self.max_off_sec, self.classes)
        return CropRule(grid, self.crop_len_sec, self.audio_jitter_sec if train else 0.0)

    @property
    def room_sec(self) -> float:
        """Seconds of picture and sound, from their common start, that hold a window whatever is drawn."""
        return self.crop_len_sec + (self.max_off_sec if self.do_offset else 0.0)

    @property
    def window_sec(self) -> float:
        """Seconds of a window."""
        return self.crop_len_sec

    @property
    def whole_fps(self) -> int | None:
        """The only frame rate that suits, None for any."""
        return None

    @property
    def whole_rate(self) -> int | None:
        """The only sample rate that suits, None for any."""
        return None

    @property
    def asks(self) -> str:
        """What the model is to tell: offset, or synchronizability."""
        return "offset"

    def label(self, window: Window) -> int | None:
        """The class that is to be told, None without one."""
        return window.offset_target

    def window(self, clip: Lengths, draws: Draws, *, train: bool, fixed: FixedOffset | None = None) -> Window:
        """One window of a clip of which `plan` has taken away what does not count. Raises InfeasibleCrop."""
        rule = self.crop_rule(train=train)
        if not self.do_offset:
            return rule.unshifted(clip, draws if train else None)
        if fixed is not None:
            return rule.fixed(clip, fixed.offset_sec, fixed.v_start_sec)
        return rule.random(clip, draws)

    def several(self, clip: Lengths, draws: Draws, count: int) -> list[Window]:
        """Like `window`, in training: `count` sounds at different offsets for one picture crop."""
        return self.crop_rule(train=True).several(clip, draws, count)

    def pictures(self, video: Tensor, draws: Draws, *, train: bool) -> Tensor:
        """uint8 (T,3,H,W) of the window → what the model sees."""
        return self.normalised(self.cropped(video, draws, train=train), train=train)

    def cropped(self, video: Tensor, draws: Draws, *, train: bool) -> Tensor:
        """The part of `pictures` that is made before the model's device: uint8 → uint8."""
        return shown(self, video, draws, train=train)

    def normalised(self, cropped: Tensor, *, train: bool) -> Tensor:
        """The rest of it: of one crop or of a batch of them, on any device, float32."""
        return sync_video.normalise(cropped)

    def sounds(self, wave: Tensor, rate: int, draws: Draws, *, train: bool) -> Tensor:
        """(n,) of the window → what the model hears."""
        return heard(self, wave, rate, draws, train=train)[0].unsqueeze(0)


@dataclass(frozen=True)
class SyncSample:
    """What the model takes. `spec_means` and `spec_stds` (F,) undo the standardisation."""

    vis: Tensor
    aud: Tensor
    window: Window
    spec_means: Tensor
    spec_stds: Tensor


@dataclass(frozen=True)
class FixedOffset:
    """An offset and a start that are given: of an evaluation row, or by the user of a prediction."""

    offset_sec: float
    v_start_sec: float


def plan(
    config: SyncTransforms, clip: Lengths, draws: Draws, *, train: bool, fixed: FixedOffset | None = None
) -> Window:
    """Which frames and samples of the clip make the sample. Raises InfeasibleCrop if it is too short for them."""
    left, skipped = _advanced(config, clip)
    return _later(config.window(left, draws, train=train, fixed=fixed), skipped)


def plan_several(config: SyncTransforms, clip: Lengths, draws: Draws, count: int) -> list[Window]:
    """Training windows that share one picture crop: `count` sounds at different offsets. Raises InfeasibleCrop."""
    left, skipped = _advanced(config, clip)
    return [_later(window, skipped) for window in config.several(left, draws, count)]


def _advanced(config: SyncTransforms, clip: Lengths) -> tuple[Lengths, int]:
    """What is left of a clip whose first samples are dropped before anything else, and how many are."""
    skipped = round(config.audio_advance_sec * clip.rate)
    left = Lengths(clip.frames, max(clip.samples - skipped, 0), clip.fps, clip.rate)
    return equalify(left, config.clip_max_len_sec), skipped


def _later(window: Window, skipped: int) -> Window:
    return replace(window, a_first=window.a_first + skipped)


def advance_ticks(config: SyncTransforms, fps: int) -> int:
    """Frames at the end of a clip that have no sound left because of the advance."""
    return math.ceil(config.audio_advance_sec * fps)


def augmented(config: SyncTransforms, video: Tensor, draws: Draws) -> Tensor:
    """uint8 (T,3,H,W) of the window → uint8 (T,3,S,S), augmented."""
    video = sync_video.crop_sometimes_upscaled(
        video, config.input_size, config.upscaled_from, config.sometimes_upscale_p, draws
    )
    video = sync_video.distort_color(video, config.p_color_jitter, config.p_gray_scale, draws)
    return sync_video.flip(video, config.p_horizontal_flip, draws)


def centred(config: SyncTransforms, video: Tensor) -> Tensor:
    """uint8 (T,3,H,W) of the window → its centre (T,3,S,S)."""
    square = (config.input_size, config.input_size)
    return sync_video.crop(video, sync_video.center_corner(video.shape[-2], video.shape[-1], square), square)


def apply(
    config: SyncTransforms, video: Tensor, wave: Tensor, window: Window, rate: int, draws: Draws, *, train: bool
) -> SyncSample:
    """Turn the window's frames (v_len,3,H,W) uint8 and samples (a_len,) float32 into the model's inputs.

    vis (v_len,3,S,S) is normalised; aud (1,257,a_len // 128 + 1) is a standardised log spectrogram.
    """
    if len(video) != window.v_len or len(wave) != window.a_len:
        raise ValueError(
            f"{len(video)} frames and {len(wave)} samples for a window of {window.v_len} and {window.a_len}"
        )
    vis = sync_video.normalise(shown(config, video, draws, train=train))
    aud, means, stds = heard(config, wave, rate, draws, train=train)
    return SyncSample(vis, aud.unsqueeze(0), window, means, stds)


def shown(config: SyncTransforms, video: Tensor, draws: Draws, *, train: bool) -> Tensor:
    """The picture's half of `apply`, not yet normalised: uint8 (T,3,H,W) → uint8 (T,3,S,S)."""
    frames = len(video)
    video = augmented(config, video, draws) if train else centred(config, video)
    if config.to_freeze_frames:
        keep_sec = config.max_off_sec + config.active_min_overlap_sec
        video = sync_video.freeze_outside(
            video, kept_part(frames, frames / config.crop_len_sec, keep_sec, draws, "freeze")
        )
    return video


def heard(
    config: SyncTransforms, wave: Tensor, rate: int, draws: Draws, *, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sound's half of `apply`: (N,) → what `spectrogram` returns."""
    if config.to_corrupt_audio:
        keep_sec = config.max_off_sec + config.active_min_overlap_sec
        kept = kept_part(len(wave), rate, keep_sec, draws, "corrupt_from")
        wave = sync_audio.corrupt_outside(wave, kept, config.corrupt_type, draws)
    if train:
        wave = sync_audio.augment(wave, rate, config.p_audio_aug, draws)
    return spectrogram(wave, draws, config.p_audio_aug if train else 0.0, config.freq_mask, config.time_mask)


def spectrogram(
    wave: Tensor, draws: Draws, p_mask: float, freq_mask: float, time_mask: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) → standardised log spectrogram (257,T), masked before the standardisation with the probability; means; deviations."""
    spec = sync_audio.log(sync_audio.power_spectrogram(wave))
    for axis, name, width in ((0, "freq_mask", freq_mask), (1, "time_mask", time_mask)):
        if happens(draws, name, p_mask):
            spec = sync_audio.mask_band(spec, axis, width, draws, name)
    return sync_audio.standardise(spec)


@dataclass
class AudioClipTransforms:
    """The chains of the audio trunk's own pre-training."""

    duration_sec: int = 10
    crop_len_sec: float = 5.0
    p_audio_aug: float = 0.2
    freq_mask: float = 64.0
    time_mask: float = 200.0


def audio_clip(config: AudioClipTransforms, wave: Tensor, rate: int, draws: Draws, *, train: bool) -> Tensor:
    """(N,) → (1,257,T): tiled or cut to ten seconds, a random (test: centred) crop, augmented in training, standardised."""
    wave = sync_audio.trim_or_tile(wave, rate, config.duration_sec)
    wanted = int(config.crop_len_sec * rate)
    room = len(wave) - wanted
    if room < 0:
        raise ValueError(
            f"{len(wave) / rate:.2f} s are too short for a crop of {config.crop_len_sec} s even when tiled"
        )
    first = draws.integer("a_start", 0, room) if train else sync_audio.center_part(len(wave), wanted)
    wave = wave[first : first + wanted]
    if train:
        wave = sync_audio.augment(wave, rate, config.p_audio_aug, draws)
    p_mask = config.p_audio_aug if train else 0.0
    return spectrogram(wave, draws, p_mask, config.freq_mask, config.time_mask)[0].unsqueeze(0)


def mixup(aud: Tensor, permutation: Tensor, weight: float) -> Tensor:
    """weight · x + (1 - weight) · x[permutation] on a batch of spectrograms (B,...); labels are not mixed."""
    return weight * aud + (1 - weight) * aud[permutation]
