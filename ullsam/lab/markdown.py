"""Tables in Markdown."""

from __future__ import annotations


def table_row(cells: list) -> str:
    """One row."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table_head(titles: list[str]) -> list[str]:
    """The row of titles and the line below it."""
    return [table_row(titles), table_row(["---"] * len(titles))]
