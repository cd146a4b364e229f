"""Widgets for notebooks: thin browser views of plain Python objects with one method per gesture."""

from ullsam.widgets.boxes import BoxToSegment
from ullsam.widgets.click import ClickToSegment
from ullsam.widgets.inspector import VlsaInspector
from ullsam.widgets.monitor import TrainingMonitor
from ullsam.widgets.sbr_explorer import SbrExplorer
from ullsam.widgets.session import ClickSession

__all__ = ["BoxToSegment", "ClickSession", "ClickToSegment", "SbrExplorer", "TrainingMonitor", "VlsaInspector"]
