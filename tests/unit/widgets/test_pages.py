"""Stacks, channels, contrast and pixel sizes of the image behind the click widget."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from ullsam import InputError, to_rgb8
from ullsam.widgets.pages import Pages, read_pixel_size
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
        *(
            ({"resolution": (value, value), "resolutionunit": "CENTIMETER"}, None)
            for value in (28.346, 28, 37.795, 38, 39.37, 59.06, 118.11, 118, 236.22, 472.44)  # 72 to 1200 dots per inch
        ),
        ({"resolution": (1000, 1000), "resolutionunit": "CENTIMETER"}, (10, 10)),
        ({"imagej": True, "resolution": (28.346, 28.346), "metadata": {"unit": "cm"}}, None),
        ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 352.7778, "PhysicalSizeY": 352.7778}}, None),
        ({"resolution": (20000, 10000), "resolutionunit": 3, "extratags": [(274, "H", 1, 6, True)]}, (1.0, 0.5)),
        ({}, None),
    ],
)
def test_pixel_size_is_read_where_it_means_something(tmp_path, options, size):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((10, 12), np.uint16), **options)
    found = read_pixel_size(tmp_path / "a.tif")
    assert found == (None if size is None else pytest.approx(size, rel=1e-5))


@pytest.mark.parametrize("size", ["0,325", "", "0.3 um", "nan", "-1", "0", "1e999"])
def test_a_size_that_is_no_number_is_unknown(tmp_path, size):
    form = 'DimensionOrder="XYZCT" Type="uint8" SizeX="12" SizeY="10" SizeZ="1" SizeC="1" SizeT="1"'
    pixels = f'<Pixels {form} PhysicalSizeX="{size}" PhysicalSizeY="1"><TiffData/></Pixels>'
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>{pixels}</Image></OME>'
    for text in (xml, xml.removesuffix("</OME>")):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((10, 12), np.uint8), description=text, metadata=None)
        assert Pages(tmp_path / "a.tif").pixel_size is None and Pages(tmp_path / "a.tif").page(0).shape == (10, 12)


def test_what_is_measured_are_the_numbers_behind_a_table_of_colours(tmp_path):
    stored, tables = np.full((10, 12), 180, np.uint8), np.random.default_rng(0).integers(0, 65536, (2, 3, 256), np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for table in tables:
            tif.write(stored, photometric="palette", colormap=table, metadata=None)
        tif.write(np.stack([stored] * 3, -1), photometric="rgb", metadata=None)
    pages = Pages(tmp_path / "a.tif")
    for z in (0, 1):
        assert (pages.page(z) == tables[z, :, 180] >> 8).all()
        np.testing.assert_array_equal(pages.values(z), stored)
    np.testing.assert_array_equal(pages.values(2), pages.page(2))


def test_a_pil_image_is_opened_by_its_colours(Discs):
    red = Image.new("P", (12, 10), 1)
    red.putpalette([0, 0, 0, 255, 0, 0])
    assert (Pages(red).page(0) == [255, 0, 0]).all()


def test_a_stack_of_labels_needs_as_many_pages(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 10, 12), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", np.zeros((5, 10, 12), np.uint8), photometric="minisblack")
    with pytest.raises(InputError, match="labels.tif has 5 pages but the image has 3; give one or as many"):
        Pages(tmp_path / "a.tif").read_labels(tmp_path / "labels.tif", 0)
    Image.new("L", (12, 10), 9).save(tmp_path / "labels.jpg")
    with pytest.raises(InputError, match="labels.jpg is compressed with losses"):
        Pages(tmp_path / "a.tif").read_labels(tmp_path / "labels.jpg", 0)
