"""Readers of data sets on disk. The layout is recognised by the files of the folder.

    MIntRec       train.tsv dev.tsv test.tsv (season episode clip text label)   raw_data/S05/E16/329.mp4
    MIntRec2.0    train.tsv dev.tsv test.tsv (Dialogue_id Utterance_id Text Label ...)   raw_data/dia2_utt0.mp4
    plain folder  one .csv or .tsv with the columns path and text (optional: key, split, label, coarse) and the clips; with
                  labels and a split train its taxonomy is made of its labels, and of their coarse classes in the column coarse

The TSVs are tab separated, without quoting. There may be a rationales.jsonl in the same folder. `load_dataset` raises at the
first fault; `python -m imagebind_llm.check PATH` uses the same readers and lists all faults.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imagebind_llm.datasets.layouts import LAYOUTS, Layout
from imagebind_llm.records import Example
from imagebind_llm.taxonomy import Taxonomy, own_taxonomy, plain_label

SPLITS = ("train", "dev", "test")
PLAIN = "plain folder"  # name of the layout of a user's own table
WHOLE = "all"  # split of the rows of a plain folder without a column split


class DataError(ValueError):
    """The data set cannot be read; the message says where the fault is and what was expected."""


# What to do about a fault that does not keep the rest from being read, as (kind, message); kinds: table, row, label, key.
Refuse = Callable[[str, str], None]


@dataclass(frozen=True)
class Dataset:
    """A data set: its examples by split, in file order, and its taxonomy (None for a plain folder whose train split, if
    there is one, has no labels).

    `clips`: the folder below which all clips are; None where a release has none. `tables`: the files that were read.
    """

    root: Path
    layout: str
    splits: dict[str, list[Example]]
    taxonomy: Taxonomy | None
    clips: Path | None
    tables: tuple[Path, ...]

    @property
    def examples(self) -> list[Example]:
        return [example for rows in self.splits.values() for example in rows]


def load_dataset(path: Path | str, splits: tuple[str, ...] = ()) -> Dataset:
    """Read a data set folder, or a CSV/TSV of clips; `splits` empty means all that are there.

    Raises DataError: no such folder, no table, a missing column, a malformed row, a label outside the taxonomy, a key that
    occurs twice, a split that is not there, a split without rows.
    """

    def stop(_: str, message: str) -> None:
        raise DataError(f"{message}\n(all that is wrong here at once: python -m imagebind_llm.check {path})")

    return read_dataset(path, splits, stop)


def read_dataset(path: Path | str, splits: tuple[str, ...], refuse: Refuse) -> Dataset:
    """The one reader of both: every fault goes to `refuse`; where that returns, the rest is read.

    Then a malformed row is left out, a row with an unknown label has no intent, and one whose key was there before stays.
    Raises DataError where there is nothing to read at all.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"--data_path {root}: no such file or folder; expected a MIntRec folder or clips with a CSV")
    tables = {} if root.is_file() else {split: table for split in SPLITS if (table := _split_table(root, split))}
    dataset = _read_release(root, tables, splits, refuse) if tables else _read_plain(root, splits, refuse)
    _refuse_duplicates(dataset, refuse)
    return dataset


def folder_of(path: Path | str) -> Path:
    """The folder of a data set that is given as a folder or as a table in it."""
    return Path(path).parent if Path(path).is_file() else Path(path)


def _split_table(root: Path, split: str) -> Path | None:
    """The table of a split as a layout names it, or the one `*_dev.tsv` of a derived release."""
    for name in dict.fromkeys(layout.table.format(split=split) for layout in LAYOUTS):
        if (root / name).is_file():
            return root / name
    tables = sorted(root.glob(f"*_{split}.tsv"))
    return tables[0] if len(tables) == 1 else None


def _read_release(root: Path, tables: dict[str, Path], requested: tuple[str, ...], refuse: Refuse) -> Dataset:
    names = _requested_names(root, list(tables), requested)
    layout = _layout_of([tables[name] for name in names])
    clips = next((folder for folder in (root / "raw_data", root.parent / "raw_data") if folder.is_dir()), None)
    splits = {name: list(_release_rows(tables[name], name, layout, clips, refuse)) for name in names}
    return Dataset(root, layout.name, splits, layout.taxonomy, clips, tuple(tables[name] for name in names))


def _layout_of(tables: list[Path]) -> Layout:
    """The layout of the first table that has one; what the others lack is said when they are read."""
    headers = [_header(table) for table in tables]
    for header in headers:
        for layout in LAYOUTS:
            if set(layout.columns) <= set(header):
                return layout
    expected = "; ".join(f"{layout.name}: {' '.join(layout.columns)}" for layout in LAYOUTS)
    delimiter = _delimiter(tables[0])
    got = " ".join(next(_lines(tables[0], delimiter), (0, []))[1]) or "nothing"  # or raises what is wrong with the file
    kind = "tab" if delimiter == "\t" else "comma"
    raise DataError(f"{tables[0]}: expected the {kind} separated columns of one of ({expected}), got: {got}")


def _delimiter(table: Path) -> str:
    return "\t" if table.suffix == ".tsv" else ","


def _header(table: Path) -> list[str]:
    try:
        return next(_lines(table, _delimiter(table)), (0, []))[1]
    except DataError:  # another table may tell the layout; reading this one says what is wrong with it
        return []


