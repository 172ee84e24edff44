"""SparseSync's picture transforms on uint8 clips (T,3,H,W): one set of draws for all frames of a clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as vision

from javisc.trainer.transforms.draws import Draws, happens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def center_corner(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of a centred crop, halves rounded to even."""
    return round((height - size[0]) / 2), round((width - size[1]) / 2)


def random_corner(height: int, width: int, size: tuple[int, int], draws: Draws) -> tuple[int, int]:
    """Top and left of a random crop; nothing is drawn when the size fits exactly."""
    if (height, width) == size:
        return 0, 0
    return draws.integer("crop_top", 0, height - size[0]), draws.integer("crop_left", 0, width - size[1])


def crop(video: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(T,3,H,W) → (T,3,*size); ValueError if the picture is smaller."""
    (top, left), (height, width) = corner, video.shape[-2:]
    if top < 0 or left < 0 or top + size[0] > height or left + size[1] > width:
        raise ValueError(
            f"a crop of {size[0]}x{size[1]} does not fit in a picture of {height}x{width}: compile with --short-side"
        )
    return video[..., top : top + size[0], left : left + size[1]]


def upscale(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear enlargement without antialiasing, on uint8."""
    return (
        F.interpolate(video.float(), size, mode="bilinear", align_corners=False).round_().clamp_(0, 255).to(torch.uint8)
    )


def crop_sometimes_upscaled(
    video: Tensor, size: int, upscaled_from: int, probability: float | None, draws: Draws
) -> Tensor:
    """A random crop of `size`, or with the probability one of `upscaled_from` enlarged to it."""
    chosen = upscaled_from if happens(draws, "upscale", probability) else size
    square = (chosen, chosen)
    height, width = video.shape[-2:]
    if min(height, width) < chosen:
        raise ValueError(
            f"a picture of {height}x{width} is smaller than the crop of {chosen}: compile with --short-side {size}"
        )
    video = crop(video, random_corner(height, width, square, draws), square)
    return upscale(video, (size, size)) if chosen != size else video


def flip(video: Tensor, probability: float, draws: Draws) -> Tensor:
    """Left and right swapped, with the probability."""
    return video.flip(-1) if happens(draws, "flip", probability) else video


def gray(video: Tensor) -> Tensor:
    """Luma (0.2989, 0.587, 0.114) in all three channels."""
    return vision.rgb_to_grayscale(video, num_output_channels=3)


#: name → (lowest, highest) factor, SimCLR's strengths with s = 1; hue is a shift in turns.
COLOR_RANGES = {"brightness": (0.2, 1.8), "contrast": (0.2, 1.8), "saturation": (0.2, 1.8), "hue": (-0.2, 0.2)}
_COLOR = {
    "brightness": vision.adjust_brightness,
    "contrast": vision.adjust_contrast,
    "saturation": vision.adjust_saturation,
    "hue": vision.adjust_hue,
}


def adjust_color(video: Tensor, name: str, factor: float) -> Tensor:
    """One colour operation on uint8; contrast pivots on each frame's own mean grey."""
    return _COLOR[name](video, factor)


def distort_color(video: Tensor, p_jitter: float, p_gray: float, draws: Draws) -> Tensor:
    """All four colour operations in a random order, with a probability; then, independently, grey."""
    if happens(draws, "color_jitter", p_jitter):
        factors = {name: draws.uniform(name, *limits) for name, limits in COLOR_RANGES.items()}
        names = list(COLOR_RANGES)
        for index in draws.order("color_order", len(names)):
            video = adjust_color(video, names[index], factors[names[index]])
    return gray(video) if happens(draws, "gray", p_gray) else video


def freeze_outside(video: Tensor, kept: tuple[int, int]) -> Tensor:
    """Frames outside [first, stop) repeat the nearest frame just outside it."""
    first, stop = kept
    frames = torch.arange(len(video))
    # At an end of the clip there is no frame outside: `first - 1` and `stop` are then never looked up.
    index = torch.where(frames < first, first - 1, torch.where(frames >= stop, stop, frames))
    return video[index]


def normalise(video: Tensor) -> Tensor:
    """uint8 → float32 in [0, 1], then ImageNet's mean and standard deviation."""
    out = video.float().div_(255)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        out.select(-3, channel).sub_(mean).div_(std)  # numbers, not tensors: nothing is copied to a device
    return out
