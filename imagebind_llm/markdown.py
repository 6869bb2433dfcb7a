"""Tables in Markdown, for terminals and documents."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, a line a row."""
    return "\n".join("| " + " | ".join(row) + " |" if row else "|" + "---|" * len(header) for row in (header, (), *rows))
