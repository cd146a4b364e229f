"""What the numbers in a file mean: photometric interpretation x layout x depth, alpha, orientation; files that end early.

Expected values are worked out by hand, or by PIL; files are written by tifffile, PIL, or byte by byte.
"""

import os
import struct
import zlib
from itertools import product

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from ullsam.data.decode import count_pages, decode, image_size
from ullsam.data.io import read_image, read_labels, to_rgb8
from ullsam.errors import InputError

H, W = 32, 48
STRIPS, TILES, PLANES = {"rowsperstrip": 5}, {"tile": (16, 16)}, {"planarconfig": "separate"}
PACKED = [{}, {"compression": "zlib", "predictor": True}, {"compression": "lzw"}, {"compression": "packbits"}]


def noise(*shape, top=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def smooth(*shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.stack([rows * 3, columns * 3, 200 - rows], -1)[..., : shape[2]].astype(np.uint8)


def refused(path, *words, read=read_image):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message and message.endswith(".") and "\n" not in message
    assert all(word in message for word in words), message


# photometric interpretation x layout x depth

COLOURS = np.random.default_rng(1).integers(0, 65536, (3, 65536), dtype=np.uint16)


def looked_up(stored):
    return (np.moveaxis(COLOURS[:, : np.iinfo(stored.dtype).max + 1][:, stored], 0, -1) >> 8).astype(np.uint8)


def inverted(stored):
    return ~stored if stored.dtype == bool else np.iinfo(stored.dtype).max - stored


def same(stored):
    return stored


SIGNED = ("i1", "i2", "i4", "f4", "f8")
MEANINGS = {  # photometric -> depths, what an image of the stored numbers shows (None: refused), what labels are
    "minisblack": (("bool", "u1", "u2", "u4", *SIGNED), same, same),
    "miniswhite": (("bool", "u1", "u2", "u4"), inverted, same),
    "rgb": (("u1", "u2", "f4"), same, None),
    "palette": (("u1", "u2"), looked_up, same),
}


@pytest.mark.parametrize(
    ("photometric", "layout"), [*product(MEANINGS, (STRIPS, TILES)), ("rgb", PLANES)], ids=lambda x: "".join(x)
)
def test_numbers_mean_what_the_photometric_interpretation_says(tmp_path, photometric, layout):
    depths, shown, ids = MEANINGS[photometric]
    path = tmp_path / "a.tif"
    for depth, packing, order in product(depths, PACKED, "<>"):
        stored = noise(H, W, 3, top=2 if depth == "bool" else 120, dtype=depth)
        stored = stored if photometric == "rgb" else stored[..., 0]
        options = {**layout, **packing, "byteorder": order, "photometric": photometric}
        if photometric == "palette":
            options["colormap"] = COLOURS[:, : np.iinfo(depth).max + 1]
        if depth in ("bool", "f8") and "predictor" in packing:
            continue
        tifffile.imwrite(path, np.moveaxis(stored, -1, 0) if layout is PLANES else stored, **options)
        image = read_image(path)
        assert image.dtype == shown(stored).dtype.newbyteorder("="), options
        np.testing.assert_array_equal(image, shown(stored), str(options))
        if ids is None or depth in ("f4", "f8"):
            refused(path, read=read_labels)
        else:  # of one bit, white is the object; more bits are ids
            expected = shown(stored) if depth == "bool" else ids(stored)
            np.testing.assert_array_equal(read_labels(path), expected, str(options))


@pytest.mark.parametrize("depth", SIGNED)
def test_white_cannot_be_zero_among_signed_numbers(tmp_path, depth):
    tifffile.imwrite(tmp_path / "a.tif", noise(H, W, top=99, dtype=depth), photometric="miniswhite")
    refused(tmp_path / "a.tif", "MINISWHITE", "save it as RGB or grey")


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize(("bits", "factor"), [(2, 85), (4, 17), (12, 1)])
def test_packed_grey_fills_the_range_and_packed_ids_stay(tmp_path, photometric, bits, factor):
    top = 2**bits - 1
    stored = noise(H, W, top=top + 1, dtype=np.uint8 if bits < 8 else np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, bitspersample=bits, photometric=photometric)
    grey = stored if photometric == "minisblack" else top - stored
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), grey * factor)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), stored)
    if bits < 8:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tif")), grey * factor)


def test_a_fax_of_a_mask_has_the_pixels_that_viewers_show(tmp_path):
    blob = np.hypot(*np.mgrid[-16:16, -24:24]) < 10
    for photometric in (0, 1):
        Image.fromarray(blob).save(tmp_path / "a.tif", compression="group4", tiffinfo={262: photometric})
        np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), np.asarray(Image.open(tmp_path / "a.tif")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "jpeg"])
