"""Readers of data sets on disk; which one is picked by what the folder holds.

    MIntRec       train.tsv dev.tsv test.tsv (season episode clip text label)   raw_data/S05/E16/329.mp4
    MIntRec2.0    train.tsv dev.tsv test.tsv (Dialogue_id Utterance_id Text Label ...)   raw_data/dia2_utt0.mp4
    plain folder  one .csv or .tsv with the columns path and text (optional: key, split, label), clips beside it

The TSVs are read as they were written: tab separated, no quoting.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebind_llm.labels import MINTREC, MINTREC2, Taxonomy
from imagebind_llm.records import Example

SPLITS = ("train", "dev", "test")
WHOLE = "all"  # the split of a plain folder that names none


class DataError(ValueError):
    """The data set cannot be read as it is; the message says where and what was expected."""


@dataclass(frozen=True)
class Dataset:
    """A data set: its examples by split, in file order, and its taxonomy (None for a plain folder)."""

    root: Path
    layout: str
    splits: dict[str, list[Example]]
    taxonomy: Taxonomy | None

    @property
    def examples(self) -> list[Example]:
        return [example for rows in self.splits.values() for example in rows]


@dataclass(frozen=True)
class Layout:
    """How one release names its columns, keys and clips."""

    name: str
    columns: tuple[str, ...]
    taxonomy: Taxonomy
    key: Callable[[dict], str]
    clip: Callable[[dict], str]
    text: str
    label: str


LAYOUTS = (
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
)


def load_dataset(path: Path | str, splits: tuple[str, ...] = ()) -> Dataset:
    """Read a data set folder, or a CSV/TSV of clips; `splits` empty means all that are there.

    Raises DataError: no such folder, no table, a missing column, a malformed row, a label outside the taxonomy, a key that
    occurs twice, a split that is not there, a split without rows.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"--data_path {root}: no such file or folder; expected a MIntRec folder or clips with a CSV")
    tables = {} if root.is_file() else {split: found for split in SPLITS if (found := _split_table(root, split))}
    dataset = _read_release(root, tables, splits) if tables else _read_plain(root, splits)
    _refuse_duplicates(dataset)
    return dataset


def _split_table(root: Path, split: str) -> Path | None:
    """`dev.tsv`, or the one `*_dev.tsv` of a derived release."""
    if (root / f"{split}.tsv").is_file():
        return root / f"{split}.tsv"
    found = sorted(root.glob(f"*_{split}.tsv"))
    return found[0] if len(found) == 1 else None


def _read_release(root: Path, tables: dict[str, Path], wanted: tuple[str, ...]) -> Dataset:
    names = _chosen(root, list(tables), wanted)
    layout = _layout_of(tables[names[0]])
    clips = next((folder for folder in (root / "raw_data", root.parent / "raw_data") if folder.is_dir()), None)
    splits = {name: list(_release_rows(tables[name], name, layout, clips)) for name in names}
    return Dataset(root, layout.name, splits, layout.taxonomy)


def _layout_of(table: Path) -> Layout:
    header = next(_lines(table, "\t"), (0, []))[1]
    for layout in LAYOUTS:
        if set(layout.columns) <= set(header):
            return layout
    known = "; ".join(f"{layout.name}: {' '.join(layout.columns)}" for layout in LAYOUTS)
    raise DataError(f"{table}: expected the tab separated columns of one of ({known}), got: {' '.join(header) or 'nothing'}")


def _release_rows(table: Path, split: str, layout: Layout, clips: Path | None) -> Iterator[Example]:
    for line, row in _rows(table, "\t", layout.columns):
        try:
            intent = layout.taxonomy.canonical(row[layout.label])
        except ValueError as error:
            raise DataError(f"{table}, line {line}: {error}") from error
        clip = clips / layout.clip(row) if clips else None
        speaker = row.get("speakername") or row.get("speaker_name") or None
        yield Example(layout.key(row), split, clip, row[layout.text], intent, speaker)


def _read_plain(root: Path, wanted: tuple[str, ...]) -> Dataset:
    table = root if root.is_file() else _only_table(root)
    delimiter = "\t" if table.suffix == ".tsv" else ","
    splits: dict[str, list[Example]] = {}
    for line, row in _rows(table, delimiter, ("path", "text")):
        if not row["path"].strip():
            raise DataError(f"{table}, line {line}: the path is empty; expected the clip's file name")
        clip = table.parent / row["path"]
        key = row.get("key") or str(Path(row["path"]).with_suffix(""))
        split = row.get("split") or WHOLE
        splits.setdefault(split, []).append(Example(key, split, clip, row["text"], row.get("label") or None))
    if not splits:
        raise DataError(f"{table}: no rows; expected one clip a line with the columns path and text")
    chosen = _chosen(root, list(splits), wanted)
    return Dataset(table.parent, "plain folder", {name: splits[name] for name in chosen}, None)


def _only_table(root: Path) -> Path:
    below = [child.name for child in sorted(root.iterdir()) if child.is_dir() and _split_table(child, "train")]
    if below:
        folders = ", ".join(str(root / name) for name in below)
        raise DataError(f"{root}: the splits are in subfolders; pass one of them: {folders}")
    tables = sorted([*root.glob("*.csv"), *root.glob("*.tsv")])
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise DataError(
            f"{root}: expected train.tsv/dev.tsv/test.tsv (MIntRec, MIntRec2.0) or exactly one CSV/TSV with the columns "
            f"path and text, found: {found}; pass the table itself as --data_path if there are several"
        )
    return tables[0]


def _chosen(root: Path, there: list[str], wanted: tuple[str, ...]) -> list[str]:
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise DataError(f"{root}: no split {', '.join(unknown)} here; there are: {', '.join(there)}")
    return [name for name in there if name in wanted] if wanted else there


def _lines(table: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line that is not empty; CSV may quote, TSV never does."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            unquoted = delimiter == "\t"
            reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL)
            yield from ((reader.line_num, fields) for fields in reader if fields)
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{table}: not readable as a table ({error})") from error


def _rows(table: Path, delimiter: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: field}) of every row. Raises DataError for a missing column or a row of another width."""
    lines = _lines(table, delimiter)
    _, header = next(lines, (0, []))
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{table}: column {', '.join(missing)} is missing; got: {', '.join(header) or 'an empty file'}")
    for line, fields in lines:
        if len(fields) != len(header):
            raise DataError(f"{table}, line {line}: expected {len(header)} fields ({' '.join(header)}), got {len(fields)}")
        yield line, dict(zip(header, fields, strict=True))


def _refuse_duplicates(dataset: Dataset) -> None:
    seen: dict[str, str] = {}
    for split, examples in dataset.splits.items():
        if not examples:
            raise DataError(f"{dataset.root}: split {split} has no rows")
        for example in examples:
            if example.key in seen:
                raise DataError(
                    f"{dataset.root}: key {example.key} occurs twice ({seen[example.key]} and {split}); a key names one clip: "
                    f"delete one of the rows, or, in a CSV of your own, add a column key"
                )
            seen[example.key] = split
