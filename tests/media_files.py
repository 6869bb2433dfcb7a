"""Small real clips for tests, written by PyAV: h264 + aac in mp4, with a moving picture and a changing tone."""

from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    seconds: float = 1.0,
    size: tuple[int, int] = (96, 64),
    fps: int = 10,
    rate: int = 16000,
    channels: int = 1,
    video: bool = True,
    audio: bool = True,
    seed: int = 0,
) -> None:
    """Write one clip; `size` is (width, height), `seed` changes picture and sound."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        if video:
            stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if audio:
            sound = container.add_stream("aac", rate=rate, layout="stereo" if channels == 2 else "mono")
        if video:
            picture = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            for i in range(round(seconds * fps)):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * i, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if audio:
            time = np.arange(round(seconds * rate)) / rate
            tone = 0.4 * np.sin(2 * np.pi * (200 + 50 * seed) * time * (1 + 0.2 * time))
            samples = np.repeat(tone[:, None], channels, axis=1).reshape(1, -1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="stereo" if channels == 2 else "mono")
            frame.sample_rate = rate
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
