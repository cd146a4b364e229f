"""Widgets for notebooks: thin browser views of plain Python objects with one method per gesture."""

from ullsam.widgets.click import ClickSession, ClickToSegment

__all__ = ["ClickSession", "ClickToSegment"]
