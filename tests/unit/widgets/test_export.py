"""Exports are read back by other programs' readers, or by decoders written here."""

import csv
import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import roifile
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from ullsam import Corpus, InputError, read_image, read_labels, to_rgb8
from ullsam.widgets import export as export_module
from ullsam.widgets.export import EXPORT_FORMATS, export, measure, outlines, run_lengths
from ullsam.widgets.instances import Annotations, Region
from ullsam.widgets.pages import read_pixel_size
from ullsam.widgets.session import ClickSession

SIZE = (40, 56)
BLOBS = st.builds(
    lambda seed, h, w, share: np.random.default_rng(seed).random((h, w)) < share,
    st.integers(0, 2**31),
    st.integers(2, 14),
    st.integers(2, 14),
    st.floats(0.1, 0.9),
).filter(np.any)


@pytest.fixture
def labels():
    """A block with a hole, two pieces of one instance, and a single pixel in the corner."""
    labels = np.zeros(SIZE, np.int32)
    labels[3:10, 5:20], labels[5:7, 8:10] = 7, 0
    labels[20:30, 30:50] = labels[35, 1] = 9
    labels[39, 55] = 300
    return labels


@pytest.fixture
def one(labels):
    image = (np.arange(40 * 56).reshape(SIZE) * 20).astype(np.uint16)
    return Annotations(
        "cells",
        {0: image},
        {0: labels},
        {7: "nucleus", 9: "cell/odd", 300: "nucleus"},
        count=1,
        pixel_size=(0.5, 0.25),
        file="cells.tif",
    )


@pytest.fixture
def stack(labels):
    images = {z: np.full((*SIZE, 3), 40 * z, np.uint8) for z in (1, 3)}
    return Annotations("s", images, {1: labels, 3: np.flipud(labels) * 2}, {}, count=5)


def drawn(paths, size):
    """Paths of pixel corners filled by the even-odd rule."""
    filled = np.zeros(size, bool)
    for path in paths:
        filled ^= polygon2mask(size, path[:, ::-1] - 0.5)  # corners to pixel centres, (x, y) to (row, column)
    return filled


def decode(rle):
    """COCO's run lengths -> bool (H, W)."""
    height, width = rle["size"]
    runs = [np.full(n, i % 2, bool) for i, n in enumerate(rle["counts"])]
    flat = np.concatenate([*runs, np.zeros(height * width, bool)])[: height * width]
    return flat.reshape(width, height).T  # columns first


# ---------------------------------------------------------------- ImageJ


def test_label_tiff_is_imagejs_with_its_pixel_size(one, labels, tmp_path):
    path = export(one, tmp_path, ["tiff"])["tiff"]
    with tifffile.TiffFile(path) as tif:
        assert tif.is_imagej and tif.imagej_metadata["unit"] == "um"
        assert tif.pages[0].dtype == np.uint16 and tif.series[0].axes == "YX"
        x, y = (tif.pages[0].tags[f"{a}Resolution"].value for a in "XY")
        assert (x[0] / x[1], y[0] / y[1]) == (2, 4)  # pixels per micrometre
    np.testing.assert_array_equal(read_labels(path), labels)
    assert read_pixel_size(path) == (0.5, 0.25)


def test_label_stack_has_every_page(stack, labels, tmp_path):
    path = export(stack, tmp_path, "tiff")["tiff"]
    with tifffile.TiffFile(path) as tif:
        assert tif.imagej_metadata["slices"] == 5 and "unit" not in tif.imagej_metadata
        array = tif.asarray()
    np.testing.assert_array_equal(array[[1, 3]], [labels, np.flipud(labels) * 2])
    assert not array[[0, 2, 4]].any() and read_pixel_size(path) is None


