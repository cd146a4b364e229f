"""Reading, writing, 8-bit RGB, and the way to the model's square and back."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ullsam.data.decode import count_pages
from ullsam.data.io import (
    Square,
    append_line,
    from_square,
    read_image,
    read_labels,
    read_lines,
    renumbered,
    to_rgb8,
    to_square,
    write_labels,
)
from ullsam.errors import InputError

SIDES = st.integers(2, 90)
PLACEMENTS = st.sampled_from(["corner", "center"])


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def write_png(path, array):
    """OpenCV takes BGR; give it our RGB(A) the right way round."""
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    cv2.imwrite(str(path), array if array.ndim == 2 else array[..., order[array.shape[2]]])
    return path


def says(path, *words):
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert path.name in message and message.endswith(".") and "\n" not in message
    assert all(word in message for word in words), message


# reading


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("channels", [None, 3, 4])
def test_what_was_written_is_read(tmp_path, suffix, channels):
    image = noise(7, 5) if channels is None else noise(7, 5, channels)
    if suffix == ".bmp" and channels == 4:
        pytest.skip("OpenCV writes no alpha to bmp")
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, image, photometric="minisblack" if channels is None else "rgb")
    else:
        write_png(path, image)
    np.testing.assert_array_equal(read_image(path), image)


def test_jpg_is_rgb(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    r, g, b = read_image(write_png(tmp_path / "a.jpg", red))[8, 8].astype(int)
    assert r > 240 and g < 15 and b < 15


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int16, np.uint32])
def test_tif_keeps_its_dtype(tmp_path, dtype):
    image = noise(6, 4, dtype=np.uint16).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", image)
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)


def test_16_bit_png_stays_16_bit(tmp_path):
    image = noise(6, 4, dtype=np.uint16)
    read = read_image(write_png(tmp_path / "a.png", image))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}])
def test_page_picks_a_plane_of_a_stack(tmp_path, options):
    stack = noise(6, 9, 8, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "ZYX"}, **options)
    for page in (0, 5):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page), stack[page])
    for page in (6, -1):
        with pytest.raises(InputError, match="has 6 pages"):
            read_image(tmp_path / "a.tif", page)


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_page_of_a_stack_with_channels_last(tmp_path, channels):
    stack = noise(4, 9, 8, channels)
    tifffile.imwrite(tmp_path / "a.tif", stack)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 3), stack[3])


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
def test_page_of_a_hyperstack_has_all_channels(tmp_path, axes):
    stack = noise(4, 2, 9, 8)  # Z C Y X
    written = stack if axes == "ZCYX" else stack.swapaxes(0, 1)
    tifffile.imwrite(tmp_path / "a.ome.tif", written, ome=True, metadata={"axes": axes})
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif", 3), np.moveaxis(stack[3], 0, -1))


def test_a_page_is_read_without_its_neighbours(tmp_path, monkeypatch):
    whole = []
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *_, **__: whole.append(1))
    stack = noise(5, 2, 9, 8)  # Z C Y X
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    for z in (0, 4):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", z), np.moveaxis(stack[z], 0, -1))
    tifffile.imwrite(tmp_path / "b.tif", noise(9, 8, 64), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: whole.append(1))
    says(tmp_path / "b.tif", "64 channels")
    assert not whole


def test_pages_of_different_sizes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(noise(9, 8))
        tif.write(noise(5, 6))
    assert read_image(tmp_path / "a.tif", 1).shape == (5, 6)


def test_indexed_tif_is_looked_up_as_image_and_kept_as_labels(tmp_path):
    ids = np.array([[0, 1], [2, 1]], np.uint8)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 1], colours[:, 2] = (65535, 0, 0), (0, 0, 25700)
    tifffile.imwrite(tmp_path / "a.tif", ids, photometric="palette", colormap=colours)
    image = read_image(tmp_path / "a.tif")
    assert image.tolist() == [[[0, 0, 0], [255, 0, 0]], [[0, 0, 100], [255, 0, 0]]]
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), ids)


def test_content_counts_more_than_the_suffix(tmp_path):
    image = noise(5, 5, 3)
    write_png(tmp_path / "a.png", image).rename(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), image)


# bad files


def test_missing_folder_and_empty(tmp_path):
    says(tmp_path / "none.png", "does not exist")
    (tmp_path / "dir.png").mkdir()
    says(tmp_path / "dir.png", "is a folder")
    (tmp_path / "empty.tif").write_bytes(b"")
    says(tmp_path / "empty.tif", "empty")
    (tmp_path / "text.png").write_text("this is no image")
    says(tmp_path / "text.png", "not an image")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    whole = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(whole, noise(64, 64, 3))
    else:
        write_png(whole, noise(64, 64, 3))
    data = whole.read_bytes()
    part = tmp_path / f"b{suffix}"
    part.write_bytes(data[: int(len(data) * share)])
    says(part, "damaged")


def test_huge_is_said_before_decoding(tmp_path):
    sizes = {".png": (">II", 16, 30000, 20000), ".bmp": ("<ii", 18, 30000, -20000), ".jpg": (">HH", None, 20000, 30000)}
    for suffix, (form, at, *size) in sizes.items():
        path = write_png(tmp_path / f"a{suffix}", noise(9, 9, 3))
        data = bytearray(path.read_bytes())
        struct.pack_into(form, data, data.index(b"\xff\xc0") + 5 if at is None else at, *size)
        if suffix == ".png":
            struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        path.write_bytes(data)
        says(path, "30000 x 20000", "400 megapixels")
    tifffile.imwrite(tmp_path / "a.tif", noise(9, 9), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(30000)
        tif.pages[0].tags["ImageLength"].overwrite(20000)
    says(tmp_path / "a.tif", "30000 x 20000")


def test_unusable_numbers_and_shapes(tmp_path):
    bad = noise(4, 4).astype(np.float32)
    for value in (np.nan, np.inf):
        bad[1, 1] = value
        tifffile.imwrite(tmp_path / "nan.tif", bad)
        says(tmp_path / "nan.tif", "NaN or infinite")
    tifffile.imwrite(tmp_path / "complex.tif", np.ones((4, 4), np.complex64))
    says(tmp_path / "complex.tif", "complex64")
    says(write_png(tmp_path / "line.png", noise(1, 9)), "9 x 1 pixels")
    tifffile.imwrite(tmp_path / "c.ome.tif", noise(6, 9, 9), ome=True, metadata={"axes": "CYX"})
    says(tmp_path / "c.ome.tif", "6 channels")


def test_page_of_a_png(tmp_path):
    with pytest.raises(InputError, match="has 1 page"):
        read_image(write_png(tmp_path / "a.png", noise(4, 4)), page=1)


# files that name other files


def ome_part(path, own, names, axis="C"):
    """An OME-TIFF of one plane at `path` that says its planes along an axis lie in the files `names`."""
    parts = "".join(
        f'<TiffData First{axis}="{i}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{i}</UUID></TiffData>'
        for i, name in enumerate(names)
    )
    sizes = " ".join(f'Size{a}="{len(names) if a == axis else 1}"' for a in "ZCT")
    xml = (
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="8" SizeY="6" {sizes}>'
        f"{parts}</Pixels></Image></OME>"
    )
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, np.full((6, 8), 10 * (own + 1), np.uint8), description=xml.encode(), metadata=None)
    return path


@pytest.mark.parametrize("axis", ["C", "Z"])
@pytest.mark.parametrize("way", ["absolute", "upwards", "link", "absent"])
def test_a_tif_opens_no_file_outside_its_folder(tmp_path, way, axis):
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, np.full((6, 8), 99, np.uint8))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "link.tif").symlink_to(secret)
    name = {"absolute": str(secret), "upwards": "../secret.tif", "link": "link.tif", "absent": "absent.tif"}[way]
    path = ome_part(tmp_path / "own" / "mine.ome.tif", 1, [name, "mine.ome.tif"], axis)
    assert (tifffile.imread(path) == 99).any() == (way != "absent"), "the file does not attack"
    np.testing.assert_array_equal(read_image(path), np.full((6, 8), 20))
    np.testing.assert_array_equal(read_labels(path), np.full((6, 8), 20))
    assert count_pages(path) == 1


def test_a_set_of_files_in_one_folder_is_read_together(tmp_path):
    names = ["a.ome.tif", "b.ome.tif"]
    for axis in "CZ":
        for own, name in enumerate(names):
            ome_part(tmp_path / axis / name, own, names, axis)
    (tmp_path / "link").symlink_to(tmp_path / "C")
    for folder in ("C", "link"):
        image = read_image(tmp_path / folder / "b.ome.tif")
        assert image.shape == (6, 8, 2) and image[0, 0].tolist() == [10, 20]
    assert [int(read_image(tmp_path / "Z" / "a.ome.tif", z)[0, 0]) for z in range(2)] == [10, 20]
    assert count_pages(tmp_path / "Z" / "a.ome.tif") == 2


def test_an_index_of_a_micro_manager_set_leads_nowhere_else(tmp_path, monkeypatch):
    def index(name):
        axes = b'{"z": 0}'
        text = struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name.encode()
        return text + struct.pack("<8I", 0, 8, 6, 0, 0, 0, 0, 0)

    tifffile.imwrite(tmp_path / "secret.tif", np.full((6, 8), 99, np.uint8))
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / "a_NDTiffStack.tif"
    tifffile.imwrite(path, noise(6, 8), metadata=None)
    (tmp_path / "own" / "NDTiff.index").write_bytes(index("../secret.tif"))
    monkeypatch.setattr(tifffile.TiffFile, "is_ndtiff", True)  # what the header of such a file says
    says(path, "names files outside its folder")


# labels


@pytest.mark.parametrize(("suffix", "top"), [(".png", 65535), (".tif", 65535), (".tiff", 70000), (".TIF", 3)])
def test_ids_survive(tmp_path, suffix, top):
    labels = np.array([[0, 1, 300], [top, 2, 0]])
    write_labels(tmp_path / f"a{suffix}", labels)
    read = read_labels(tmp_path / f"a{suffix}")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)


def test_bits_of_the_file(tmp_path):
    write_labels(tmp_path / "a.tif", np.eye(3, dtype=np.int64))
    write_labels(tmp_path / "b.tif", np.eye(3, dtype=np.int64) * 65536)
    write_labels(tmp_path / "c.png", np.eye(3, dtype=bool))
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint16
    assert tifffile.imread(tmp_path / "b.tif").dtype == np.uint32
    assert read_image(tmp_path / "c.png").dtype == np.uint16


@given(labels=hnp.arrays(np.uint16, st.tuples(st.integers(2, 20), st.integers(2, 20))), tif=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_label_image_survives(tmp_path_factory, labels, tif):
    path = tmp_path_factory.mktemp("labels") / ("a.tif" if tif else "a.png")
    write_labels(path, labels)
    np.testing.assert_array_equal(read_labels(path), labels)


def test_labels_refused(tmp_path):
    with pytest.raises(InputError, match="3 channels but a label image has one"):
        read_labels(write_png(tmp_path / "rgb.png", noise(4, 4, 3)))
    tifffile.imwrite(tmp_path / "float.tif", np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match="labels are integers"):
        read_labels(tmp_path / "float.tif")
    tifffile.imwrite(tmp_path / "minus.tif", -np.ones((4, 4), np.int16))
    with pytest.raises(InputError, match="ids outside"):
        read_labels(tmp_path / "minus.tif")
    for labels, words in [
        (np.ones((4, 4)), "labels are integers"),
        (np.ones((4, 4, 3), int), "one \\(H, W\\) array"),
        (-np.ones((4, 4), int), "ids outside"),
        (np.full((4, 4), 70000), "use the suffix .tif"),
    ]:
        with pytest.raises(InputError, match=words):
            write_labels(tmp_path / "a.png", labels)
    with pytest.raises(InputError, match="does not end in"):
        write_labels(tmp_path / "a.jpg", np.eye(3, dtype=int))
    with pytest.raises(InputError, match="does not exist"):
        write_labels(tmp_path / "no" / "a.png", np.eye(3, dtype=int))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.tif", "minus.tif", "rgb.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_labels(tmp_path / "a.png", np.eye(3, dtype=int))

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match="could not be written .*disk"):
        write_labels(tmp_path / "a.png", np.zeros((3, 3), int))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), np.eye(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([0, 1], [0, 1]),
        ([0, 3, 7, 3], [0, 1, 2, 1]),
        ([9, 5, 2], [3, 2, 1]),
        ([0, 4_000_000_000, 70_000], [0, 2, 1]),
        ([], []),
    ],
)
def test_renumbered_ids_keep_their_order(ids, expected):
    for dtype in (np.int64, np.uint64):
        np.testing.assert_array_equal(renumbered(np.array([ids, ids], dtype)), [expected, expected])
    assert renumbered(np.array([True, False])).tolist() == [1, 0]


# 8-bit RGB


def test_channels():
    a, b, c, d, e = (np.full((3, 4), v, np.uint8) for v in (1, 2, 3, 4, 5))
    assert to_rgb8(a)[0, 0].tolist() == [1, 1, 1]
    assert to_rgb8(a[..., None])[0, 0].tolist() == [1, 1, 1]
    assert to_rgb8(np.dstack([a, b]))[0, 0].tolist() == [1, 2, 0]
    for stack in ([a, b, c], [a, b, c, d], [a, b, c, d, e]):
        assert to_rgb8(np.dstack(stack))[0, 0].tolist() == [1, 2, 3]


def test_channels_first():
    image = noise(2, 9, 8)
    np.testing.assert_array_equal(to_rgb8(image), to_rgb8(np.moveaxis(image, 0, -1)))


def test_stretch_by_hand():
    image = np.array([[100, 200], [300, 610]], np.uint16)
    assert to_rgb8(image)[..., 1].tolist() == [[0, 50], [100, 255]]
    assert to_rgb8(np.array([[-1.0, 0.0], [0.5, 1.0]]))[..., 0].tolist() == [[0, 128], [191, 255]]
    assert to_rgb8(np.array([[True, False], [False, True]]))[..., 2].tolist() == [[255, 0], [0, 255]]
    two = np.dstack([image, np.full((2, 2), 7, np.uint16)])
    assert to_rgb8(two)[1, 1].tolist() == [255, 0, 0]


@given(
    image=hnp.arrays(
        st.sampled_from([np.int8, np.uint16, np.int64, np.float32, np.float64, np.float16]),
        st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(1, 5)),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
@settings(max_examples=60, deadline=None)
def test_order_of_values_survives(image):
    out = to_rgb8(image)
    assert out.dtype == np.uint8 and out.shape == (*image.shape[:2], 3)
    before, after = image[..., 0].ravel(), out[..., 0].ravel()
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order].astype(int)) >= 0).all()
    assert set(after) == {0} or (after.min() == 0 and after.max() == 255)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((0, 5)), "5 x 0 pixels"),
        (np.zeros((5, 1)), "1 x 5 pixels"),
        (np.zeros(5), "shape"),
        (np.zeros((2, 4, 4, 3)), "shape"),
        (np.zeros((8, 8, 6)), "6 channels"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.full((3, 3), "a"), "<U1"),
        (None, "shape"),
    ],
)
def test_unusable_arrays(image, words):
    with pytest.raises(InputError, match=f"^mine .*{words}"):
        to_rgb8(image, "mine")


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_a_pil_image_is_what_its_rgb_is(mode):
    colours = Image.fromarray(np.dstack([noise(20, 30, 3), np.full((20, 30), 255, np.uint8)]))
    image = {
        "1": lambda: Image.fromarray(noise(20, 30) > 99),
        "P": lambda: colours.convert("RGB").quantize(16),
        "PA": lambda: colours.convert("RGB").quantize(16).convert("PA"),
        "La": lambda: colours.convert("LA").convert("La"),
    }.get(
        mode, lambda: colours.convert("RGB").convert(mode) if mode in ("YCbCr", "HSV", "CMYK") else colours.convert(mode)
    )()
    assert image.mode == mode
    expected = {"LA": "L", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    np.testing.assert_array_equal(to_rgb8(image), np.asarray(image.convert(expected).convert("RGB")))


def test_pil_images_of_many_values_are_stretched_and_others_refused():
    deep = noise(20, 30, dtype=np.uint16)
    for image in (Image.fromarray(deep), Image.fromarray(deep.astype(np.int32)), Image.fromarray(deep.astype(np.float32))):
        np.testing.assert_array_equal(to_rgb8(image), to_rgb8(deep))
    for path in ("cells.png", Path("cells.png"), b"cells.png"):
        with pytest.raises(InputError, match="^mine is a path or text .*cells.png.*; read it first with ullsam.read_image"):
            to_rgb8(path, "mine")
    with pytest.raises(InputError, match="cannot be made an array"):
        to_rgb8([[1, 2], [3]])


# rows of a jsonl file

ROWS = [{"file": f"{i}.png", "caption": f"5 \u00b5m \u2028 {i}"} for i in range(3)]


def lines(end="\n", last="\n", rows=ROWS):
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows) + last


@pytest.mark.parametrize(
    "content",
    [
        lines(),
        lines(last=""),
        lines("\r\n", "\r\n"),
        lines("\r", ""),
        lines("\n\n", "\n \n\n"),
        lines(last='\n{"file": "3.png", "capt'),
        lines(last='\n{"file": "\u00b5').encode()[:-1],
        lines().encode("utf-8-sig"),
        lines("\r\n", "").encode("utf-16"),
        "\ufeff".encode("utf-16-be") + lines().encode("utf-16-be"),
        lines(last='\n{"file": "').encode("utf-16")[:-1],
    ],
)
def test_all_rows_of_a_jsonl_file_are_read(tmp_path, content):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_lines(path) == ROWS
    assert read_lines(path, mend=True) == ROWS
    with path.open("a", encoding="utf-8") as file:  # rows can be added now
        append_line(file, {"file": "4.png"})
    assert read_lines(path) == [*ROWS, {"file": "4.png"}]
    assert path.read_bytes() == lines(rows=[*ROWS, {"file": "4.png"}]).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lines(last="\nnull"), "Line 4 of"),
        (lines(last="\ngarbage"), "Line 4 of"),
        (lines(last="\n[1]\n"), "Line 4 of"),
        (lines('\n{"file": 1\n'), "Line 2 of"),
        ("[" * 100_000 + "\n", "Line 1 of"),
        (lines().encode("latin-1", "ignore"), "is not text in UTF-8"),
        (lines().encode("utf-16-le"), "is not text in UTF-8"),
        (lines().encode() + bytes(400), "is not text in UTF-8"),
    ],
)
def test_other_lines_are_one_sentence(tmp_path, content, words):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for mend in (False, True):
        with pytest.raises(InputError, match=f"{words}.*captions.jsonl|captions.jsonl {words}") as caught:
            read_lines(path, mend)
        assert "\n" not in str(caught.value)


# square


def test_corner_and_center_by_hand():
    corner, center = Square(20, 50, 100), Square(20, 50, 100, "center")
    assert (corner.side, corner.scale, corner.offset) == (50, 2.0, (0, 0))
    assert center.offset == (0, 15)
    # the centre of pixel (0, 0) lies 0.5 from its corner, 1 model pixel after doubling, index 0.5
    assert corner.points_in([0, 0]).tolist() == [0.5, 0.5]
    assert center.points_in([[3, 2]]).tolist() == [[6.5, 34.5]]
    assert corner.boxes_in([[1, 2, 3, 4]]).tolist() == [[2.5, 4.5, 6.5, 8.5]]
    assert Square(21, 50, 100, "center").offset == (0, 14)


@given(SIDES, SIDES, st.integers(4, 1024), PLACEMENTS, st.lists(st.floats(-50, 500), min_size=2, max_size=2))
def test_points_go_there_and_back(height, width, size, placement, xy):
    square = Square(height, width, size, placement)
    there = square.points_in(xy)
    assert there.dtype == np.float32
    np.testing.assert_allclose(square.points_out(there), xy, rtol=1e-4, atol=1e-3)


@given(SIDES, SIDES, PLACEMENTS, st.integers(0, 10**6))
@settings(deadline=None)
def test_native_size_is_exact(height, width, placement, seed):
    """Where the model's side equals the image's longer side nothing is resampled, both ways."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded, square = to_square(image, max(height, width), placement)
    back = from_square(torch.from_numpy(padded).permute(2, 0, 1).float(), square)
    np.testing.assert_array_equal(back.permute(1, 2, 0).numpy(), image)
    assert padded.sum(dtype=np.int64) == image.sum(dtype=np.int64)  # the rest is zero


