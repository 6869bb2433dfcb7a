"""Reference rationales of another kind, beside the world's own: what is to be learnt from changes, the clips do not.

rationales.jsonl        faithful: what its clip shows, and scores are held against it whatever was trained on
rationales-blind.jsonl  train's and dev's as written by somebody who knows the intent and the words but never saw the clip:
                        the cues are drawn from what the intent usually shows, the sentences are the same
rationales-10.jsonl     a tenth of train's and of dev's; a row without a rationale keeps its intent

Train on one with `engine_finetune.py --rationales FILE`. Test keeps its faithful references in all of them, and `cues` is
always the truth about the clip, for scoring alone: training reads nothing but the rationale.
"""

import json
from pathlib import Path

import numpy as np

from imagebind_llm.config import BLIND
from imagebind_llm.datasets.readers import SPLITS
from imagebind_llm.demo_world.cues import CUES, WORLD, Scene, draw_values
from imagebind_llm.demo_world.phrases import reference_text
from imagebind_llm.demo_world.write import WorldClip, generator, reference
from imagebind_llm.files import write_json, write_json_lines


def write_references(root: Path, kind: str, rows: list[WorldClip], seed: int) -> Path:
    """Write the references of a kind, blind or N%, of a world whose rows are these, and note them in world.json. Returns the
    file."""
    chosen = blind(rows, seed) if kind == BLIND else thinned(rows, seed, int(kind.removesuffix("%")))
    path = root / f"rationales-{kind.removesuffix('%')}.jsonl"
    write_json_lines(path, chosen)
    world = json.loads((root / WORLD).read_text())
    world["references"][kind] = path.name
    write_json(root / WORLD, world, indent=None)
    return path


def blind(rows: list[WorldClip], seed: int) -> list[dict]:
    """Every row as in rationales.jsonl, but for train's and dev's rationales, which argue from drawn cues."""
    return [reference(row) | ({} if row.split == "test" else {"rationale": blind_rationale(row, seed)}) for row in rows]


def blind_rationale(row: WorldClip, seed: int) -> str:
    """What argues for the row's intent under its words, in a clip that was imagined."""
    rng = generator(seed, row.split, row.index, "references")
    imagined = Scene(row.scene.intent, row.scene.family, draw_values(row.scene.intent, tuple(CUES), rng))
    return reference_text(imagined, rng)


def thinned(rows: list[WorldClip], seed: int, percent: int) -> list[dict]:
    """Every row, with the rationales of so many percent of train and of dev, drawn; more percent keep these and add some."""
    kept = {row.key for row in rows if row.split == "test"}
    for split in SPLITS[:2]:
        clips = [row for row in rows if row.split == split]
        lots = np.array([generator(seed, row.split, row.index, "references").random() for row in clips])
        kept |= {clips[i].key for i in lots.argsort()[: max(1, round(percent * len(clips) / 100))]}
    return [reference(row) | ({} if row.key in kept else {"rationale": ""}) for row in rows]
