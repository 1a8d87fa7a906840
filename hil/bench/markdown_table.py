"""Rows of a table in Markdown."""

from collections.abc import Iterable, Sequence

__all__ = ["table_rows"]


def table_rows(rows: Iterable[Sequence[str]]) -> str:
    """A line for each row; head and rule are the page's own."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
