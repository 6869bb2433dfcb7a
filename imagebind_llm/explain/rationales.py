"""Reads files of rationales: references of a data set, and answers of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagebind_llm.datasets.readers import rationale_rows
from imagebind_llm.explain.cue_table import CueTable


@dataclass(frozen=True)
class Rationale:
    """A line of a JSONL file of rationales."""

    key: str
    intent: str
    rationale: str
    cues: Mapping[str, str] | None = None  # true cues of the clip, if they are known
    seen: bool = False  # its model was trained or chosen on the clip
    table: CueTable | None = field(default=None, repr=False)  # phrases that name the cues


def read_rationales(path: Path) -> dict[str, Rationale]:
    """The lines of a JSONL file of {key, rationale, intent, cues} by key, the later one of equal keys.

    The table of cues is read from the same folder. Raises DataError for a line that is not of this form.
    """
    table = CueTable.beside(path.parent)
    return {
        key: Rationale(key, row.get("intent") or "", row["rationale"], row.get("cues"), bool(row.get("seen")), table)
        for key, row in rationale_rows(path).items()
    }
