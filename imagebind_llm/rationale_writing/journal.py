"""The files of a run: every answer is on disk before the next question is asked, so nothing paid for is lost.

    rationales.jsonl            accepted: key, intent, rationale, and where it came from; what training reads
    rationales.rejected.jsonl   every other answer, with the rule that it broke
    rationales.aside.jsonl      lines that could not be read, or that a changed data set has overtaken
    rationales.jsonl.lock       held by the run that writes
A request is known by its fingerprint; one that has an answer in either file is never sent again.
"""

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from imagebind_llm.files import locked, write_atomic
from imagebind_llm.rationale_writing.client import RationalesError
from imagebind_llm.rationale_writing.prompt import VERSION


class Journal:
    """Opens a run's files, locked against other runs. Raises RationalesError if they hold rationales made in another way."""

    def __init__(self, path: Path, model: str):
        self.path = Path(path)
        self.rejected = self.path.with_suffix(".rejected.jsonl")
        self.aside = self.path.with_suffix(".aside.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.path.with_name(self.path.name + ".lock"), "--output")
        self._writing = threading.Lock()
        self.answers: dict[str, dict] = {}
        for file in (self.path, self.rejected):
            for row in self._read(file):
                self._check(file, row, model)
                self.answers[row["request"]] = row

    def _read(self, file: Path) -> list[dict]:
        """The rows of a file; lines that are none are moved aside."""
        lines = file.read_bytes().splitlines() if file.exists() else []
        rows, broken = [], []
        for line in lines:
            try:
                row = json.loads(line)
                rows.append(row | {"key": str(row["key"]), "intent": str(row["intent"])})
            except (ValueError, TypeError, KeyError):
                broken.append(line)
        if broken:
            self._set_aside(broken)
            _rewrite(file, rows)
        return rows

    def _check(self, file: Path, row: dict, model: str) -> None:
        made = (row.get("model"), row.get("prompt"))
        if "request" not in row or made != (model, VERSION):
            raise RationalesError(
                f"{file} holds rationales of model {made[0]}, prompt {made[1]} (key {row['key']}); this run would write "
                f"model {model}, prompt {VERSION}. They are never mixed: give another --output"
            )

    def record(self, row: dict) -> None:
        """Append an answer, accepted if it has a rationale, and return when it is on the disk."""
        with self._writing:
            with open(self.path if "rationale" in row else self.rejected, "ab") as file:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self.answers[row["request"]] = row

    def settle(self, order: Iterable[str], overtaken: set[str]) -> None:
        """Put the accepted rows in the data set's order; those whose request is in `overtaken` go aside."""
        rows = self._read(self.path)
        if old := [row for row in rows if row["request"] in overtaken]:
            self._set_aside([json.dumps(row, ensure_ascii=False).encode() for row in old])
        place = {key: i for i, key in enumerate(order)}
        kept = [row for row in rows if row["request"] not in overtaken]
        _rewrite(self.path, sorted(kept, key=lambda row: place.get(row["key"], -1)))

    def _set_aside(self, lines: list[bytes]) -> None:
        with open(self.aside, "ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()


def _rewrite(file: Path, rows: list[dict]) -> None:
    write_atomic(file, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
