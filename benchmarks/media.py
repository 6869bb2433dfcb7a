"""The media front end against the public schedule, on a 3.7 s 1280x720 clip with sound.

The peer reads the file as the public front end does, with our own parts: each of the five windows is sought and decoded for
itself, all of its frames become float32, and then two of them are kept; the sound is read by opening the file again. (The
public implementation itself took 5 s and 1.6 GB for the video of such a clip, on 2 threads.) Both contenders give torch one
thread, as a worker process of avt_get_emb.py has; FFmpeg keeps its own choice in the peer.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from imagebind_llm.clips.crops import crop_offsets, frame_spans, spatial_crops
from imagebind_llm.clips.media import load_clip

from .runner import Case

RATE = 48000
CLIP = "clip.mp4"


def write_clip(path: str, seconds: float, width: int, height: int, fps: int) -> None:
    """A textured picture that pans, under sensor noise, and stereo sound; h264 + aac, as a camera's file is."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 255, (height // 8, 2 * width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)
    with av.open(path, "w") as file:
        video = file.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = file.add_stream("aac", rate=RATE, layout="stereo")
        for i in range(round(seconds * fps)):
            picture = blocks[:, 4 * i : 4 * i + width] // 2 + random.integers(0, 20, (height, width, 1), dtype=np.uint8)
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(np.stack([tone, tone]).astype(np.float32), format="fltp", layout="stereo")
        sound.sample_rate = RATE
        file.mux(audio.encode(sound))
        file.mux(audio.encode())


def _clip(seconds: float, width: int, height: int, fps: int) -> tuple[Path, tempfile.TemporaryDirectory]:
    """The clip, written by another process, so that its memory is not taken for the contender's."""
    torch.set_num_threads(1)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / CLIP
    writer = multiprocessing.get_context("spawn").Process(target=write_clip, args=(str(path), seconds, width, height, fps))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise RuntimeError(f"writing {path} failed with exit code {writer.exitcode}")
    return path, folder


def ours(seconds: float, width: int, height: int, fps: int) -> Callable[[], float]:
    """One clip: one reading, the used frames only."""
    path, folder = _clip(seconds, width, height, fps)

    def run() -> float:
        assert folder.name in str(path)  # holds the folder as long as the contender lives
        for windows in load_clip(path, ["vision", "audio"]).values():
            if isinstance(windows, Exception):
                raise windows
        return 1

    return run


def public_schedule(seconds: float, width: int, height: int, fps: int) -> Callable[[], float]:
    """One clip as the public front end reads it."""
    path, folder = _clip(seconds, width, height, fps)

    def run() -> float:
        assert folder.name in str(path)
        public_crops(path)
        load_clip(path, ["audio"])
        return 1

    return run


def public_crops(path: Path) -> torch.Tensor:
    """(15, 3, 2, 224, 224): the public schedule's crops of a clip whose header tells its duration."""
    crops = []
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        base, duration = stream.time_base or Fraction(1), stream.duration or 0
        for low, high in frame_spans(duration * base, base):
            file.seek(low, stream=stream)
            frames = torch.stack([_float_frame(frame) for frame in _between(file, stream, low, high)], dim=1)  # (3,T,H,W)
            pair = [frames[:, 0], frames[:, -1]]
            offsets = crop_offsets(*frames.shape[2:])
            crops.append(torch.stack([spatial_crops(frame, offsets) for frame in pair], dim=2))  # (3,3,2,224,224)
    return torch.cat(crops)


def _between(file, stream, low: int, high: int) -> Iterator[av.VideoFrame]:
    for frame in file.decode(stream):
        if frame.pts >= high:
            return
        if frame.pts >= low:
            yield frame


def _float_frame(frame: av.VideoFrame) -> torch.Tensor:
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).float()


CASES = [
    Case(
        "front end, 3.7 s of 1280x720 with sound",
        "clip",
        "benchmarks.media:ours",
        "benchmarks.media:public_schedule",
        "wall at most 0.33, 400 MB",
        {"seconds": 3.7, "width": 1280, "height": 720, "fps": 30},
    )
]
