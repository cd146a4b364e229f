"""The open sets behind the shipped weights: repositories in their real layout become the listed crops and masks."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from ullsam import Corpus
from ullsam.data.sources import open_sets
from ullsam.data.sources.open_sets import open_dataset, open_names
from ullsam.data.sources.prepare import prepare_dataset

TABLE = Path(open_sets.__file__).with_name("open_images.csv")
ROWS = {}
for line in csv.DictReader(TABLE.open(encoding="utf-8", newline="")):
    ROWS.setdefault(line["dataset"], []).append(line)
HASH = "0123456789abcdef" * 4


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack")
    else:
        assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def two_squares(shape, y, x, values=(1, 2)):
    """Two squares of 20 pixels, 30 below and right of a crop's corner, and a piece that is too small everywhere."""
    labels = np.zeros(shape, np.uint16)
    labels[y + 30 : y + 50, x + 30 : x + 50], labels[y + 30 : y + 50, x + 60 : x + 80] = values
    labels[y + 5, x + 5] = values[0]
    return labels


def ramp(shape, kind=np.uint8):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((x + 3 * y) % 251).astype(kind)


def dsb(root, start, shape, y, x, colour=False):
    folder = root / "stage1_train" / (start + HASH)[:64]
    image = np.dstack([ramp(shape), ramp(shape) // 2 if colour else ramp(shape), ramp(shape)])
    save(folder / "images" / f"{folder.name}.png", image)
    for value in (1, 2):
        save(folder / "masks" / f"{value}.png", (two_squares(shape, y, x) == value).astype(np.uint8) * 255)


def write(name, root):
    """The original of the set's first row; returns its crop of the image where no grey level is changed."""
    row = ROWS[name][0]
    height, width, note = int(row["height"]), int(row["width"]), row["note"]
    y, x = (int(n) for n in note.split(" ")[-1][1:].split("x")) if " y" in f" {note}" else (0, 0)
    shape, source = (y + height + 3, x + width + 5), row["source_id"].split("/")[1]
    labels, image = two_squares(shape, y, x), ramp(shape)
    if name == "axondeepseg_sem":
        save(root / source.split("_")[0] / "micr" / f"{source}.png", image)
        folder = root / "derivatives" / "labels" / source.split("_")[0] / "micr"
        save(folder / f"{source}_seg-axon-manual.png", (labels > 0).astype(np.uint8) * 255)
        save(folder / f"{source}_seg-myelin-manual.png", np.full(shape, 255, np.uint8))
    elif name == "bbbc039_u2os_nuclei":
        save(root / "cell nuclei" / "images" / f"{source}_w1ABC.tif", image.astype(np.uint16) * 8)
        zeros = np.zeros(shape, np.uint8)
        save(root / "cell nuclei" / "masks" / f"{source}_w1ABC.png", np.dstack([labels.astype(np.uint8), zeros, zeros]))
    elif name.startswith("dsb2018"):
        start = source if note.startswith("y") else note
        shape = shape if note.startswith("y") else (height, width)
        dsb(root, start, shape, y, x, "stained" in name)
        image = ramp(shape)
    elif name == "emps_particles_em":
        image = ramp((2 * height, 2 * width))
        save(root / "images" / f"{source}.png", image)
        doubled = np.kron(two_squares((height, width), 0, 0), np.ones((2, 2), np.uint16))
        save(root / "segmaps" / f"{source}.png", doubled)
    elif name == "usiigaci_phase_contrast":
        part, number = source.split("_")
        save(root / "Mask R-CNN" / part / number / "raw.tif", image.astype(np.uint16) * 5)
        save(root / "Mask R-CNN" / part / number / "instances_ids.png", labels)
    elif name.startswith("vnc"):
        save(root / "stack1" / "raw" / f"{source[1:]}.tif", image)
        save(root / "stack1" / "mitochondria" / f"{source[1:]}.png", (labels > 0).astype(np.uint8) * 255)
        classes = np.where(labels == 1, 255, np.where(labels == 2, 191, 128)).astype(np.uint8)
        save(root / "stack1" / "labels" / f"labels000000{source[1:]}.png", classes)
    elif name == "busi_ultrasound":
        folder, shape = root / "data" / source.split(" ")[0], (height, width)
        save(folder / "images" / f"{source}.png", np.dstack([ramp(shape)] * 3))
        for value, end in ((1, ""), (2, "_1")):
            mask = (two_squares(shape, 0, 0) == value).astype(np.uint8) * 255
            save(folder / "mask" / f"{source}_mask{end}.png", mask)
    elif name == "glas_glands":
        save(root / "GlaS" / f"{note.split(' ')[0]}.bmp", np.dstack([image] * 3))
        save(root / "GlaS" / f"{note.split(' ')[0]}_anno.bmp", labels.astype(np.uint8))
    else:
        save(root / "benchmark_segmentation_data" / "Super1" / "train" / f"{note}.tif", ramp((height, width)))
        flat = two_squares((height, width), 0, 0)
        colours = np.dstack([(flat == 1) * 255, flat * 0, (flat == 2) * 255]).astype(np.uint8)
        save(root / "benchmark_segmentation_data" / "Super1" / "train_annot" / f"{note}_mask.tif", colours)
    return image[y : y + height, x : x + width]


SMALL_STAYS = {"busi_ultrasound": 3, "glas_glands": 3}  # no least area is known for these


@pytest.mark.parametrize("name", open_names())
def test_a_repository_becomes_the_listed_crops(name, tmp_path):
    source = json.loads(Path(open_sets.__file__).with_name("open.json").read_text())
    facts = next(row for row in source if row["name"] == name)
    repository = facts["source"]["repo"].split("/")[1]
    root = tmp_path / "downloads" / name / repository
    crop = write(name, root / f"{repository}-{facts['source']['commit']}")
    said = []
    folder = prepare_dataset(name, tmp_path, say=said.append)
    assert folder == tmp_path / facts["role"] / name
    assert facts["licence"] in said[0] and facts["source"]["paper"] in said[0]
    corpus, row = Corpus(folder), ROWS[name][0]
    record = corpus.records[0]
    assert (record.file, record.split, record.source_id) == (row["file"], row["split"], row["source_id"])
    sample = corpus.read(record)
    assert sample.labels.shape == (int(row["height"]), int(row["width"]))
    assert sample.labels.max() == SMALL_STAYS.get(name, 2)
    places = [sample.labels[y, x] for y, x in ((40, 40), (40, 70), (40, 55))]
    assert places[0] != places[1] and min(places[:2]) > 0 and places[2] == 0
    assert (sample.labels == places[0]).sum() == 400
    if name in ("axondeepseg_sem", "vnc_neurites", "vnc_mitochondria", "dsb2018_brightfield_smear", "glas_glands"):
        np.testing.assert_array_equal(sample.image[..., 0], crop)  # the very pixels
    assert corpus.meta["licence"] == facts["licence"]
    missing = len(ROWS[name]) - len(corpus)
    assert len(corpus.meta["skipped"]) == missing  # every row is there or named as missing


def test_the_table_is_whole():
    assert len(open_names("in_domain")) == 8 and len(open_names("out_of_domain")) == 4
    for name in open_names():
        dataset, facts = open_dataset(name)
        assert dataset.files[0].url.startswith("https://github.com/") and len(facts["source"]["commit"]) == 40
        assert dataset.files[0].url.endswith(f"{facts['source']['commit']}.zip")
        assert len({row["file"] for row in ROWS[name]}) == len(ROWS[name])
        splits = {row["source_id"]: row["split"] for row in ROWS[name]}
        assert all(splits[row["source_id"]] == row["split"] for row in ROWS[name])  # no source on both sides
    assert set(ROWS) == set(open_names())
