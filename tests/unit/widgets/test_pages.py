"""Stacks, channels, contrast and pixel sizes of the image behind the click widget."""

import numpy as np
import pytest
import tifffile

from ullsam import InputError, to_rgb8
from ullsam.widgets.pages import read_pixel_size
from ullsam.widgets.session import ClickSession

SIZE = (40, 56)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


def test_instances_belong_to_their_page(image, Discs):
    session = ClickSession(Discs(), np.stack([image, image[::-1], image]), stack=True)
    assert session.pages.count == 3
    session.click(10, 10)
    session.save_instance()
    session.set_page(2)
    assert session.state.page == 2 and not session.labels.any()
    np.testing.assert_array_equal(session.display_image(), image)
    session.click(40, 30)
    assert session.save_instance() == 2 and [i.page for i in session.instances] == [0, 2]
    session.select(1)
    assert session.state.page == 0 and set(np.unique(session.labels)) == {0, 1}
    session.edit(2)
    assert session.state.page == 2 and session.mask[30, 40]
    with pytest.raises(InputError, match="stack has shape"):
        ClickSession(Discs(), image[..., 0], stack=True)


def test_leaving_a_page_does_not_lose_the_points(image, Discs):
    session = ClickSession(Discs(), np.stack([image, image]), stack=True)
    session.click(10, 10)
    session.set_page(1)
    assert session.mask is None and session.state.prompts == ()
    session.set_page(0)
    session.undo()
    assert session.state.page == 0 and session.state.prompts == ((10, 10, 1),) and session.mask.any()


def test_a_stack_in_a_file_is_read_page_by_page(tmp_path, Discs):
    stack = np.random.default_rng(0).integers(0, 4000, (5, 3, 30, 20), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    session = ClickSession(Discs(), tmp_path / "s.tif")
    assert session.pages.count == 5 and session.channels == ("channel 1", "channel 2", "channel 3")
    session.set_page(3)
    session.set_channel(1)
    session.click(10, 15)
    np.testing.assert_array_equal(session.segmenter.predictor(session.state).image, stack[3, 1])
    labels = np.zeros((5, 30, 20), np.uint8)
    labels[1, 3:9, 3:9], labels[4, 20:25, 3:9] = 1, 2
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    assert session.import_labels(tmp_path / "labels.tif") == 2
    assert [(i.number, i.page, i.area) for i in session.instances] == [(1, 1, 36), (2, 4, 30)]


def test_a_channel_that_a_page_lacks_is_given_up(tmp_path, Discs):
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as tif:
        tif.write(np.zeros((20, 30, 3), np.uint8), photometric="rgb")
        tif.write(np.zeros((24, 16), np.uint8), photometric="minisblack")
    session = ClickSession(Discs(), tmp_path / "mixed.tif")
    session.set_channel(2)
    session.set_page(1)
    assert session.state.channel is None and session.channels == () and session.size == (24, 16) == session.labels.shape


def test_contrast_is_for_the_eye_only(Discs):
    image = np.arange(4000, dtype=np.uint16).reshape(40, 100)
    session = ClickSession(Discs(), image)
    np.testing.assert_array_equal(session.display_image(), to_rgb8(image))
    session.set_display(25, 75, 1)
    shown = session.display_image()[..., 0].ravel()
    assert not shown[:1000].any() and (shown[3000:] == 255).all() and abs(int(shown[2000]) - 128) <= 1
    session.set_display(0, 100, 2)
    assert abs(int(session.display_image()[10, 0, 0]) - 255 * 0.25**0.5) <= 1
    session.click(10, 10)
    np.testing.assert_array_equal(session.segmenter.predictor(session.state).image, image)
    assert session.can_undo
    session.undo()
    assert not session.can_undo


def test_contrast_keeps_the_colours_of_an_rgb_image(Discs):
    image = np.zeros((10, 10, 3), np.uint8)
    image[..., 0], image[..., 1] = 100, 50
    session = ClickSession(Discs(), image)
    session.set_display(0, 99.9, 1)
    np.testing.assert_array_equal(session.display_image()[0, 0], [255, 128, 0])


def test_an_unusable_image_or_model_gets_a_sentence(image, tmp_path, Discs):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for thing in (np.full((8, 8), np.nan), tmp_path / "absent.tif", tmp_path / "broken.png", tmp_path):
        with pytest.raises(InputError):
            ClickSession(Discs(), thing)
    for models in ({}, "tiny", {"a": 3}):
        with pytest.raises(InputError, match="ullsam.load"):
            ClickSession(models, image)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "micron"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (0.005, 0.005), "metadata": {"unit": "nm"}}, (0.2, 0.2)),
        ({"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, None),
        (
            {
                "ome": True,
                "metadata": {"axes": "YX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 650, "PhysicalSizeYUnit": "nm"},
            },
            (0.65, 0.65),
        ),
        ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, (0.5, 1.0)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({}, None),
    ],
)
def test_pixel_size_is_read_where_it_means_something(tmp_path, options, size):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((10, 12), np.uint16), **options)
    found = read_pixel_size(tmp_path / "a.tif")
    assert found == (None if size is None else pytest.approx(size, rel=1e-5))
