"""Rationales as files have them: references beside a data set, and answers of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagebind_llm.datasets.readers import rationale_rows
from imagebind_llm.explain.cue_table import CueTable


@dataclass(frozen=True)
class Rationale:
    """A line of a rationales.jsonl: `cues` is the truth about the clip, where it is known, and `table` says how texts name it;
    `seen`: written by a model that was trained or chosen on the clip."""

    key: str
    intent: str
    rationale: str
    cues: Mapping[str, str] | None = None
    seen: bool = False
    table: CueTable | None = field(default=None, repr=False)


def read_rationales(path: Path) -> dict[str, Rationale]:
    """By key, the lines of a JSONL of {key, rationale, intent, cues}; of two with one key the later. The table of cues is the
    one in the same folder. Raises DataError."""
    table = CueTable.beside(path.parent)
    return {
        key: Rationale(key, row.get("intent") or "", row["rationale"], row.get("cues"), bool(row.get("seen")), table)
        for key, row in rationale_rows(path).items()
    }
