"""A MIntRec folder as a data owner has it, small: the official layout and keys, clips of the demo world, some of them bad."""

import json
from pathlib import Path

from toy_training import CUES, INTENTS

from imagebind_llm.demo_world.write import rows, write_clip

ROWS = {"train": 36, "dev": 9, "test": 9}
MISSING, CORRUPT = "S04_E11_204", "S04_E11_205"


def write_mintrec(root: Path, n_clips: int = 8) -> Path:
    """Tables of 54 rows of three intents over six episodes, rationales, captions, and clips.

    The clips are in turn the same `n_clips`: a third of them for test, the others for train and dev. The first clip is missing,
    the second cut off.
    """
    made = rows(0, {"train": n_clips, "dev": 0, "test": 0})
    source = [root / "made" / f"{i}.mp4" for i in range(n_clips)]
    held_out = n_clips // 3
    known, unknown = source[held_out:], source[:held_out]
    for path, row in zip(source, made, strict=True):
        write_clip(path, row, seed=0)
    rationales, captions, number = [], [], 204
    for split, count in ROWS.items():
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        for i in range(count):
            season, episode, intent = "S04", f"E{11 + (i // 3) % 6}", INTENTS[i % 3]
            clip = root / "raw_data" / season / episode / f"{number}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            pool = unknown if split == "test" else known
            clip.write_bytes(pool[number % len(pool)].read_bytes())
            lines.append(f"{season}\t{episode}\t{number}\twe talk about matter {number}\t{intent}")
            rationales.append({"key": f"{season}_{episode}_{number}", "rationale": f"We see {CUES[intent]}."})
            if split != "test":
                captions.append({"key": rationales[-1]["key"], "split": split, "caption": f"Face: {CUES[intent]}."})
            number += 1
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    for path in source:
        path.unlink()
    (root / "made").rmdir()
    place = {key: (root / "raw_data").joinpath(*key.split("_")).with_suffix(".mp4") for key in (MISSING, CORRUPT)}
    place[MISSING].unlink()
    place[CORRUPT].write_bytes(place[CORRUPT].read_bytes()[:2000])
    (root / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rationales))
    (root / "captions.json").write_text(json.dumps(captions))
    return root
