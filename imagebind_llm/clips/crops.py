"""ImageBind's view of a video: window times as exact fractions, the first and last frame of each window, three square crops.

Pure functions. Times are fractions because the public front end's are (its frame choice differs from floating point by a
frame in 2 of 16 measured cases).
"""

import math
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from imagebind_llm.config import WINDOW_RULES

WINDOW_S = 2  # seconds of one window
N_WINDOWS = {"vision": 5, "audio": 3}
SIDE = 224  # pixels of a square crop
PIXEL_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
PIXEL_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def window_starts(duration: Fraction, n: int, rule: str = "to_end") -> list[Fraction]:
    """Start times in seconds of `n` windows of 2 s, evenly spread; all 0 for a clip of at most 2 s."""
    if rule not in WINDOW_RULES:
        raise ValueError(f"window_rule: expected one of {', '.join(WINDOW_RULES)}, got {rule!r}")
    room = max(Fraction(duration) - WINDOW_S, Fraction(0))
    return [i * room / (n - 1 if rule == "to_end" else n) for i in range(n)]


def frame_spans(duration: Fraction, time_base: Fraction, rule: str = "to_end") -> list[tuple[int, int]]:
    """[first, end) of the five video windows as time stamps, counted in `time_base` from the stream's start."""
    starts = window_starts(duration, N_WINDOWS["vision"], rule)
    return [(math.ceil(start / time_base), math.ceil((start + WINDOW_S) / time_base)) for start in starts]


class FramePicker:
    """Finds the first and the last frame of each span while frames go by in the order of their time stamps.

    A span in which no frame starts (a slide show) gets the one on screen then: the last before it, else the first after it.
    """

    def __init__(self, spans: list[tuple[int, int]]):
        self.spans = spans
        self.done = False
        self._picked: list[list] = [[] for _ in spans]  # per span: [(pts, frame) of the first, of the last]

    def offer(self, pts: int, frame) -> None:
        for (low, high), pair in zip(self.spans, self._picked, strict=True):
            if not pair or (pts < high and pair[0][0] < low):
                pair[:] = [(pts, frame)] * 2
            elif pts < high:
                pair[1] = (pts, frame)
        self.done = pts >= max(high for _, high in self.spans)

    def pairs(self) -> list[tuple]:
        """((pts, frame), (pts, frame)) of each span."""
        return [tuple(pair) for pair in self._picked]


def scaled_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) with the short side 224; the long one is rounded down, in floating point as the original does."""
    if height <= width:
        return SIDE, math.floor(width / height * SIDE)
    return math.floor(height / width * SIDE), SIDE


def crop_offsets(height: int, width: int) -> list[tuple[int, int]]:
    """(y, x) in the scaled picture of the three square crops along its long side: at its beginning, middle and end."""
    tall, wide = (side - SIDE for side in scaled_size(height, width))
    return [(0, 0), (math.ceil(tall / 2), math.ceil(wide / 2)), (tall, wide)]


def spatial_crops(picture: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    """Normalised crops (len(offsets), 3, 224, 224) of a uint8 picture (3, H, W), scaled bilinearly without anti-aliasing."""
    size = scaled_size(*picture.shape[1:])
    scaled = interpolate(picture[None].float().div_(255), size=size, mode="bilinear", align_corners=False)[0]
    crops = torch.stack([scaled[:, y : y + SIDE, x : x + SIDE] for y, x in offsets])  # (n,3,224,224)
    return crops.sub_(PIXEL_MEAN).div_(PIXEL_STD)


def pixels(crops: Tensor) -> Tensor:
    """Normalised crops (..., 3, H, W) as pictures to look at: uint8 (..., H, W, 3)."""
    return ((crops * PIXEL_STD + PIXEL_MEAN) * 255).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