def test_colours_of_printers_and_films_become_rgb(tmp_path, mode, compression):
    quality = {"quality": 95} if compression == "jpeg" else {}
    Image.fromarray(smooth(H, W, 3)).convert(mode).save(tmp_path / "a.tif", compression=compression, **quality)
    expected = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")).astype(int)
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == np.uint8 and abs(image - expected).max() <= (6 if compression == "jpeg" else 1)
    assert abs(image - smooth(H, W, 3).astype(int)).max() <= 12
    refused(tmp_path / "a.tif", read=read_labels)


@pytest.mark.parametrize("planes", [STRIPS, PLANES])
def test_cmyk_of_16_bits_and_with_alpha(tmp_path, planes):
    inks = noise(H, W, 5, top=65536, dtype=np.uint16)
    stored = np.moveaxis(inks, -1, 0) if planes is PLANES else inks
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="separated", extrasamples=["unassalpha"], **planes)
    expected = Image.frombytes("CMYK", (W, H), (inks[..., :4] >> 8).astype(np.uint8).tobytes()).convert("RGB")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(expected))


def test_lab_becomes_rgb(tmp_path):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = Image.fromarray(smooth(H, W, 3))
    ImageCms.profileToProfile(picture, *profiles, outputMode="LAB").save(tmp_path / "a.tif", compression="tiff_lzw")
    expected = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    assert np.median(abs(expected - np.asarray(picture).astype(int))) <= 4


def test_other_colours_are_refused_by_name(tmp_path):
    path, three = tmp_path / "a.tif", noise(H, W, 3)
    tifffile.imwrite(path, three, photometric="icclab")
    refused(path, "ICCLAB", "save it as RGB or grey")
    tifffile.imwrite(path, three.astype(np.uint16), photometric="cielab")
    refused(path, "uint16 colours as CIELAB")
    tifffile.imwrite(path, three[..., 0], photometric="cfa")
    refused(path, "CFA")
    tifffile.imwrite(path, noise(H, W, 4), photometric="separated", extratags=[(332, "H", 1, 2, True)])  # not CMYK's inks
    refused(path, "SEPARATED")
    black_and_white = (532, "2I", 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1), True)
    tifffile.imwrite(path, three, photometric="ycbcr", subsampling=(1, 1), extratags=[black_and_white])
    refused(path, "YCBCR")


ALPHA = {  # PIL's names of extra samples: unspecified is a channel, the others are alpha
    "unspecified": lambda grey, alpha: np.stack([grey, alpha], -1),
    "unassalpha": lambda grey, alpha: grey,
    "assocalpha": lambda grey, alpha: np.where(alpha > 0, np.minimum(grey * 255 // np.maximum(alpha, 1), 255), 0),
}


@pytest.mark.parametrize("what", ALPHA)
def test_grey_loses_its_alpha_and_colours_keep_it(tmp_path, what):
    path, (grey, alpha) = tmp_path / "a.tif", np.moveaxis(noise(H, W, 2), -1, 0).astype(int)
    stored = np.stack([grey, alpha], -1).astype(np.uint8)
    for planes in (False, True):
        layout = {"planarconfig": "separate" if planes else "contig", "photometric": "minisblack"}
        tifffile.imwrite(path, np.moveaxis(stored, -1, 0) if planes else stored, extrasamples=[what], **layout)
        np.testing.assert_array_equal(read_image(path), ALPHA[what](grey, alpha))
        if what != "unspecified":
            np.testing.assert_array_equal(read_labels(path), grey)
    stored = noise(H, W, 4)
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=[what])
    np.testing.assert_array_equal(read_image(path)[..., :3], np.asarray(Image.open(path))[..., :3])
    np.testing.assert_array_equal(read_image(path)[..., 3], stored[..., 3])


@pytest.mark.parametrize("name", ["8.png", "16.png", "8.tif"])
def test_a_transparent_grey_picture_is_grey(tmp_path, name):
    stored = noise(H, W, 2, top=65536, dtype=np.uint16) if name == "16.png" else noise(H, W, 2)
    if name == "16.png":
        (tmp_path / name).write_bytes(imagecodecs.png_encode(stored))
    else:
        Image.fromarray(stored, "LA").save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), stored[..., 0])