@given(SIDES, SIDES, PLACEMENTS, st.integers(16, 128))
@settings(deadline=None, max_examples=50)
def test_a_constant_comes_back_constant(height, width, placement, size):
    square = Square(height, width, size, placement)
    out = from_square(torch.full((2, size // 4, size // 4), 3.5), square)
    assert out.shape == (2, height, width)
    torch.testing.assert_close(out, torch.full_like(out, 3.5))


@given(st.integers(8, 60), st.integers(8, 60), PLACEMENTS, st.sampled_from([1, 2, 4]), st.data())
@settings(deadline=None, max_examples=50)
def test_a_pixel_lands_where_its_point_lands(height, width, placement, factor, data):
    """A bright pixel, its point in the model's square, and its way back agree."""
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    image = np.zeros((height, width, 3), np.uint8)
    image[y, x] = 255
    model, square = to_square(image, max(height, width) * factor, placement)
    px, py = np.rint(square.points_in([x, y]) - 1e-3).astype(int)
    assert model[py, px, 0] == model.max() > 100
    logits = torch.zeros(1, square.size, square.size)
    logits[0, py, px] = 1.0
    back = from_square(logits, square)[0].numpy()
    if back.max() > 0:
        by, bx = np.unravel_index(back.argmax(), back.shape)
        assert abs(by - y) <= 1 and abs(bx - x) <= 1


def test_half_plane_returns_to_its_side():
    square = Square(40, 80, 64, "center")
    logits = torch.full((1, 16, 16), -5.0)
    logits[:, :, 8:] = 5.0
    mask = from_square(logits, square)[0] > 0
    assert not mask[:, :40].any() and mask[:, 40:].all()


def test_no_instances_and_bad_arguments():
    assert from_square(torch.zeros(0, 4, 4), Square(5, 6, 16)).shape == (0, 5, 6)
    with pytest.raises(InputError, match="use 'corner' or 'center'"):
        Square(5, 5, 8, "middle")
    with pytest.raises(InputError, match="at least 1"):
        Square(5, 5, 0)
    with pytest.raises(InputError, match="to_rgb8"):
        to_square(np.zeros((4, 4, 3)), 8)
