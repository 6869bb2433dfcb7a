"""A small data set and a run of write_rationales.py on it, against a server in this process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import ChatServer

from imagebind_llm.rationale_writing import client
from imagebind_llm.rationale_writing.client import RationaleSettings
from imagebind_llm.rationale_writing.writing import write_rationales

HEADER = "season\tepisode\tclip\ttext\tlabel\n"
LABELS = ("Complain", "Praise", "Thank", "Ask for help", "Joke", "Leave")
N = 12


def make_pauses_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are short, and no key of this machine's user is used."""
    monkeypatch.setattr(client, "PAUSE_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def write_data(root: Path) -> Path:
    """A MIntRec folder without clips: N rows of train, one of test."""
    root.mkdir()
    rows = [f"S01\tE01\t{i}\twe talk about matter{i}\t{LABELS[i % 6]}\n" for i in range(N)]
    (root / "train.tsv").write_text(HEADER + "".join(rows))
    (root / "test.tsv").write_text(HEADER + "S02\tE01\t1\tthis is for testing\tJoke\n")
    return root


def settings_for(data: Path) -> RationaleSettings:
    """The flags of a run that writes beside the data's folder."""
    output = str(data.parent / "out" / "rationales.jsonl")
    return RationaleSettings(str(data), output, "model-a", concurrency=3, retries=3, timeout=20)


def run(settings: RationaleSettings, server: ChatServer):
    return write_rationales(replace(settings, base_url=server.url))


def lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def beside(settings: RationaleSettings, name: str) -> Path:
    return Path(settings.output).with_suffix(f".{name}.jsonl")