def test_rois_enclose_exactly_the_pixels(one, labels, tmp_path):
    rois = roifile.roiread(export(one, tmp_path, ["roi"])["roi"])
    assert [roi.name for roi in rois] == ["0007-nucleus", "0009-cell_odd", "0300-nucleus"]
    for number, roi in zip((7, 9, 300), rois, strict=True):
        paths = roi.coordinates(multi=True)
        np.testing.assert_array_equal(drawn([np.asarray(p) for p in paths], SIZE), labels == number)
        assert roi.position == 0
    assert [roi.roitype.name for roi in rois] == ["RECT", "RECT", "TRACED"]  # composites, and one plain outline
    assert (rois[0].left, rois[0].top, rois[0].right, rois[0].bottom) == (5, 3, 20, 10)


def test_rois_of_a_stack_know_their_slice(stack, tmp_path):
    rois = roifile.roiread(export(stack, tmp_path, ["roi"])["roi"])
    assert [roi.position for roi in rois] == [2, 2, 2, 4, 4, 4]


# the file's axes and sizes, a page from 0, and (position, c, z, t) in ImageJ, all from 1
POSITIONS = [
    ("ZYX", (4, *SIZE), 2, (3, 0, 0, 0)),
    ("ZCYX", (4, 2, *SIZE), 2, (0, 0, 3, 0)),
    ("TCYX", (4, 3, *SIZE), 1, (0, 0, 0, 2)),
    ("TZYX", (2, 3, *SIZE), 4, (0, 0, 2, 2)),
    ("TZCYX", (2, 3, 2, *SIZE), 4, (0, 0, 2, 2)),
    ("TZCYX", (3, 2, 2, *SIZE), 4, (0, 0, 1, 3)),
    ("CYX", (2, *SIZE), 0, (0, 0, 0, 0)),
    ("YX", SIZE, 0, (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("axes", "shape", "page", "expected"), POSITIONS)
def test_rois_lie_where_imagej_has_the_page(axes, shape, page, expected, tmp_path, Discs):
    tifffile.imwrite(tmp_path / "h.tif", np.zeros(shape, np.uint16), imagej=True, metadata={"axes": axes})
    session = ClickSession(Discs(), tmp_path / "h.tif", project=False)
    session.set_page(page)
    session.click(20, 20)
    session.save_instance()
    (roi,) = roifile.roiread(session.export(tmp_path, ["roi"])["roi"])
    assert (roi.position, roi.c_position, roi.z_position, roi.t_position) == expected


@given(BLOBS)
def test_outlines_are_exact_for_any_mask(mask):
    paths = outlines(Region.of(mask))
    np.testing.assert_array_equal(drawn(paths, mask.shape), mask)
    for path in paths:
        steps = np.diff(np.vstack([path, path[:1]]), axis=0)
        assert ((steps != 0).sum(1) == 1).all()  # along the grid, from turn to turn


# ---------------------------------------------------------------- COCO, pictures, measurements


def test_coco_gives_back_masks_names_and_boxes(one, labels, tmp_path):
    coco = json.loads(export(one, tmp_path, ["coco"])["coco"].read_text())
    assert coco["images"] == [{"id": 1, "file_name": "cells.tif", "height": 40, "width": 56}]
    names = {c["id"]: c["name"] for c in coco["categories"]}
    assert sorted(names.values()) == ["cell/odd", "nucleus"]
    for record in coco["annotations"]:
        mask = labels == record["id"]
        np.testing.assert_array_equal(decode(record["segmentation"]), mask)
        rows, columns = np.nonzero(mask)
        x, y, w, h = record["bbox"]
        assert (x, y, x + w - 1, y + h - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
        assert record["area"] == mask.sum() and names[record["category_id"]] == one.names[record["id"]]
    assert len({r["id"] for r in coco["annotations"]}) == 3


def test_coco_has_an_image_for_each_page(stack, tmp_path):
    coco = json.loads(export(stack, tmp_path, ["coco"])["coco"].read_text())
    assert [(i["id"], i["file_name"]) for i in coco["images"]] == [(2, "s_page002.png"), (4, "s_page004.png")]
    assert [r["image_id"] for r in coco["annotations"]] == [2, 2, 2, 4, 4, 4]


@given(BLOBS)
def test_run_lengths_are_exact_for_any_mask(mask):
    rle = run_lengths(Region.of(mask), mask.shape)
    np.testing.assert_array_equal(decode(rle), mask)
    assert all(n > 0 for n in rle["counts"][1:]) and sum(rle["counts"]) <= mask.size


def test_overlay_shows_image_instances_and_numbers(labels, stack, tmp_path):
    labels = labels.repeat(8, 0).repeat(8, 1)
    image = np.full(labels.shape, 100, np.uint8)
    path = export(Annotations("a.b", {0: image}, {0: labels}, {}), tmp_path, ["overlay"])["overlay"]
    assert path.name == "a.b_overlay.png"
    picture = cv2.imread(str(path))[..., ::-1]
    changed = (picture != 100).any(-1)
    assert changed[labels > 0].all() and changed[(labels == 0)].mean() < 0.01  # a number may be wider than its instance
    white = (picture > 200).all(-1)
    assert all(white[labels == number].any() for number in (7, 9, 300)) and white.sum() < 300
    folder = export(stack, tmp_path, ["overlay"])["overlay"]
    assert sorted(p.name for p in folder.iterdir()) == ["s_page002.png", "s_page004.png"]


def test_measurements_are_those_of_the_pixels(one, labels, tmp_path):
    with export(one, tmp_path, ["csv"])["csv"].open(newline="") as lines:
        rows = {int(row["number"]): row for row in csv.DictReader(lines)}
    assert list(rows) == [7, 9, 300]
    for number, row in rows.items():
        mask, image = labels == number, one.images[0]
        area, (y, x) = mask.sum(), (c.mean() for c in np.nonzero(mask))
        expected = {
            "area_px": area,
            "diameter_px": np.sqrt(4 * area / np.pi),
            "x_px": x,
            "y_px": y,
            "page": 1,
            "area_um2": area / 8,
            "diameter_um": np.sqrt(4 * area / 8 / np.pi),
            "mean_intensity": image[mask].mean(),
        }
        assert {k: float(row[k]) for k in expected} == pytest.approx(expected, rel=1e-5)
        assert row["name"] == one.names[number]


def test_measurements_without_pixel_size_and_with_channels(stack):
    rows = measure(stack, 3)
    assert [row["number"] for row in rows] == [14, 18, 600] and {row["page"] for row in rows} == {4}
    assert all(row[f"mean_intensity_{c}"] == 120 for row in rows for c in (1, 2, 3))
    assert "area_um2" not in rows[0] and rows[0]["name"] == "object"


# ---------------------------------------------------------------- corpus


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), np.uint8),
        ((), np.uint16),
        ((), np.float32),
        ((), bool),
        ((3,), np.uint8),
        ((4,), np.uint8),
        ((3,), np.uint16),
        ((2,), np.uint16),
        ((5,), np.float32),
    ],
)
def test_corpus_keeps_any_image_and_mask(labels, tmp_path, shape, dtype):
    image = (np.random.default_rng(0).random((*SIZE, *shape)) * 250).astype(dtype)
    big = np.where(labels == 300, 70000, labels)
    root = export(Annotations("a.b", {0: image}, {0: big}, {}), tmp_path, ["corpus"])["corpus"]
    corpus = Corpus(root)
    (record,) = corpus.select("train")
    back = read_image(record.image_path)
    np.testing.assert_array_equal(back, image * np.uint8(255) if dtype is bool else image)
    sample = corpus.read(record)
    np.testing.assert_array_equal(sample.labels, big)
    np.testing.assert_array_equal(sample.image, to_rgb8(image))


