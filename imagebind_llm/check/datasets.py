"""What a data set on disk is: layout, counts beside the official ones, its clips, its texts; everything that is wrong at once.

The tables are read by the readers of `load_dataset`, so what passes here is what the commands accept. Clips are opened and
read to their end, not decoded: damage inside a picture shows in avt_get_emb.py, which lists it too.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from imagebind_llm.clips.container import MediaError, look_into
from imagebind_llm.datasets.readers import PLAIN, SPLITS, DataError, Dataset, normal_text, rationale_rows, read_dataset
from imagebind_llm.records import Example

LISTED = 5
ROWS = {
    "MIntRec": {"train": 1334, "dev": 445, "test": 445},
    "MIntRec2.0": {"train": 6165, "dev": 1106, "test": 2033},  # in scope; its other counts are not published per split
}
INTENTS = {  # rows of each intent in train, dev, test
    "MIntRec": {
        **{"Complain": (172, 57, 57), "Praise": (127, 43, 43), "Apologise": (82, 27, 27), "Thank": (74, 25, 25)},
        **{"Criticize": (70, 24, 23), "Agree": (35, 12, 12), "Taunt": (38, 12, 12), "Flaunt": (32, 10, 10)},
        **{"Joke": (31, 10, 10), "Oppose": (31, 10, 10), "Comfort": (52, 18, 18), "Care": (57, 19, 19)},
        **{"Inform": (170, 57, 57), "Advise": (73, 24, 25), "Arrange": (66, 22, 22), "Introduce": (63, 21, 21)},
        **{"Leave": (51, 17, 17), "Prevent": (43, 15, 15), "Greet": (36, 12, 12), "Ask for help": (31, 10, 10)},
    }
}
WRONG = {
    "table": "a table that cannot be read as it is",
    "row": "rows that are malformed",
    "label": "labels outside the taxonomy",
    "key": "keys that occur twice",
}


@dataclass(frozen=True)
class Finding:
    """Something a data owner should know, and where. `kind`: note (costs nothing), loss (counts as absent) or problem."""

    kind: str
    what: str
    where: tuple[str, ...] = ()


@dataclass
class Report:
    """Facts for people in the order of reading, the intents by split, and what was found."""

    facts: dict[str, str] = field(default_factory=dict)
    intents: list[tuple[str, ...]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    next_step: str = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps it from being used."""
        return tuple(finding.what for finding in self.findings if finding.kind == "problem")

    @property
    def exit_code(self) -> int:
        """0 usable as it is, 1 with losses, 2 not."""
        kinds = {finding.kind for finding in self.findings}
        return 2 if "problem" in kinds else 1 if "loss" in kinds else 0

    def add(self, kind: str, what: str, where: Sequence[str] = ()) -> None:
        self.findings.append(Finding(kind, what, tuple(where)))

    def text(self, everything: bool = False) -> str:
        """The page; of each finding a handful of places, or all."""
        lines = [f"{name:<11} {value}" for name, value in self.facts.items()]
        if self.intents:
            lines += ["", *(f"  {row[0]:<20}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in self.intents), ""]
        for finding in sorted(self.findings, key=lambda item: ("note", "loss", "problem").index(item.kind)):
            shown = finding.where if everything else finding.where[:LISTED]
            lines += [f"{finding.kind:<11} {finding.what}", *(f"              {place}" for place in shown)]
            if more := len(finding.where) - len(shown):
                lines += [f"              and {more} more (--all names them)"]
        verdict = ("yes", "yes, with the losses above", "no: mend the problems above")[self.exit_code]
        lines.append(f"{'usable':<11} {verdict}")
        return "\n".join(lines + ([f"{'next':<11} {self.next_step}"] if self.next_step else []))


def check(path: Path) -> Report:
    """Look at everything below `path`. Never raises for bad data: the report says what is wrong with it."""
    report = Report({"path": str(path)}, next_step=f"python -m imagebind_llm.check {shlex.quote(str(path))}")
    wrong: dict[str, list[str]] = {}
    try:
        dataset = read_dataset(path, (), lambda kind, message: wrong.setdefault(kind, []).append(message))
    except DataError as error:
        report.add("problem", str(error))
        return report
    for kind, messages in wrong.items():
        report.add("problem", f"{len(messages)} {WRONG[kind]}" if len(messages) > 1 else WRONG[kind], messages)
    _rows(report, dataset)
    _labels(report, dataset)
    readable = _clips(report, dataset)
    _texts(report, dataset)
    _rationales(report, dataset)
    if report.exit_code < 2:
        report.next_step = _next_step(path, dataset, readable)
    return report


# --- rows and labels --------------------------------------------------------------------------------------------------


def _is_demo(dataset: Dataset) -> bool:
    return (dataset.root / "world.json").is_file()


def _in_scope(dataset: Dataset) -> dict[str, list[Example]]:
    outside = dataset.taxonomy.out_of_scope if dataset.taxonomy else None
    return {split: [e for e in rows if outside is None or e.intent != outside] for split, rows in dataset.splits.items()}


def _rows(report: Report, dataset: Dataset) -> None:
    """What it is, where things are, rows per split beside the official ones."""
    official = {} if _is_demo(dataset) else ROWS.get(dataset.layout, {})
    rows = _in_scope(dataset)
    report.facts["what"] = "the demo world, in MIntRec's layout" if _is_demo(dataset) else dataset.layout
    report.facts["tables"] = " ".join(str(table) for table in dataset.tables)
    report.facts["clips in"] = str(dataset.clips) if dataset.clips else "no folder raw_data here, nor beside it"
    beside = {name: f" (official: {official[name]})" if name in official else "" for name in rows}
    report.facts["rows"] = ", ".join(f"{name} {len(examples)}{beside[name]}" for name, examples in rows.items())
    if different := [name for name, examples in rows.items() if official.get(name, len(examples)) != len(examples)]:
        splits = ", ".join(different)
        report.add("note", f"not the official {dataset.layout} ({splits}): no result compares with the published ones")
    outside = len(dataset.examples) - sum(map(len, rows.values()))
    if outside:
        report.add("loss", f"{outside} rows are out of scope: engine_finetune.py takes the in-scope release only")
    if dataset.taxonomy and (gone := [split for split in SPLITS if split not in rows]):
        named = (f"split {split}" if dataset.layout == PLAIN else f"{split}.tsv" for split in gone)
        report.add("loss", f"no {' or '.join(named)}: train trains, dev chooses, test is reported")


def _labels(report: Report, dataset: Dataset) -> None:
    """Rows per split and intent; in brackets the official number where it is another."""
    counts = {split: Counter(e.intent for e in rows if e.intent) for split, rows in dataset.splits.items()}
    if dataset.taxonomy is None:
        if bare := [e.key for e in dataset.examples if not e.intent]:
            report.add("note", f"{len(bare)} rows have no label: they can be embedded and explained, not trained on or scored")
        return
    official = {} if _is_demo(dataset) else INTENTS.get(dataset.layout, {})
    report.intents.append(("intent", *counts))
    for label in (*dataset.taxonomy.labels, *filter(None, [dataset.taxonomy.out_of_scope])):
        if any(of_split[label] for of_split in counts.values()) or label in official:
            want = dict(zip(SPLITS, official.get(label, ()), strict=False))
            report.intents.append((label, *(_beside(of_split[label], want.get(split)) for split, of_split in counts.items())))
    if "train" in counts and (unseen := sorted(set().union(*counts.values()) - set(counts["train"]))):
        report.add("loss", f"no row in train has the intent {', '.join(unseen)}: it is never named; classifier.py refuses that")


def _beside(count: int, official: int | None) -> str:
    return str(count) if official in (None, count) else f"{count} ({official})"


# --- clips ------------------------------------------------------------------------------------------------------------


def _clips(report: Report, dataset: Dataset) -> int:
    """Open every clip that a row names, look for those that none names; returns how many can be read."""
    if dataset.clips is None:
        video = next(_videos(dataset.root, {".mp4"}), None)
        hint = f"; there are videos, {video} for one: their folder must be called raw_data" if video else ""
        wanted = dataset.root / "raw_data"
        report.add(
            "loss", f"no clips: expected them below {wanted} or beside the folder{hint}; the rows keep their words alone"
        )
        return 0
    named: dict[Path, str] = {e.clip: e.key for e in dataset.examples if e.clip}
    if len(named) < len(dataset.examples):
        report.add("note", f"{len(dataset.examples) - len(named)} rows name the clip of another row")
    bad: dict[str, list[str]] = {"missing": [], "unreadable": [], "silent": [], "blind": []}
    lengths = []
    for clip, key in tqdm(named.items(), desc="opening", unit="clip", disable=not named):
        if not os.path.isfile(clip):
            bad["missing"].append(f"{key}: {clip}")
            continue
        try:
            contents = look_into(clip)
        except MediaError as error:
            bad["unreadable"].append(f"{key}: {clip}: {error}")
            continue
        lengths.append(contents.duration_s)
        bad["silent"] += [] if contents.audio else [f"{key}: {clip}"]
        bad["blind"] += [] if contents.video else [f"{key}: {clip}"]
    if lengths:
        seconds = f"{sum(lengths) / len(lengths):.2f} s on average, longest {max(lengths):.2f} s"
        report.facts["clips"] = f"{len(lengths)} of {len(named)} can be opened; {seconds}"
    for kind, what in (
        ("missing", "clips are not there: their rows keep their words alone"),
        ("unreadable", "clips cannot be read: their rows keep their words alone"),
        ("silent", "clips have no sound"),
        ("blind", "clips have no picture"),
    ):
        if bad[kind]:
            report.add("loss", f"{len(bad[kind])} of {len(named)} {what}", bad[kind])
    listed_clips = {os.path.normpath(clip) for clip in named}
    suffixes = {clip.suffix for clip in named} | {".mp4"}
    if unnamed := [str(file) for file in _videos(dataset.clips, suffixes) if os.path.normpath(file) not in listed_clips]:
        report.add("note", f"{len(unnamed)} clips that no row names", sorted(unnamed))
    return len(lengths)


def _videos(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    for place, _, files in os.walk(folder):
        yield from (Path(place, file) for file in files if Path(file).suffix in suffixes)


# --- texts and rationales ---------------------------------------------------------------------------------------------


def _texts(report: Report, dataset: Dataset) -> None:
    if empty := [e.key for e in dataset.examples if not e.text.strip()]:
        report.add("loss", f"{len(empty)} rows have no words", empty)
    for first, second in combinations(dataset.splits, 2):
        first_texts = {normal_text(e.text) for e in dataset.splits[first] if e.text.strip()}
        rows = dataset.splits[second]
        if again := [f"{e.key}: {e.text.strip()}" for e in rows if normal_text(e.text) in first_texts]:
            report.add("note", f"{len(again)} of {len(rows)} texts of {second} occur in {first} too", again)


def _rationales(report: Report, dataset: Dataset) -> None:
    file = dataset.root / "rationales.jsonl"
    if not file.is_file():
        report.facts["rationales"] = "none: training is on intents alone; write_rationales.py makes them"
        return
    try:
        rationales = rationale_rows(file)
    except DataError as error:
        report.add("problem", "rationales.jsonl cannot be read", [str(error)])
        return
    covered = {
        split: sum(bool(rationales.get(e.key, {}).get("rationale")) for e in rows) for split, rows in dataset.splits.items()
    }
    report.facts["rationales"] = ", ".join(f"{split} {n} of {len(dataset.splits[split])}" for split, n in covered.items())
    if strange := sorted(set(rationales) - {e.key for e in dataset.examples}):
        report.add("note", f"{len(strange)} rationales of keys that no row has", strange)


# --- what to do with it -----------------------------------------------------------------------------------------------


def _next_step(path: Path, dataset: Dataset, readable: int) -> str:
    data = f"--data_path {shlex.quote(str(path))}"
    name = "demo" if _is_demo(dataset) else {"MIntRec": "mintrec", "MIntRec2.0": "mintrec2"}.get(dataset.layout, "own")
    if readable:
        encoder = " --encoder imagebind_tiny" if _is_demo(dataset) else ""
        return f"python avt_get_emb.py {data} --output_dir runs/{name}/emb{encoder}"
    if dataset.taxonomy is None or "train" not in dataset.splits:
        return f"python avt_get_emb.py {data} --output_dir runs/{name}/emb --modalities text"
    words = f"--modalities none --output_dir runs/{name}/words --trainable all --lora_rank 8 --adapter_layer 12"
    return f"python engine_finetune.py {data} {words} --batch_size 16 --epochs 8 --warmup_epochs 0.5 --lr 1e-3"
