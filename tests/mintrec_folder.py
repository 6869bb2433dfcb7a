"""A MIntRec folder as a data owner has it, small: the official layout and keys, clips of the demo world, some of them bad."""

import json
from pathlib import Path

from toy_training import CUES, INTENTS

from imagebind_llm.demo_world.write import draw_world, write_clip

ROWS = {"train": 36, "dev": 9, "test": 9}
MISSING, CORRUPT = "S04_E11_204", "S04_E11_205"


EPISODES = 6


def write_mintrec(root: Path) -> Path:
    """Tables of 54 rows of three intents over six episodes, rationales, captions, and clips.

    All rows of an episode have the same clip, and those of test another: so neither the official splits nor those by episode
    share one. The first clip is missing, the second cut off.
    """
    n_clips = EPISODES + 3  # test has rows of three episodes
    made = draw_world(0, {"train": n_clips, "dev": 0, "test": 0})
    source = [root / "made" / f"{i}.mp4" for i in range(n_clips)]
    for path, row in zip(source, made, strict=True):
        write_clip(path, row, seed=0)
    rationales, captions, number = [], [], 204
    for split, count in ROWS.items():
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        for i in range(count):
            place = (i // 3) % EPISODES
            season, episode, intent = "S04", f"E{11 + place}", INTENTS[i % 3]
            clip = root / "raw_data" / season / episode / f"{number}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            clip.write_bytes(source[place + EPISODES * (split == "test")].read_bytes())
            lines.append(f"{season}\t{episode}\t{number}\twe talk about matter {number}\t{intent}")
            rationales.append({"key": f"{season}_{episode}_{number}", "rationale": f"We see {CUES[intent]}."})
            if split != "test":
                captions.append({"key": rationales[-1]["key"], "split": split, "caption": f"Face: {CUES[intent]}."})
            number += 1
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    for path in source:
        path.unlink()
    (root / "made").rmdir()
    bad = {key: (root / "raw_data").joinpath(*key.split("_")).with_suffix(".mp4") for key in (MISSING, CORRUPT)}
    bad[MISSING].unlink()
    bad[CORRUPT].write_bytes(bad[CORRUPT].read_bytes()[:2000])
    (root / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rationales))
    (root / "captions.json").write_text(json.dumps(captions))
    return root