def test_corpus_grows_and_never_replaces_another_image(one, stack, labels, tmp_path):
    for annotations in (one, stack):
        root = export(annotations, tmp_path, ["corpus"])["corpus"]
    other = Annotations("cells", {0: np.zeros((*SIZE, 3), np.uint8)}, {0: labels}, {})
    export(other, tmp_path, ["corpus"])
    again = Annotations("cells", one.images, {0: np.where(labels == 7, 7, 0)}, {7: "x"})
    export(again, tmp_path, ["corpus"])
    corpus = Corpus(root)
    assert [r.file for r in corpus.records] == ["s_page002.png", "s_page004.png", "cells_2.png", "cells.tif"]
    assert {r.source_id for r in corpus.records} == {"s", "cells"}
    found = {r.file: corpus.read(r) for r in corpus.records}
    assert set(np.unique(found["cells.tif"].labels)) == {0, 7}
    np.testing.assert_array_equal(found["cells_2.png"].labels, labels)
    np.testing.assert_array_equal(found["s_page004.png"].image, stack.images[3])
    assert corpus.meta == {"name": "cells", "pixel_size": "0.5 x 0.25 um", "structure": "nucleus"}


def test_pages_that_lost_their_instances_leave_the_corpus(tmp_path, Discs):
    image = np.random.default_rng(0).integers(0, 255, (3, *SIZE), dtype=np.uint8)
    session, other = ClickSession(Discs(), image, stack=True), ClickSession(Discs(), image[0] // 2)
    for one in (session, other):
        one.import_labels(np.eye(*SIZE, dtype=int))
        one.export(tmp_path, ["corpus", "overlay"])
    session.set_page(2)
    session.import_labels(np.eye(*SIZE, dtype=int) * 2)
    root = session.export(tmp_path, ["corpus", "overlay"])["corpus"]
    assert [r.file for r in Corpus(root).records] == ["image.png", "image_page001.png", "image_page003.png"]
    session.delete(1)
    session.export(tmp_path, ["corpus", "overlay"])
    assert [r.file for r in Corpus(root).records] == ["image.png", "image_page003.png"]
    for part in (root / "images", root / "masks"):
        assert sorted(p.stem for p in part.iterdir()) == ["image", "image_page003"]
    assert [p.name for p in (tmp_path / "image_overlay").iterdir()] == ["image_page003.png"]
    session.delete(2)
    with pytest.raises(InputError, match="save one first"):
        session.export(tmp_path, ["corpus", "tiff"])
    assert [r.file for r in Corpus(root).records] == ["image.png"]
    other.delete(1)
    with pytest.raises(InputError, match="save one first"):
        other.export(tmp_path / "elsewhere", ["corpus"])
    assert not (tmp_path / "elsewhere").exists()


def test_sessions_that_export_at_the_same_instant_lose_no_row(tmp_path, monkeypatch, Discs):
    write, image = export_module.csv_text, np.random.default_rng(0).integers(0, 255, SIZE, dtype=np.uint8)
    monkeypatch.setattr(export_module, "csv_text", lambda *values: (time.sleep(0.02), write(*values))[1])
    sessions = []
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.roll(image, i))
        sessions.append(ClickSession(Discs(), tmp_path / f"{i}.png", project=False))
        sessions[-1].import_labels(np.eye(*SIZE, dtype=int))
    with ThreadPoolExecutor(6) as pool:
        roots = list(pool.map(lambda session: session.export(tmp_path / "out", ["corpus"])["corpus"], sessions))
    assert sorted(r.file for r in Corpus(roots[0]).records) == [f"{i}.png" for i in range(6)]