def test_every_page_has_its_own_table_of_colours(tmp_path):
    path, ids = tmp_path / "a.tif", noise(H, W)
    dark = np.tile(np.arange(256, dtype=np.uint16) // 2, (3, 1))  # a program that writes 8 bits
    with tifffile.TiffWriter(path) as tif:
        for table in (COLOURS[:, :256], COLOURS[::-1, :256], dark):
            tif.write(ids, photometric="palette", colormap=table, compression="lzw")
    np.testing.assert_array_equal(read_image(path, 0), looked_up(ids))
    np.testing.assert_array_equal(read_image(path, 1), looked_up(ids)[..., ::-1])
    np.testing.assert_array_equal(read_image(path, 2)[..., 1], ids // 2)
    np.testing.assert_array_equal(decode(path, 1, table=False), ids)


# labels


def small_png(path, stored, bits, kind=0, table=b""):
    """A png of 1, 2, 4, 8 or 16 bits, grey (kind 0) or of indexed colours (kind 3), which PIL and OpenCV do not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", stored.shape[1], stored.shape[0], bits, kind, 0, 0, 0)
    rows = [np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).ravel().astype(np.uint8)).tobytes() for row in stored]
    chunks = chunk(b"IHDR", header) + (chunk(b"PLTE", table) if table else b"")
    data = chunks + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_ids_of_a_png_are_those_stored(tmp_path, bits):
    ids = noise(H, W, top=2**bits, dtype=np.int64)
    np.testing.assert_array_equal(read_labels(small_png(tmp_path / "a.png", ids, bits)), ids)
    grey = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(grey, ids * (255 // (2**bits - 1) if bits < 8 else 1))  # PNG's own rule
    if bits <= 8:
        table = noise(2**bits, 3)
        small_png(tmp_path / "p.png", ids, bits, 3, table.tobytes())
        np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), ids)
        np.testing.assert_array_equal(read_image(tmp_path / "p.png"), table[ids])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_ids_of_indexed_colours_are_the_indices(tmp_path, suffix):
    picture = Image.fromarray(smooth(H, W, 3)).quantize(9)
    picture.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{suffix}"), np.asarray(picture))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "jpeg", "jpeg2000", "webp", "jpegxl"])
def test_lossy_label_images_are_refused(tmp_path, name):
    path, ids = tmp_path / (name if "." in name else "a.tif"), smooth(H, W, 1)[..., 0]
    if name == "a.png":
        Image.fromarray(ids).save(path, "jpeg")
    elif "." in name:
        Image.fromarray(ids).save(path)
    else:
        tifffile.imwrite(path, np.stack([ids] * 3, -1) if name == "webp" else ids, compression=name)
    refused(path, "compressed with losses", "save label images as png", read=read_labels)
    assert read_image(path).shape[:2] == (H, W)


# orientation


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "raw.tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_viewers_show_them(tmp_path, name, orientation):
    path, picture = tmp_path / name, Image.fromarray(smooth(H, W, 3))
    if name.endswith(".tif"):
        tifffile.imwrite(path, np.asarray(picture), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        exif, stored = Image.Exif(), np.asarray(picture)
        exif[274] = orientation
    else:
        exif = picture.getexif()
        exif[274] = orientation
        picture.save(path, exif=exif, quality=95)
        stored = np.asarray(Image.open(path))
    flat = Image.fromarray(stored)
    flat.getexif().update(exif)
    image = read_image(path)
    expected = np.asarray(ImageOps.exif_transpose(flat)).astype(int)
    assert image.shape == expected.shape and abs(image - expected).max() <= 2
    assert image.shape[:2] == ((W, H) if orientation in (5, 6, 7, 8) else (H, W))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_labels_are_turned_too_and_a_damaged_exif_turns_nothing(tmp_path):
    ids = noise(H, W)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(ids).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), np.rot90(ids, -1))
    Image.fromarray(smooth(H, W, 3)).save(tmp_path / "b.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(tmp_path / "b.jpg").shape == (H, W, 3)


# pages and channels


@pytest.mark.parametrize(
    ("shape", "pages", "channels"),
    [
        ((40, 50, 3), 1, 3),
        ((40, 50, 5), 1, 5),
        ((64, 80, 6), 1, 6),
        ((9, 40, 50), 9, None),
        ((60, 40, 12), 60, None),
        ((5, 80, 16), 5, None),
    ],
)
@pytest.mark.parametrize("options", [{}, {"metadata": None}])
def test_a_short_last_axis_is_channels(tmp_path, shape, pages, channels, options):
    path, stored = tmp_path / "a.tif", noise(*shape)
    tifffile.imwrite(path, stored, photometric="minisblack", **options)
    assert count_pages(path) == pages
    if channels and channels > 5:
        return refused(path, f"{channels} channels")
    np.testing.assert_array_equal(read_image(path, pages - 1), stored[-1] if pages > 1 else stored)


def test_a_stack_of_images_with_a_short_last_axis(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 40, 50, 4), photometric="minisblack")
    assert count_pages(tmp_path / "a.tif") == 3
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 2), noise(3, 40, 50, 4)[2])
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 64, 80, 16), photometric="minisblack")
    refused(tmp_path / "a.tif", "16 channels")


def test_previews_and_transparency_masks_are_no_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for kind, size in ((1, 8), (0, H), (4, H)):
            stored = noise(size, size)
            tif.write(stored > 99 if kind == 4 else stored, subfiletype=kind, metadata=None)
    assert count_pages(tmp_path / "a.tif") == 1
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), noise(H, H))


def test_one_image_is_asked_of_a_stack(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(5, H, W), photometric="minisblack")
    refused(tmp_path / "a.tif", "has 5 pages where one image is needed", read=read_labels)
    refused(tmp_path / "a.tif", "has 5 pages", read=lambda path: read_image(path, None))
    assert read_image(tmp_path / "a.tif", 4).shape == (H, W)


# files that end early

STACK = noise(10, 2, 20, 30, top=4000, dtype=np.uint16)  # Z C Y X
WHOLE = {
    "imagej": (STACK, {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "ome": (STACK, {"ome": True, "metadata": {"axes": "ZCYX"}}),
    "ome, compressed": (STACK, {"ome": True, "metadata": {"axes": "ZCYX"}, "compression": "zlib"}),
    "plain": (STACK[:, 0], {"metadata": None}),
    "big": (STACK[:, 0], {"bigtiff": True}),
    "tiles": (STACK[:3, 0], {"tile": (16, 16), "compression": "lzw", "photometric": "minisblack"}),
    "jpeg": (smooth(96, 64, 3), {"photometric": "ycbcr", "compression": "jpeg", "rowsperstrip": 16}),
    "pages of jpeg": (np.stack([smooth(H, W, 3)] * 4), {"photometric": "rgb", "compression": "jpeg"}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_tif_that_was_not_copied_whole_is_not_taken_for_a_smaller_one(tmp_path, name):
    stored, options = WHOLE[name]
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    data = (tmp_path / "a.tif").read_bytes()
    pages = count_pages(tmp_path / "a.tif")
    expected = [read_image(tmp_path / "a.tif", z) for z in range(pages)]
    for end in np.linspace(8, len(data) - 1, 40).astype(int):
        (tmp_path / "b.tif").write_bytes(data[:end])
        try:
            assert count_pages(tmp_path / "b.tif") == pages
            found = [read_image(tmp_path / "b.tif", z) for z in range(pages)]
        except InputError as error:
            assert "b.tif" in str(error)
        else:  # only what tells of the writing program was cut off
            np.testing.assert_array_equal(found, expected)


def test_a_stack_of_imagej_with_one_directory_for_all_planes(tmp_path):
    """As ImageJ writes what is larger than 4 GB."""
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata={"axes": "ZCYX"})
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        tags, start = len(tif.pages[0].tags), tif.pages[0].dataoffsets[0]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[10 + 12 * tags :][:4] = data[10 + 12 * tags : 14 + 12 * tags] = bytes(4)  # no next directory
    data = data[: start + STACK.nbytes]
    (tmp_path / "b.tif").write_bytes(data)
    assert count_pages(tmp_path / "b.tif") == 10
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif", 7), np.moveaxis(STACK[7], 0, -1))
    (tmp_path / "b.tif").write_bytes(data[: start + STACK.nbytes // 3])
    refused(tmp_path / "b.tif", "ends too early", read=count_pages)


def test_strips_that_are_not_there_are_not_filled_in(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(H, W), compression="zlib", rowsperstrip=H)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        tif.pages[0].tags["ImageLength"].overwrite(5 * H)
    refused(tmp_path / "a.tif", "ends too early")


def test_the_size_is_known_before_anything_is_decoded(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for size in (8, H, 16):
            tif.write(noise(size, W), metadata=None)
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(noise(H, W)).save(tmp_path / name)
    assert {image_size(tmp_path / name) for name in ("a.tif", "a.png", "a.jpg", "a.bmp")} == {(H, W)}
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:9])
    refused(tmp_path / "b.tif", read=image_size)
    (tmp_path / "c.png").write_text("no image")
    refused(tmp_path / "c.png", "not an image", read=image_size)


def test_a_list_of_pages_that_goes_round_ends(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(3, H, W), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        first, last = tif.pages[0].offset, tif.pages[2].offset
        count = len(tif.pages[2].tags)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[last + 2 + 12 * count : last + 6 + 12 * count] = struct.pack("<I", first)
    (tmp_path / "a.tif").write_bytes(data)
    refused(tmp_path / "a.tif", "damaged")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_or_a_device_is_not_read_for_ever(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path / "a.png", "is a device or a pipe")
    refused(tmp_path / ("a" * 300), "cannot be opened")


def test_what_is_shown_of_a_dark_16_bit_negative_is_bright(tmp_path):
    ramp = np.linspace(65535, 0, H * W).astype(np.uint16).reshape(H, W)
    tifffile.imwrite(tmp_path / "a.tif", ramp, photometric="miniswhite")
    shown = to_rgb8(read_image(tmp_path / "a.tif"))[..., 0]
    assert shown[0, 0] == 0 and shown[-1, -1] == 255
