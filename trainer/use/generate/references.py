"""What is given of a clip that is to be made: pictures, films and sounds from files, as latents."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.manifests.files import sha256_of
from javisc.trainer.data.bytes.decode import frames, samples
from javisc.trainer.data.bytes.framing import cover
from javisc.trainer.data.sources.noise import generators
from javisc.trainer.models.frozen import AudioCodec, VideoCodec
from javisc.trainer.transforms.javisdit_mel import mel_input

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: A film or sound counts from its beginning up to here.
MAX_SECONDS = 60.0


def read_reference(path: Path, fps: float) -> tuple[NDArray[np.uint8] | None, Tensor | None]:
    """The pictures [F, H, W, 3] at `fps` and the mono sound [n] at 16 kHz of a file, whichever it has.

    Both share one clock, as compiled clips do. Raises UserError if the file is neither picture, film nor sound.
    """
    if path.suffix.lower() in PICTURES:
        try:
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))[None], None
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} is no picture that can be read ({error}); give another --reference") from None
    rate = str(Fraction(fps).limit_denominator(1001))
    film = PRESETS["jav"].replace(
        fps=rate, tune=None, min_frames=1, crf=10.0, allow_silent=True, max_seconds=MAX_SECONDS
    )
    with tempfile.TemporaryDirectory(prefix="javisc-reference-") as scratch:
        try:
            clip = transcode(path, film, Path(scratch))
        except Rejected as reason:
            if reason.reason != "no_video":
                raise UserError(f"{path} cannot be read ({reason}); give another --reference") from None
            try:
                clip = transcode(path, film.replace(kind="audio"), Path(scratch))
            except Rejected as other:
                raise UserError(f"{path} cannot be read ({other}); give another --reference") from None
        pictures = sound = None
        if clip.mp4 is not None:
            pictures = frames(
                clip.mp4.read_bytes(), 0, int(str(clip.columns["num_frames"])), fps=film.rate, gop=film.gop
            )
        if clip.flac is not None:
            heard = samples(clip.flac.read_bytes(), 0, int(str(clip.columns["num_samples"])))
            sound = torch.from_numpy(heard).mean(1)
        return pictures, sound


def fitted(pictures: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Pictures scaled until they cover the size, their middle cropped, as in training: [1, 3, F, height, width] in -1 to 1."""
    video = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float()
    size = cover(video.shape[2], video.shape[3], (height, width))
    video = F.interpolate(video, size=size, mode="bilinear", align_corners=False)
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return (video[:, :, top : top + height, left : left + width] / 127.5 - 1).transpose(0, 1)[None]


@torch.no_grad()
def reference_latents(
    path: Path,
    video: VideoCodec | None,
    audio: AudioCodec,
    fps: float,
    height: int,
    width: int,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """A file's latents, "video" [c, t, h, w] and "audio" [c, t, m]: whichever it has and the model makes."""
    pictures, sound = read_reference(path, fps)
    rows = generators([seed], "reference", sha256_of(path))  # by what it holds: the same wherever the file lies
    found = {}
    if pictures is not None and video is not None:
        found["video"] = video.encode(fitted(pictures, height, width).to(device), draws=rows)[0]
    if sound is not None and len(sound) > 512:
        found["audio"] = audio.encode(mel_input(sound[None], seconds=len(sound) / 16000).to(device), draws=rows)[0]
    if not found:
        raise UserError(f"{path} holds nothing that this model makes; give another --reference")
    return found
