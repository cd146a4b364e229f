"""The VLSA inspector: patches in their right places, and masks with and without knowledge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam import ULLSAM, InputError, Predictor, Square, preset
from ullsam.plots.images import similarity_map
from ullsam.widgets.inspector import MODES, Layer, VlsaInspector


@pytest.fixture(scope="module")
def model():
    """The debug model with knowledge that counts: its random VLSA is scaled up."""
    model = ULLSAM.from_preset("debug")
    with torch.no_grad():
        for parameter in model.vlsa.parameters():
            parameter.mul_(4).add_(0.1)
    return model


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


@pytest.fixture
def demo(model, image):
    return VlsaInspector(model, image)


@settings(max_examples=60)
@given(st.integers(3, 90), st.integers(3, 90), st.sampled_from(["corner", "center"]), st.sampled_from([2, 4, 8]))
def test_every_pixel_lies_in_the_box_of_its_patch(height, width, placement, grid):
    square = Square(height, width, 64, placement)
    layer = Layer.cut(torch.arange(grid * grid).view(1, 1, grid, grid).float(), square)
    rows, columns = layer.values.shape[1:]
    for x, y in ((0, 0), (width - 1, height - 1), (width // 2, height // 3)):
        row, column = layer.patch(square, (x, y))
        assert 0 <= row < rows and 0 <= column < columns
        x0, y0, x1, y1 = layer.box(square, (row, column))
        assert x0 - 0.01 <= x + 0.5 <= x1 + 0.01 and y0 - 0.01 <= y + 0.5 <= y1 + 0.01
    spread = layer.on_image(layer.values[0].numpy(), square)
    assert spread.shape == (height, width)
    row, column = layer.patch(square, (width // 2, height // 3))
    assert spread[height // 3, width // 2] == layer.values[0, row, column]


def test_padding_is_left_out_and_stages_have_their_grids(demo):
    shapes = {name: tuple(layer.values.shape) for name, layer in demo.layers.items()}
    assert shapes == {"image features": (32, 3, 4), "LLM hidden states": (48, 2, 2), "knowledge": (32, 3, 4)}


def test_layers_are_the_models(demo, model, image):
    predictor = Predictor(model)
    predictor.set_image(image)
    torch.testing.assert_close(demo.layers["knowledge"].values, predictor.knowledge()[0, :, :3].clone())


def test_hover_shows_what_the_patch_resembles(demo):
    demo.hover(40, 20)
    assert demo.patch == (1, 2)
    local = demo.layers["knowledge"].local
    np.testing.assert_array_equal(demo.similarity(), similarity_map(local, (1, 2)))
    assert demo.similarity()[1, 2] == pytest.approx(1, abs=1e-5)
    demo.set_local(False)
    np.testing.assert_array_equal(demo.similarity(), similarity_map(demo.layer.values, (1, 2)))
    demo.set_stage("LLM hidden states")
    assert demo.patch == (0, 1) and demo.similarity().shape == (2, 2)
    assert "LLM hidden states, patch in row 0, column 1" in demo.status and "of 3 other" in demo.status


def test_alike_patches_are_orange_and_opposite_ones_blue(demo):
    values = torch.zeros(2, 3, 4)
    values[0], values[0, :, 2:] = 1.0, -1.0
    object.__setattr__(demo.layers["knowledge"], "values", values)
    demo.hover(5, 5)
    red, _, blue = demo._tinted().astype(int).transpose(2, 0, 1)
    assert (red[:, :32] > blue[:, :32]).all() and (blue[:, 32:] > red[:, 32:]).all()


def test_a_pinned_patch_stays(demo):
    demo.click(40, 20)
    demo.hover(5, 5)
    assert demo.pinned and demo.patch == (1, 2) and "(pinned)" in demo.status
    demo.click(42, 22)
    demo.hover(5, 5)
    assert not demo.pinned and demo.patch == (0, 0)


def test_masks_with_and_without_knowledge(demo, model, image):
    demo.set_mode(MODES[2])
    demo.click(30, 20)
    demo.click(5, 3, positive=False)
    predictor = Predictor(model)
    predictor.set_image(image)
    expected = [predictor.predict([[30, 20], [5, 3]], [1, 0], use_vlk=on).masks[0] for on in (True, False)]
    assert (expected[0] != expected[1]).any()
    np.testing.assert_array_equal(demo.masks, expected)
    areas = demo._areas()
    np.testing.assert_array_equal(np.isin(areas, (1, 3)), expected[0])
    np.testing.assert_array_equal(np.isin(areas, (2, 3)), expected[1])
    assert f"{expected[0].sum()} pixels with knowledge" in demo.status
    demo.clear()
    assert demo.masks is None and demo.prompts == ()


def test_each_view_has_a_figure_with_a_legend(demo):
    assert demo.figure().axes[-1].get_yticklabels()[0].get_text() == "opposite"
    demo.set_mode(MODES[1])
    assert len(demo.figure().axes) == 4
    demo.set_mode(MODES[2])
    demo.segment(30, 20)
    texts = [t.get_text() for t in demo.figure().legends[0].get_texts()]
    assert texts[2] == f"both: {(demo._areas() == 3).sum()} px"


def test_wrong_input_is_one_sentence_and_changes_nothing(demo):
    demo.segment(30, 20)
    before = demo.position, demo.prompts, demo.stage, demo.mode
    for act in (
        lambda: demo.hover(64, 5),
        lambda: demo.pin(-3, 5),
        lambda: demo.segment(64, 5),
        lambda: demo.set_stage("x"),
        lambda: demo.set_mode("x"),
    ):
        with pytest.raises(InputError) as error:
            act()
        assert demo.status == str(error.value) and (demo.position, demo.prompts, demo.stage, demo.mode) == before


def test_models_without_vlsa_or_without_places(image):
    with pytest.raises(InputError, match="no VLSA"):
        VlsaInspector(ULLSAM.from_config(preset("debug", llm=None, vlsa="none")), image)
    demo = VlsaInspector(ULLSAM.from_preset("debug", vlsa="tokens"), image)
    assert list(demo.layers) == ["image features", "LLM hidden states"]
    demo.segment(30, 20)
    assert demo.masks[0].shape == (48, 64)


def test_pointer_messages_drive_it(demo):
    demo.view  # noqa: B018 builds the view
    before = demo._result.value
    demo._pointer._handle_custom_msg({"kind": "hover", "xy": [40, 5]}, [])
    assert demo.patch == (0, 2) and demo._result.value != before and demo._pointer.cell == [32, 0, 48, 16]
    demo._modes.value = MODES[2]
    assert demo.mode == MODES[2] and demo._pointer.cell == []
    demo._pointer._handle_custom_msg({"kind": "hover", "xy": [1, 1]}, [])
    demo._pointer._handle_custom_msg({"kind": "click", "xy": [30, 20], "positive": False}, [])
    assert demo.prompts == ((30, 20, 0),) and demo.patch == (0, 2)
    demo._pointer._handle_custom_msg({"kind": "click", "xy": [200, 20]}, [])
    assert "outside the image" in demo.status and demo._pointer.answered == 4


def test_two_inspectors_share_nothing(demo, model, image):
    other = VlsaInspector(Predictor(model), image[:20])
    demo.segment(30, 20)
    demo.hover(60, 40)
    assert other.masks is None and other.patch != demo.patch and other.predictor.size == (20, 64)
