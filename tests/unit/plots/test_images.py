"""Pictures: what is drawn where, and in which colour."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

import ullsam
from ullsam import plots
from ullsam.errors import InputError
from ullsam.plots.overlays import PALETTE, YELLOW

LABELS = np.zeros((20, 30), dtype=np.int32)
LABELS[2:8, 3:9], LABELS[2:8, 9:15], LABELS[12:18, 20:28] = 1, 9, 300  # 1 and 9 touch and prefer the same colour
GRAY = np.full((20, 30), 100, dtype=np.uint8)


def pixels(figure):
    """The figure as drawn, uint8 (height, width, 3)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return np.array(Image.open(buffer).convert("RGB"))


def drawn_centre(figure, ax, colour):
    """Mean position, in the data coordinates of `ax`, of the pixels near a colour."""
    picture = pixels(figure).astype(int)
    rows, columns = np.nonzero(np.abs(picture - colour).max(-1) < 20)
    assert len(rows)
    return ax.transData.inverted().transform((columns.mean() + 0.5, len(picture) - rows.mean() - 0.5))


def near(colour, palette=PALETTE):
    return np.abs(palette.astype(int) - colour).max(-1).min() == 0


# ---------------------------------------------------------------- colours


def test_touching_instances_differ_and_others_keep_the_colour_of_their_id():
    colours = plots.instance_colours(LABELS)
    assert colours[1] == tuple(PALETTE[0]) and colours[9] == tuple(PALETTE[1])
    assert colours[300] == tuple(PALETTE[299 % len(PALETTE)])
    alone = np.where(LABELS == 9, 9, 0)
    assert plots.instance_colours(alone) == {9: tuple(PALETTE[0])}


@given(st.integers(0, 10**6))
def test_no_two_of_four_neighbours_share_a_colour(seed):
    ids = np.random.default_rng(seed).choice(np.arange(1, 60), 4, replace=False)
    labels = np.kron(ids.reshape(2, 2), np.ones((5, 5), int))
    assert len(set(plots.instance_colours(labels).values())) == 4


def test_overlay_changes_pixels_of_instances_only():
    out = plots.overlay(GRAY, LABELS, alpha=0.5)
    assert out.dtype == np.uint8 and out.shape == (20, 30, 3)
    assert (out[LABELS == 0] == 100).all()
    assert (out[4, 5] == np.round(0.5 * 100 + 0.5 * PALETTE[0].astype(float))).all()  # tinted inside
    assert (out[2, 5] == PALETTE[0]).all() and (out[4, 9] == PALETTE[1]).all()  # opaque edges
    assert (GRAY == 100).all()  # the input is left alone


def test_overlay_of_overlapping_masks_has_the_smaller_on_top():
    masks = np.zeros((2, 20, 30), dtype=bool)
    masks[0, 8:11, 8:11], masks[1, 2:18, 2:18] = True, True
    out = plots.overlay(GRAY, masks, alpha=1.0)
    assert (out[9, 9] == PALETTE[0]).all() and (out[5, 5] == PALETTE[1]).all()


def test_overlay_without_instances_is_the_image():
    assert (plots.overlay(GRAY, np.zeros((20, 30), int)) == 100).all()
    assert (plots.overlay(GRAY, np.zeros((0, 20, 30), bool)) == 100).all()


@pytest.mark.parametrize("labels", [np.zeros((20, 29), int), np.zeros((20, 30)), np.zeros((1, 1, 20, 30), int)])
def test_masks_that_do_not_fit_are_refused(labels):
    with pytest.raises(InputError, match="masks are .* image is"):
        plots.overlay(GRAY, labels)


def test_outline_is_yellow_on_both_sides_of_the_border():
    out = plots.outline(GRAY, LABELS)
    yellow = (out == YELLOW).all(-1)
    assert yellow[12, 24] and yellow[11, 24] and not yellow[10, 24] and not yellow[14, 24]
    assert (out[~yellow] == 100).all()


# ---------------------------------------------------------------- images, masks, points


def test_show_images_has_a_panel_per_image_and_keeps_their_pixels():
    images = [GRAY, np.zeros((20, 30, 3), np.uint8), np.arange(600, dtype=np.uint16).reshape(20, 30)]
    figure = plots.show_images(images, ["a", "b", "c"], columns=2)
    assert isinstance(figure, Figure) and len(figure.axes) == 4
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", ""]
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]
    assert (figure.axes[0].images[0].get_array() == 100).all()
    assert not any(ax.axison for ax in figure.axes)


