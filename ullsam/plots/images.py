"""Every picture of the notebooks: each function returns a matplotlib figure that Jupyter shows once, or draws on `ax`.

Images are of any type that `to_rgb8` takes. Points are (x, y) in pixels of the image: green circles lie inside the
object, red crosses outside. Instances keep the colour of their id; neighbours never share one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ullsam.data.io import to_rgb8
from ullsam.errors import InputError
from ullsam.plots.charts import DPI, FONT, LEGEND, PANEL, Picture
from ullsam.plots.overlays import INSIDE, OUTSIDE, outline, overlay
from ullsam.sbr import SbrPoints, SbrRegions

TITLE_WIDTH = 40  # characters of a title that fit a panel


def panel_grid(rows: int, columns: int, aspect: float = 1.0, title_lines: int = 1, extra: float = 0.0):
    """An empty figure of panels whose axes are not drawn: the figure, and its axes as an array (rows, columns).

    Args:
        aspect: height over width of a panel; title_lines: lines above each panel; extra: inches below each panel.
    """
    height = PANEL * aspect + 0.22 * title_lines + extra
    figure = Picture(figsize=(PANEL * columns, rows * height + 0.1), dpi=DPI, layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def _panels(images: Sequence[np.ndarray], titles: Sequence[str | None], columns: int):
    """The figure and the axes (n,) of `panel_grid`, with room for these titles and for the tallest of the images."""
    lines = max(_wrapped(title).count("\n") + 1 if title else 0 for title in titles)
    aspect = max(min(2.0, image.shape[0] / image.shape[1]) for image in images)
    figure, axes = panel_grid(-(-len(titles) // columns), columns, aspect, lines)
    return figure, axes.ravel()


def _draw(ax: Axes, image: np.ndarray, title: str | None = None, **options) -> None:
    ax.imshow(image, **options)
    ax.set_axis_off()
    if title:
        ax.set_title(_wrapped(title), fontsize=FONT, parse_math=False)


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.fill(line, TITLE_WIDTH) for line in title.split("\n"))


def show_images(images: Sequence[np.ndarray], titles: Sequence[str] | None = None, columns: int = 4) -> Figure:
    """Images side by side, `columns` in a row, with a title each.

    Raises:
        InputError: there is no image, or not one title per image.
    """
    images = [to_rgb8(image) for image in images]
    titles = [""] * len(images) if titles is None else [str(title) for title in titles]
    if not images or len(titles) != len(images):
        raise InputError(f"There are {len(images)} images and {len(titles)} titles; give one title for each image.")
    figure, axes = _panels(images, titles, min(columns, len(images)))
    for ax, image, title in zip(axes, images, titles, strict=False):
        _draw(ax, image, title)
    return figure


def show_masks(
    image: np.ndarray,
    masks_or_labels: np.ndarray | None = None,
    points=None,
    point_labels=None,
    boxes=None,
    title: str | None = None,
    ax: Axes | None = None,
    truth: np.ndarray | None = None,
) -> Figure:
    """One image with masks and prompts.

    Args:
        image: (H, W) or (H, W, C).
        masks_or_labels, truth: as `labels` of `overlay`; the truth is outlined in yellow.
        points: (P, 2) or (I, P, 2), x and y in pixels; point_labels: (P,) or (I, P), 1 inside (the default), 0 outside.
        boxes: (4,) or (I, 4) as x0, y0, x1, y1.
        ax: where to draw; None makes a figure.
    """
    picture = to_rgb8(image)
    if ax is None:
        ax = _panels([picture], [title], 1)[1][0]
    picture = picture if masks_or_labels is None else overlay(picture, masks_or_labels)
    picture = picture if truth is None else outline(picture, truth)
    _draw(ax, picture, title)
    for x0, y0, x1, y1 in np.asarray([] if boxes is None else boxes, dtype=float).reshape(-1, 4):
        for width, colour in ((3, "black"), (1.4, "white")):
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width))
    if points is not None:
        draw_points(ax, points, point_labels)
    return ax.figure


def draw_points(ax: Axes, points, point_labels=None, size: float = 36) -> None:
    """Points (P, 2) or (I, P, 2) as green circles (label 1, the default) and red crosses (label 0) with white edges."""
    xy = np.asarray(points, dtype=float).reshape(-1, 2)  # (I, P, 2) -> (I * P, 2)
    labels = np.ones(len(xy)) if point_labels is None else np.asarray(point_labels).reshape(-1)
    for label, marker, colour in ((0, "X", OUTSIDE), (1, "o", INSIDE)):
        ax.scatter(*xy[labels == label].T, size, colour, marker=marker, edgecolors="white", linewidths=0.8, zorder=3)


def square_around(mask: np.ndarray, side: int) -> tuple[slice, slice]:
    """Rows and columns of a square around a bool mask (H, W), moved into the image and made smaller where it must be."""
    side = int(min(side, *mask.shape))
    middles = ((v.min() + v.max() + 1) / 2 for v in np.nonzero(mask))
    starts = (int(np.clip(m - side / 2, 0, n - side)) for m, n in zip(middles, mask.shape, strict=True))
    return tuple(slice(start, start + side) for start in starts)


def compare_masks(
    image: np.ndarray, columns: dict[str, np.ndarray | None], truth: np.ndarray | None = None, points=None, point_labels=None
) -> Figure:
    """One row of panels, a segmentation each (None: the image alone), the truth's contour in yellow on all.

    Args:
        image: (H, W) or (H, W, C); columns: title -> labels (H, W) or masks (I, H, W).
        truth: integer (H, W); points, point_labels: as for `show_masks`.
    """
    figure, axes = _panels([to_rgb8(image)], list(columns), len(columns))
    for ax, (title, labels) in zip(axes, columns.items(), strict=True):
        show_masks(image, labels, points, point_labels, title=title, ax=ax, truth=truth)
    return figure


def _grid_array(features) -> np.ndarray:
    """float64 (C, h, w) of a tensor or an array, a leading axis of 1 dropped."""
    if hasattr(features, "detach"):
        features = features.detach().float().cpu().numpy()
    array = np.asarray(features, dtype=np.float64)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim != 3:
        raise InputError(f"The features have shape {array.shape}; give (C, h, w).")
    return array


def pca_map(features) -> np.ndarray:
    """The first three principal components of a feature map as red, green and blue, uint8 (h, w, 3).

    Args:
        features: tensor or array (C, h, w), or (1, C, h, w). Components are stretched from their 1st to 99th percentile.
    """
    array = _grid_array(features)
    x = (array - array.mean((1, 2), keepdims=True)).reshape(len(array), -1).T  # (C, h, w) -> (h * w, C)
    axes = np.linalg.svd(x, full_matrices=False)[2][:3]  # (3, C)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # the sign is arbitrary
    parts = np.pad(x @ axes.T, ((0, 0), (0, 3 - len(axes))))  # of fewer than three channels the others are black
    low, high = np.percentile(parts, (1, 99), axis=0)
    stretched = ((parts - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    return np.round(255 * stretched).astype(np.uint8).reshape(*array.shape[1:], 3)


def show_feature_maps(maps: dict, image: np.ndarray | None = None) -> Figure:
    """Feature maps (name -> (C, h, w)) as colours of their principal components, beside the image."""
    first = {} if image is None else {"image": to_rgb8(image)}
    panels = first | {f"{name}\n{' x '.join(map(str, _grid_array(x).shape))}": pca_map(x) for name, x in maps.items()}
    figure, axes = panel_grid(1, len(panels), title_lines=2)
    for ax, (title, picture) in zip(axes.flat, panels.items(), strict=True):
        _draw(ax, picture, title, interpolation="nearest" if title != "image" else None)
    return figure


def similarity_map(knowledge, patch: tuple[int, int]) -> np.ndarray:
    """Cosine similarity of each patch to one patch, float32 (h, w), from -1 to 1.

    Args:
        knowledge: tensor or array (C, h, w), or (1, C, h, w); patch: (row, column) on the grid.
    """
    array = _grid_array(knowledge)
    row, column = patch
    if not (0 <= row < array.shape[1] and 0 <= column < array.shape[2]):
        raise InputError(f"Patch {tuple(patch)} is not on the grid; give (row, column) below {array.shape[1:]}.")
    unit = array / np.maximum(np.linalg.norm(array, axis=0), 1e-12)
    return np.einsum("chw,c->hw", unit, unit[:, row, column]).astype(np.float32)


def show_similarity(image: np.ndarray, knowledge, patches: Sequence[tuple[int, int]]) -> Figure:
    """The image with the chosen patches, and for each its cosine similarity to all others.

    Args:
        image: (H, W[, C]), at the upper left corner of the square that the grid covers (SAM's padding).
        knowledge: (C, h, w); patches: (row, column) each.
    """
    picture = to_rgb8(image)
    maps = [similarity_map(knowledge, patch) for patch in patches]
    side = max(picture.shape[:2])
    titles = ["image", *(f"similarity to row {row}, column {column}" for row, column in patches)]
    figure, axes = _panels([picture], titles, len(titles))
    _draw(axes[0], picture, titles[0])
    low = min(0.0, *(m.min() for m in maps))
    for ax, title, values, (row, column) in zip(axes[1:], titles[1:], maps, patches, strict=True):
        drawn = ax.imshow(values, cmap="viridis", vmin=low, vmax=1, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
        ax.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
        ax.set_title(title, fontsize=FONT)
        height, width = (side / cells for cells in values.shape)  # of a patch, in pixels
        for target in (axes[0], ax):
            x, y = (column + 0.5) * width - 0.5, (row + 0.5) * height - 0.5
            target.scatter(x, y, 60, "white", marker="*", edgecolors="black", linewidths=0.8)
    figure.colorbar(drawn, ax=axes, shrink=0.9, pad=0.01).ax.tick_params(labelsize=FONT - 1)
    return figure


def show_sbr(
    labels: np.ndarray,
    instance: int,
    regions: SbrRegions,
    points: SbrPoints | None = None,
    margin: int | None = None,
    title: str | None = None,
) -> Figure:
    """Where the points of one instance may come from, and the points that were drawn.

    Args:
        labels: integer (H, W); instance: its id; regions: of `sbr_regions`; points: of `sample_points`.
        margin: pixels around the instance to show; None shows the whole image.
    """
    this = labels == instance
    parts = [  # in the order of painting
        ("outside (if the ring is too small)", "#e2eef7", regions.outside),
        ("other instances", "#bebebe", (labels != 0) & ~this),
        ("rest of the instance", "#96c4e0", this),
        ("ring (outside points)", "#e69f00", regions.ring),
        ("core (inside points)", "#0072b2", regions.core),
    ]
    picture = np.full((*labels.shape, 3), 255, dtype=np.uint8)
    for _, colour, area in parts:
        picture[area] = np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8)
    figure, (ax,) = _panels([picture], [title], 1)
    figure.set_size_inches(PANEL + 2.6, figure.get_figheight())
    _draw(ax, picture, title, interpolation="nearest")
    if points is not None:
        draw_points(ax, points.points, points.labels)
    if margin is not None and this.any():
        extent = max(np.ptp(v) for v in np.nonzero(this))
        rows, columns = square_around(this, extent + 2 * margin + 1)
        ax.set(xlim=(columns.start - 0.5, columns.stop - 0.5), ylim=(rows.stop - 0.5, rows.start - 0.5))
    outwards = [parts[i] for i in (4, 2, 3, 0, 1)]
    handles = [Patch(facecolor=colour, edgecolor="gray", linewidth=0.5, label=name) for name, colour, _ in outwards]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), **LEGEND)
    return figure
