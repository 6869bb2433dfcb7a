"""Files written whole or not at all, and locks on them."""

import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # how a disk says that it cannot do this at all


class LockedError(ValueError):
    """Another run is writing in the same folder."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there: temporary name, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=indent) + "\n").encode())


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a JSON a line, whole or not at all."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The lines of a file and what each says, None for what is no JSON; a last line that was cut off is left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""  # our own lines are ASCII
    for line in text.splitlines(keepends=True):
        try:
            yield line, json.loads(line)
        except json.JSONDecodeError:
            if line.endswith("\n") or not line.startswith("{"):
                yield line, None


def locked(path: Path, otherwise: str = "--output_dir"):
    """An open file that holds an exclusive lock for as long as it is open. Raises LockedError, naming the flag `otherwise`.

    A POSIX lock, which forked decoding processes do not inherit: they may outlive a killed run by seconds. A disk without locks
    (some of clusters) is written all the same, with a warning.
    """
    file = open(path, "a")  # noqa: SIM115  (kept open: the lock lives as long as the file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise LockedError(f"{path.parent}: another run is writing here; wait for it or give another {otherwise}") from error
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.ENOLCK}:
            file.close()
            raise
        print(f"{path}: no locks on this disk ({error.strerror}); see to it that no other run writes here", file=sys.stderr)
    return file