def test_show_images_wants_a_title_for_each():
    with pytest.raises(InputError, match="2 images and 1 titles"):
        plots.show_images([GRAY, GRAY], ["a"])
    with pytest.raises(InputError, match="0 images"):
        plots.show_images([])


def test_titles_are_not_read_as_formulas_and_fit():
    figure = plots.show_images([GRAY], ["a $broken formula " + "word " * 20])
    picture = pixels(figure)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border > 200).all()  # nothing is cut at the border


@pytest.mark.parametrize("xy", [(0, 0), (22, 5), (29, 19)])
def test_points_are_drawn_at_their_pixels(xy):
    inside = plots.show_masks(GRAY, points=[xy], point_labels=[1])
    outside = plots.show_masks(GRAY, points=[xy], point_labels=[0])
    for figure, colour in ((inside, (0x1A, 0x98, 0x50)), (outside, (0xD7, 0x19, 0x1C))):
        ax = figure.axes[0]
        if xy == (22, 5):
            np.testing.assert_allclose(drawn_centre(figure, ax, colour), xy, atol=0.15)
        assert tuple(next(c.get_offsets()[0] for c in ax.collections if len(c.get_offsets()))) == xy


def test_points_of_several_objects_are_told_apart_by_label():
    points = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    figure = plots.show_masks(GRAY, points=points, point_labels=[[1, 0, 0], [1, 1, 0]])
    crosses, circles = figure.axes[0].collections
    assert len(crosses.get_offsets()) == 3 and len(circles.get_offsets()) == 3


def test_show_masks_draws_on_given_axes_and_boxes():
    figure, axes = plots.panel_grid(1, 2)
    assert plots.show_masks(GRAY, LABELS, boxes=[3, 2, 9, 8], title="t", ax=axes[0, 1]) is figure
    assert axes[0, 1].get_title() == "t" and not axes[0, 0].images
    corners = {(p.get_xy(), p.get_width(), p.get_height()) for p in axes[0, 1].patches}
    assert corners == {((3.0, 2.0), 6.0, 6.0)}


def test_compare_masks_has_the_truth_on_every_panel():
    figure = plots.compare_masks(GRAY, {"image": None, "found": np.zeros_like(LABELS)}, truth=LABELS, points=[(5, 5)])
    assert [ax.get_title() for ax in figure.axes] == ["image", "found"]
    for ax in figure.axes:
        assert (ax.images[0].get_array()[12, 24] == YELLOW).all() and len(ax.collections[1].get_offsets()) == 1


# ---------------------------------------------------------------- features


