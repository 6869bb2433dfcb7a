"""The layouts of published data sets: a table for each of train, dev and test with columns of its own, clips below raw_data.

A data set with another layout: an entry in LAYOUTS, and its intents in taxonomy.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from imagebind_llm.taxonomy import MINTREC, MINTREC2, Taxonomy


@dataclass(frozen=True)
class Layout:
    """How one release names its tables, columns, keys and clips.

    key, clip: of a row, its key and its clip's file below raw_data; the row has its split, too. table: its fields are tab
    separated if it ends in .tsv, else by commas.
    """

    name: str
    columns: tuple[str, ...]
    taxonomy: Taxonomy
    key: Callable[[dict], str]
    clip: Callable[[dict], str]
    text: str
    label: str
    table: str = "{split}.tsv"


LAYOUTS = [
    Layout(
        "MIntRec",
        ("season", "episode", "clip", "text", "label"),
        MINTREC,
        lambda row: f"{row['season']}_{row['episode']}_{row['clip']}",
        lambda row: f"{row['season']}/{row['episode']}/{row['clip']}.mp4",
        "text",
        "label",
    ),
    Layout(
        "MIntRec2.0",
        ("Dialogue_id", "Utterance_id", "Text", "Label"),
        MINTREC2,
        lambda row: f"dia{row['Dialogue_id']}_utt{row['Utterance_id']}",
        lambda row: f"dia{row['Dialogue_id']}_utt{row['Utterance_id']}.mp4",
        "Text",
        "Label",
    ),
]
