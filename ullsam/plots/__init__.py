"""Pictures: images with masks and points (images.py), charts (charts.py), masks laid over images (overlays.py)."""

from ullsam.plots.images import *  # noqa: F403
from ullsam.plots.images import __all__ as __all__