def _release_rows(table: Path, split: str, layout: Layout, clips: Path | None, refuse: Refuse) -> Iterator[Example]:
    for line, fields in _rows(table, _delimiter(table), layout.columns, refuse):
        row, intent = {"split": split} | fields, None
        try:
            intent = layout.taxonomy.canonical(row[layout.label])
        except ValueError as error:
            refuse("label", f"{table}, line {line}: {error}")
        clip = clips / layout.clip(row) if clips else None
        speaker = row.get("speakername") or row.get("speaker_name") or None
        yield Example(layout.key(row), split, clip, row[layout.text], intent, speaker)


def _read_plain(root: Path, requested: tuple[str, ...], refuse: Refuse) -> Dataset:
    table = root if root.is_file() else _only_table(root)
    splits: dict[str, list[Example]] = {}
    coarse_of: dict[str, str] = {}
    for line, row in _rows(table, _delimiter(table), ("path", "text"), refuse):
        if not row["path"].strip():
            refuse("row", f"{table}, line {line}: the path is empty; expected the clip's file name")
            continue
        clip = table.parent / row["path"]
        key = row.get("key") or str(Path(row["path"]).with_suffix(""))
        split = row.get("split") or WHOLE
        label, coarse = ((row.get(column) or "").strip() for column in ("label", "coarse"))
        splits.setdefault(split, []).append(Example(key, split, clip, row["text"], label or None))
        if label and (before := coarse_of.setdefault(plain_label(label), coarse)) != coarse:
            refuse("label", f"{table}, line {line}: label {label!r} has the coarse class {coarse!r}, above it has {before!r}")
    if not splits:
        refuse("table", f"{table}: no rows; expected one clip a line with the columns path and text")
    names = _requested_names(root, list(splits), requested)
    taxonomy = None
    if any(example.intent for example in splits.get("train", [])):
        if any(coarse_of.values()) and (empty := [label for label, coarse in coarse_of.items() if not coarse]):
            refuse("label", f"{table}: no coarse class for the label {', '.join(empty)}; fill the column coarse, or delete it")
            coarse_of = {}
        labels = (example.intent for rows in splits.values() for example in rows if example.intent)
        taxonomy = own_taxonomy(labels, coarse_of if any(coarse_of.values()) else None)
    spelled = {name: [_spelled(example, taxonomy) for example in splits[name]] for name in names}
    return Dataset(table.parent, PLAIN, spelled, taxonomy, table.parent, (table,))


def _spelled(example: Example, taxonomy: Taxonomy | None) -> Example:
    """The example with the taxonomy's spelling of its label."""
    return replace(example, intent=taxonomy.canonical(example.intent)) if taxonomy and example.intent else example


def _only_table(root: Path) -> Path:
    subfolders = [child.name for child in sorted(root.iterdir()) if child.is_dir() and _split_table(child, "train")]
    if subfolders:
        folders = ", ".join(str(root / name) for name in subfolders)
        raise DataError(f"{root}: the splits are in subfolders; pass one of them: {folders}")
    tables = sorted([*root.glob("*.csv"), *root.glob("*.tsv")])
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables) or "none"
        raise DataError(
            f"{root}: expected train.tsv/dev.tsv/test.tsv (MIntRec, MIntRec2.0) or exactly one CSV/TSV with the columns "
            f"path and text, found: {names}; pass the table itself as --data_path if there are several"
        )
    return tables[0]


def _requested_names(root: Path, names: list[str], requested: tuple[str, ...]) -> list[str]:
    unknown = [name for name in requested if name not in names]
    if unknown:
        raise DataError(f"{root}: no split {', '.join(unknown)} here; there are: {', '.join(names)}")
    return [name for name in names if name in requested] if requested else names


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


def _rows(table: Path, delimiter: str, columns: tuple[str, ...], refuse: Refuse) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: field}) of every row; refused: a missing column, a row of another width, what is no table."""
    try:
        lines = _lines(table, delimiter)
        _, header = next(lines, (0, []))
        missing = [column for column in columns if column not in header]
        if missing:
            got = ", ".join(header) or "an empty file"
            return refuse("table", f"{table}: column {', '.join(missing)} is missing; got: {got}")
        for line, fields in lines:
            if len(fields) == len(header):
                yield line, dict(zip(header, fields, strict=True))
            else:
                expected = f"expected {len(header)} fields ({' '.join(header)}), got {len(fields)}"
                refuse("row", f"{table}, line {line}: {expected}")
    except DataError as error:  # of _lines; the rows before stay
        refuse("table", str(error))


def _refuse_duplicates(dataset: Dataset, refuse: Refuse) -> None:
    seen: dict[str, str] = {}
    for split, examples in dataset.splits.items():
        if not examples:
            refuse("table", f"{dataset.root}: split {split} has no rows")
        for example in examples:
            if example.key in seen:
                refuse(
                    "key",
                    f"{dataset.root}: key {example.key} occurs twice ({seen[example.key]} and {split}); a key names one clip: "
                    f"delete one of the rows, or, in a CSV of your own, add a column key",
                )
            seen[example.key] = split


# --- what is said, and why --------------------------------------------------------------------------------------------


def normal_text(text: str) -> str:
    """A text without case and spacing."""
    return " ".join(text.lower().split())


def rationale_rows(file: Path) -> dict[str, dict]:
    """By key, the objects of a rationales.jsonl: key, rationale, and what else they have; of two with one key the later.

    Raises DataError for a file that is not there, or a line that is no such object.
    """
    rows: dict[str, dict] = {}
    number = 0
    try:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            number += 1
            if line.strip():
                row = json.loads(line)
                rows[row["key"]] = row | {"rationale": row["rationale"] or ""}
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; expected JSON lines of {{key, intent, rationale}}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}, line {number}: expected an object with key and rationale ({error!r})") from error
    return rows
