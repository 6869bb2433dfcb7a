"""What the demo world tells about itself in its own folder, for whoever evaluates on it: nothing above imports this package.

ceilings.json      the best accuracy that anyone can reach from every subset of modalities (for intents/evaluation.py)
cue_phrases.json   the phrases of every cue, what each intent usually shows, clip-blind templates (for explain/cue_table.py)
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from imagebind_llm.config import CEILINGS, MODALITIES, modality_subsets
from imagebind_llm.demo_world import cues, phrases, texts
from imagebind_llm.explain.cue_table import CueTable
from imagebind_llm.files import write_json


def _template(intent: str) -> str:
    """The clip-blind rationale of an intent: one fixed sentence, in which all that is seen, heard and said is typical."""
    values = dict(cues.TYPICAL[intent])
    return phrases.reference_text(cues.Scene(intent, values.pop("family"), values), np.random.default_rng(0))


CUE_TABLE = CueTable(
    {
        "text": {"family": phrases.GISTS},
        "audio": {cue: phrases.PHRASES[cue] for cue in cues.VOCAL},
        "vision": {cue: phrases.PHRASES[cue] for cue in cues.VISUAL},
    },
    cues.TYPICAL,
    {intent: _template(intent) for intent in cues.TYPICAL},
)


def publish_tables(root: Path) -> None:
    """Write ceilings.json and cue_phrases.json."""
    ceilings = {"+".join(subset): cues.bayes_accuracy(subset) for subset in modality_subsets(MODALITIES)}
    write_json(root / CEILINGS, ceilings)
    CUE_TABLE.write(root)


def tables_digest() -> str:
    """Tells worlds apart by what is published of them: cues and their reliability, phrases and sentences."""
    tables = [
        *(cues.TABLE, cues.VALUES, cues.RELIABILITY),
        *(phrases.PHRASES, phrases.GISTS, phrases.TEMPLATES, phrases.REMARKS),
        *(texts.SLOTS, texts.TEMPLATES, {split: list(parts) for split, parts in texts.POOLS.items()}),
    ]
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:16]