def test_pca_map_separates_two_regions_and_ignores_an_offset():
    features = torch.zeros(1, 4, 6, 8)
    features[:, 0, :, 4:] = 1.0
    colours = plots.pca_map(features)
    assert colours.shape == (6, 8, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 2
    assert {int(colours[0, 0, 0]), int(colours[0, 7, 0])} == {0, 255}
    assert (plots.pca_map(features + 3.0) == colours).all()


def test_pca_map_takes_one_channel_and_bfloat16():
    assert plots.pca_map(torch.rand(1, 4, 4).bfloat16()).shape == (4, 4, 3)


def test_similarity_by_hand():
    knowledge = np.zeros((2, 1, 3))
    knowledge[:, 0, 0], knowledge[:, 0, 1], knowledge[:, 0, 2] = (2, 0), (0, 5), (-1, 1)
    np.testing.assert_allclose(plots.similarity_map(knowledge, (0, 0)), [[1, 0, -(0.5**0.5)]], atol=1e-6)


@pytest.mark.parametrize("patch", [(4, 0), (0, 4), (-1, 0)])
def test_similarity_refuses_a_patch_beyond_the_grid(patch):
    with pytest.raises(InputError, match="not on the grid"):
        plots.similarity_map(np.ones((3, 4, 4)), patch)


def test_features_must_have_three_axes():
    with pytest.raises(InputError, match=r"give \(C, h, w\)"):
        plots.pca_map(np.ones((4, 4)))


def test_show_similarity_places_the_map_over_the_padded_square():
    figure = plots.show_similarity(GRAY, np.random.default_rng(0).normal(size=(3, 5, 5)), [(1, 3)])
    shown = figure.axes[1]
    assert shown.images[0].get_extent() == [-0.5, 29.5, 29.5, -0.5] and shown.get_ylim() == (19.5, -0.5)
    assert tuple(shown.collections[0].get_offsets()[0]) == (3.5 * 6 - 0.5, 1.5 * 6 - 0.5)


def test_show_feature_maps_names_shapes():
    figure = plots.show_feature_maps({"encoder": torch.rand(3, 4, 4)}, GRAY)
    assert [ax.get_title() for ax in figure.axes] == ["image", "encoder\n3 x 4 x 4"]


# ---------------------------------------------------------------- points, curves, scores


def test_show_sbr_colours_the_regions():
    labels = np.zeros((256, 256), np.int32)
    labels[50:120, 60:140], labels[200:220, 200:230] = 1, 2
    regions = ullsam.sbr_regions(labels, instance=1)
    points = ullsam.sample_points(labels, 1, np.random.default_rng(0))
    figure = plots.show_sbr(labels, 1, regions, points, margin=10)
    picture = figure.axes[0].images[0].get_array()
    assert all(len(np.unique(picture[area], axis=0)) == 1 for area in (regions.core, regions.ring, labels == 2))
    assert len({tuple(picture[area][0]) for area in (regions.core, regions.ring, labels == 2)}) == 3
    # columns 60 to 139 and 10 pixels on both sides, moved up to the rows 50 to 119
    assert figure.axes[0].get_xlim() == (49.5, 149.5) and figure.axes[0].get_ylim() == (134.5, 34.5)
    assert len(figure.axes[0].get_legend().get_texts()) == 5
    assert [len(c.get_offsets()) for c in figure.axes[0].collections] == [3, 1]


def test_show_curves_smooths_with_a_running_mean():
    lines = [{"step": 10 * k, "loss": float(v), "dice": 1.0} for k, v in enumerate((0, 3, 6, 0))]
    figure = plots.show_curves({"a": lines, "b": lines[:2]}, ("loss", "dice"), smooth=3)
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss", "dice")
    assert list(left.lines[0].get_ydata()) == [0, 3, 6, 0]
    np.testing.assert_allclose(left.lines[1].get_ydata(), [1.5, 3, 3, 3])
    assert list(left.lines[1].get_xdata()) == [0, 10, 20, 30]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b"]


def test_show_curves_names_what_the_logs_hold():
    with pytest.raises(InputError, match="no dice; choose from loss"):
        plots.show_curves([{"step": 1, "loss": 2.0}], ("dice",))


def test_show_scores_draws_values():
    scores = {"A": {"usam": 0.5, "ullsam": 0.75}, "B": {"ullsam": None, "usam": 0.25}}
    figure = plots.show_scores(scores, "Dice")
    ax = figure.axes[0]
    usam, ullsam_bars = ([bar.get_height() for bar in group] for group in ax.containers)
    assert usam == [0.5, 0.25] and ullsam_bars[0] == 0.75 and np.isnan(ullsam_bars[1])
    assert [t.get_text() for t in ax.texts] == ["0.50", "0.25", "0.75", ""]
    assert ax.get_ylabel() == "Dice"


def test_show_scores_wants_scores():
    with pytest.raises(InputError, match="no scores"):
        plots.show_scores({}, "Dice")


# ---------------------------------------------------------------- how Jupyter shows them


def test_a_noisy_figure_is_small_and_a_chart_is_sharp():
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    assert len(plots.show_images([noise] * 4).image_bytes()) < 300_000
    chart = plots.show_curves([{"step": k, "loss": 1 / k} for k in range(1, 50)]).image_bytes()
    assert chart[1:4] == b"PNG" and len(chart) < 15_000


def test_jupyter_gets_one_image(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show_images([GRAY])._ipython_display_()
    assert len(shown) == 1 and Image.open(io.BytesIO(shown[0].data)).width == 240


def test_pyplot_holds_no_figure():
    plots.show_images([GRAY])
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()


def test_importing_the_package_leaves_matplotlib_alone():
    code = "import sys, ullsam; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