def test_a_damaged_table_of_a_corpus_is_said_and_kept(one, tmp_path):
    table = tmp_path / "corpus" / "images.csv"
    table.parent.mkdir()
    for content in (b"file\n\xff\xfe\n", b"name\ncells.png\n"):
        table.write_bytes(content)
        with pytest.raises(InputError, match="images.csv"):
            export(one, tmp_path, ["corpus"])
        assert table.read_bytes() == content
    table.write_text("file,split\nother.png,test,and more\n")  # a value too many
    export(one, tmp_path, ["corpus"])
    assert [(r.file, r.split) for r in Corpus(tmp_path / "corpus").records] == [
        ("other.png", "test"),
        ("cells.tif", "train"),
    ]


def test_names_and_words_are_no_formulas_of_a_table_program(one, tmp_path):
    texts = {7: "=1+1", 9: "@SUM(A1)", 300: "cell"}
    for column in ("name", "words"):
        path = export(dataclasses.replace(one, **{f"{column}s".replace("ss", "s"): texts}), tmp_path, ["csv"])["csv"]
        assert [row[column] for row in csv.DictReader(path.open())] == ["'=1+1", "'@SUM(A1)", "cell"]


def test_words_are_the_class_in_every_export(tmp_path, Discs):
    session = ClickSession(Discs(), np.random.default_rng(0).integers(0, 255, SIZE, dtype=np.uint8))
    for x, words in ((10, "nuclei"), (28, "nuclei"), (46, "cell")):
        session.set_words(words)
        session.click(x, 20)
        session.save_instance()
    session.rename(2, "mitosis")  # a person's name for the class counts more
    files = session.export(tmp_path, EXPORT_FORMATS)
    with files["csv"].open(newline="") as lines:
        rows = [(row["name"], row["words"]) for row in csv.DictReader(lines)]
    assert rows == [("nuclei", "nuclei"), ("mitosis", "nuclei"), ("cell", "cell")]
    coco = json.loads(files["coco"].read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    assert [(names[r["category_id"]], r["words"]) for r in coco["annotations"]] == rows
    assert [roi.name for roi in roifile.roiread(files["roi"])] == ["0001-nuclei", "0002-mitosis", "0003-cell"]
    session.rename(2, "nuclei")
    assert Corpus(session.export(tmp_path / "b", ["corpus"])["corpus"]).meta["structure"] == "nuclei"


# ---------------------------------------------------------------- all of them


def test_a_session_exports_what_it_shows(tmp_path, Discs):
    image = np.random.default_rng(0).integers(0, 4000, (3, *SIZE), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "z.tif", image, imagej=True, resolution=(4, 4), metadata={"unit": "um", "axes": "ZYX"})
    session = ClickSession(Discs(), tmp_path / "z.tif")
    for page, x in ((0, 10), (2, 40)):
        session.set_page(page)
        session.click(x, 20)
        session.save_instance()
    session.rename(2, "yeast")
    session.set_channel(None)
    session.click(3, 3)  # not saved, so not exported
    files = session.export(tmp_path / "out", EXPORT_FORMATS)
    assert set(files) == set(EXPORT_FORMATS) and all(path.exists() for path in files.values())
    stack = tifffile.imread(files["tiff"])
    np.testing.assert_array_equal(stack[2], session.labels)
    assert stack.shape == image.shape and read_pixel_size(files["tiff"]) == (0.25, 0.25)
    back = ClickSession(Discs(), tmp_path / "z.tif", project=False)
    assert back.import_labels(files["tiff"]) == 2
    assert [(i.number, i.page, i.area) for i in back.instances] == [(i.number, i.page, i.area) for i in session.instances]
    sample = Corpus(files["corpus"]).read(Corpus(files["corpus"]).records[1])
    np.testing.assert_array_equal(sample.image, to_rgb8(image[2]))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".") or p.suffix == ".part"]


def test_what_cannot_be_exported_is_said(one, stack, labels, tmp_path, Discs):
    empty = Annotations("e", {0: np.zeros(SIZE)}, {0: np.zeros(SIZE, np.int32)}, {})
    (tmp_path / "file").write_text("")
    large = Annotations("l", {0: np.zeros(SIZE)}, {0: labels * 1000}, {})
    uneven = Annotations("u", {}, {0: labels, 1: labels[:20]}, {}, count=2)
    for annotations, folder, formats, words in (
        (one, tmp_path, ["tiff", "svg"], "no export svg; choose of tiff, roi"),
        (one, tmp_path, [], "choose of"),
        (empty, tmp_path, EXPORT_FORMATS, "save one first"),
        (one, tmp_path / "file", ["csv"], "cannot be written"),
        (large, tmp_path, ["tiff"], "300000 is too large for a 16-bit"),
        (uneven, tmp_path, ["tiff"], "different sizes"),
    ):
        with pytest.raises(InputError, match=words):
            export(annotations, folder, formats)
    with pytest.raises(InputError, match="save one first"):
        ClickSession(Discs(), np.zeros(SIZE)).export(tmp_path, ["csv"])
