"""Frames of a clip as small JPEGs, for models that see."""

from pathlib import Path

import av

from imagebind_llm.clips.container import MediaError, open_container
from imagebind_llm.html import jpeg

LONGEST_SIDE = 512  # pixels


def frame_urls(clip: Path, n: int, longest_side: int = LONGEST_SIDE) -> list[str]:
    """n frames, evenly spread over the clip, as data URLs; fewer if it has fewer. Raises MediaError if it cannot be read.
    `longest_side`: in pixels, of larger ones."""
    try:
        with open_container(clip) as container:
            total = sum(1 for _ in container.decode(video=0))
        wanted = {round((i + 0.5) * total / n - 0.5) for i in range(n)}
        with open_container(clip) as container:
            frames = [frame.to_image() for i, frame in enumerate(container.decode(video=0)) if i in wanted]
    except (MediaError, OSError, IndexError, av.FFmpegError) as error:
        raise MediaError(f"{clip}: no frames can be read ({error})") from error
    if not frames:
        raise MediaError(f"{clip}: it has no frames")
    for frame in frames:
        frame.thumbnail((longest_side, longest_side))
    return [jpeg(frame) for frame in frames]
