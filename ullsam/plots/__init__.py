"""Pictures: images with masks and points (images.py), charts (charts.py), masks laid over images (overlays.py)."""

from ullsam.plots.charts import Picture, show_curves, show_knowledge, show_scores  # noqa: F401
from ullsam.plots.images import (  # noqa: F401
    compare_masks,
    panel_grid,
    pca_map,
    show_feature_maps,
    show_images,
    show_masks,
    show_sbr,
    show_similarity,
    similarity_map,
)
from ullsam.plots.overlays import instance_colours, outline, overlay  # noqa: F401
