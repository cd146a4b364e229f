"""The paper's datasets: small files in each one's real layout, converted."""

import csv
import json
import shutil
import zipfile

import cv2
import numpy as np
import pytest
import tifffile
from scipy.io import savemat

from ullsam import Corpus, InputError
from ullsam.cli import main
from ullsam.data.corpus import find_corpora
from ullsam.data.sources import readers
from ullsam.data.sources.convert import Item, prepare
from ullsam.data.sources.fetch import DATASETS, find, quota
from ullsam.data.sources.prepare import names, prepare_dataset

LABELS = np.zeros((40, 60), np.uint16)
LABELS[2:12, 3:20], LABELS[20:36, 30:50], LABELS[20:36, 2:8] = 7, 300, 9
GREY = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
RGB = np.dstack([GREY % 256, GREY // 16, GREY // 32]).astype(np.uint8)
VOLUME = np.stack([GREY, GREY + 1, GREY + 2])
CELLS = np.stack([LABELS, LABELS, np.zeros_like(LABELS)])  # the last slice is empty


def save(path, array):
    """An array as tif, or as png, jpg or bmp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.startswith(".tif"):
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def save_h5(path, **arrays):
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name.replace("__", "/"), data=array, compression="gzip")


def deepbacs(root):
    for part, name in (("training", "pos1"), ("training", "pos2"), ("test", "JE2_1")):
        save(root / "zip" / part / "source" / f"{name}.tif", GREY)
        save(root / "zip" / part / "target" / f"{name}.tif", LABELS)


def neurips_cellseg(root):
    for part in ("Training-labeled", "Tuning", "Testing/Public"):
        save(root / "zip" / part / "images" / "cell_00001.png", RGB)
        save(root / "zip" / part / "labels" / "cell_00001_label.tiff", LABELS)
    save(root / "zip" / "Testing/Hidden/labels" / "x_label.tiff", LABELS)


def covid_if(root):
    for i in range(3):
        save_h5(root / f"gt_image_{i:03}.h5", raw__serum_IgG__s0=GREY.astype(np.float32), labels__cells__s0=LABELS)


def mouse_embryo(root):
    for part in ("train", "val"):
        save_h5(root / "Membrane" / part / f"{part}_stack.h5", raw=VOLUME, label=CELLS.astype(np.uint64))
    save_h5(root / "Membrane" / "train" / f"{readers.EMPTY_VOLUME}.h5", raw=VOLUME, label=CELLS)
    save_h5(root / "Nuclei" / "train" / "n.h5", raw=VOLUME, label=CELLS)


def plantseg(root):
    cells = np.where(CELLS == 0, 1, CELLS)  # 1 is outside the root
    for split in ("train", "val", "test"):
        save_h5(root / "root" / split / f"root_{split}" / f"Movie2_T0000{len(split)}_crop_gt.h5", raw=VOLUME, label=cells)
        save_h5(root / "ovules" / split / f"ovules_{split}" / f"N_4{len(split)}_ds2x.h5", raw=VOLUME, label=CELLS)
    save_h5(root / "root" / "train" / "root_train" / "Movie1_t00045_crop_gt.h5", raw=VOLUME, label=cells)


def livecell(root):
    for split, folder in (("train", "train_val"), ("val", "train_val"), ("test", "test")):
        name = f"A172_Phase_{split}_1_00d00h00m_1.tif"
        save(root / "images" / "images" / f"livecell_{folder}_images" / name, GREY.astype(np.uint8))
        shapes = [[2, 2, 17, 2, 17, 12, 2, 12], [30, 20, 50, 20, 50, 36, 30, 36]]
        notes = [{"id": i, "image_id": 5, "area": 150 + i, "segmentation": [s], "iscrowd": 0} for i, s in enumerate(shapes)]
        coco = {"images": [{"id": 5, "file_name": name, "height": 40, "width": 60}], "annotations": notes}
        (root / f"livecell_coco_{split}.json").write_text(json.dumps(coco))


def tissuenet(root):
    (root / "tissuenet_v1.1").mkdir(parents=True)
    images = np.stack([RGB[..., :2], RGB[..., :2] // 2]).astype(np.float32)
    labels = np.stack([np.dstack([LABELS, LABELS // 300])] * 2).astype(np.int32)
    for split in ("train", "val", "test"):
        meta = np.array([["filename", {"not": "read"}]], dtype=object)
        np.savez(root / "tissuenet_v1.1" / f"tissuenet_v1.1_{split}.npz", X=images, y=labels, meta=meta)


def platynereis(root):
    import z5py

    for number in (1, 8):
        path = root / "membrane" / "membrane" / f"train_data_membrane_{number:02}.n5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with z5py.File(str(path), "w") as file:
            for key, array in (("volumes/raw/s1", VOLUME.astype(np.uint8)), ("volumes/labels/segmentation/s1", CELLS)):
                data = np.where(array == 9, 5, array) if number == 8 else array  # 5 is background in volume 8
                file.create_dataset(key, data=data.astype(np.uint64), chunks=(2, 32, 32), compression="gzip")
    save_h5(
        root / "nuclei" / "nuclei" / "train_data_nuclei_01.h5",
        volumes__raw=VOLUME,
        volumes__labels__nucleus_instance_labels=CELLS,
    )
    save_h5(root / "cilia" / "cilia" / "train_data_cilia_01.h5", volumes__raw=VOLUME, volumes__labels__segmentation=CELLS)


def mitolab(root):
    for source in ("mouse_liver", "fly"):
        for i, mask in enumerate((LABELS, np.zeros_like(LABELS))):
            save(root / "cem_mitolab" / "cem_mitolab" / source / "images" / f"{source}_{i}.tiff", GREY.astype(np.uint8))
            save(root / "cem_mitolab" / "cem_mitolab" / source / "masks" / f"{source}_{i}.tiff", mask)


def cellpose(root):
    save(root / "test" / "test" / "000_img.png", RGB)
    save(root / "test" / "test" / "000_masks.png", LABELS)


def omnipose(root):
    save(root / "datasets" / "bact_phase" / "test_sorted" / "caulobacter" / "a.tif", GREY)
    save(root / "datasets" / "bact_phase" / "test_sorted" / "caulobacter" / "a_masks.tif", LABELS)
    save(root / "datasets" / "bact_phase" / "test_sorted" / "caulobacter" / "a_flows.tif", VOLUME)
    save(root / "datasets" / "worm" / "test" / "w.png", RGB)
    save(root / "datasets" / "worm" / "test" / "w_masks.png", LABELS)
    save(root / "datasets" / "worm" / "train" / "v.png", RGB)
    save(root / "datasets" / "worm" / "train" / "v_masks.png", LABELS)


def orgasegment(root):
    for split in ("train", "val", "eval"):
        save(root / "zip" / "OrganoidBasic_v20211206" / split / f"{split}1_img.jpg", RGB)
        save(root / "zip" / "OrganoidBasic_v20211206" / split / f"{split}1_masks_organoid.png", LABELS)


def uro_cell(root):
    import nibabel

    folder = root / "UroCell" / "UroCell-master"
    for path in ("data/fib1-0-0-0.nii.gz", "mito/instance/fib1-0-0-0.nii.gz", "data/fib1-1-0-3.nii.gz"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        array = CELLS if "mito" in path else VOLUME
        nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.eye(4)), folder / path)


def nucmm(root):
    for split in ("train", "val"):
        save_h5(root / "Mouse (NucMM-M)" / "Image" / split / f"img_{split}.h5", main=VOLUME.astype(np.float32))
        save_h5(root / "Mouse (NucMM-M)" / "Label" / split / f"seg_{split}.h5", main=CELLS)


def mitonet_benchmark(root):
    save(root / "hela_cell" / "hela_cell_em.tif", VOLUME.astype(np.uint8))
    save(root / "hela_cell" / "hela_cell_mito.tif", CELLS)
    save(root / "tem_benchmark" / "images" / "one.tiff", GREY.astype(np.uint8))
    save(root / "tem_benchmark" / "masks" / "one.tiff", LABELS)


def glas(root):
    save(root / "archive" / "Warwick_QU_Dataset" / "testA_1.bmp", RGB)
    save(root / "archive" / "Warwick_QU_Dataset" / "testA_1_anno.bmp", (LABELS % 256).astype(np.uint8))


def consep(root):
    for y0, y1 in ((0, 20), (20, 40)):
        for x0, x1 in ((0, 30), (30, 60)):
            name = f"train_1_{y0}_{y1}_{x0}_{x1}"
            save(root / "data" / "consep" / "tiles" / f"{name}.png", RGB[y0:y1, x0:x1])
            (root / "data" / "consep" / "labels").mkdir(exist_ok=True)
            savemat(root / "data" / "consep" / "labels" / f"{name}.mat", {"instance_map": LABELS[y0:y1, x0:x1]})


def isic2018(root):
    save(root / "a" / "ISIC2018_Task1-2_Test_Input" / "ISIC_0012169.jpg", RGB)
    mask = (LABELS > 0).astype(np.uint8) * 255
    save(root / "b" / "ISIC2018_Task1_Test_GroundTruth" / "ISIC_0012169_segmentation.png", mask)


def busi(root):
    folder = root / "Dataset_BUSI" / "Dataset_BUSI_with_GT" / "benign"
    save(folder / "benign (1).png", RGB)
    for i, end in ((7, ""), (300, "_1"), (9, "_2")):
        save(folder / f"benign (1)_mask{end}.png", np.dstack([(LABELS == i).astype(np.uint8) * 255] * 3))


# what each writer makes: splits and images of every split after the conversion with one seed
MADE = {
    deepbacs: {"train": 1, "val": 1, "test": 1},
    neurips_cellseg: {"train": 1, "val": 1, "test": 1},
    covid_if: {"train": 1, "val": 1, "test": 1},
    mouse_embryo: {"train": 2, "val": 2},
    plantseg: {"train": 4, "val": 4, "test": 4},
    livecell: {"train": 1, "val": 1, "test": 1},
    tissuenet: {"train": 2, "val": 2, "test": 2},
    platynereis: {"train": 4, "val": 2, "test": 2},
    mitolab: {"train": 1, "val": 1},
    cellpose: {"ood": 1},
    omnipose: {"ood": 2},
    orgasegment: {"ood": 3},
    uro_cell: {"ood": 2},
    nucmm: {"ood": 4},
    mitonet_benchmark: {"ood": 3},
    glas: {"ood": 1},
    consep: {"ood": 1},
    isic2018: {"ood": 1},
    busi: {"ood": 1},
}


def convert(write, out):
    """A dataset's folder in its real layout, converted; its files count as downloaded."""
    name = write.__name__
    root = out / "downloads" / name
    write(root)
    for remote in find(name).files:
        target = root / remote.name
        if not target.exists():
            (target.with_suffix("") if target.suffix == ".zip" else target).mkdir(parents=True, exist_ok=True)
    lines = []
    prepare_dataset(name, out, say=lines.append)
    return Corpus(out / find(name).role / name), "\n".join(lines)


def test_every_dataset_has_a_layout_and_terms():
    assert {write.__name__ for write in MADE} == set(DATASETS) and len(DATASETS) == 19
    assert [row.role for row in DATASETS.values()].count("in_domain") == 9
    for row in DATASETS.values():
        assert row.licence and row.citation and row.address.startswith("https://")
        assert row.files or row.manual, row.name
        assert all(file.verify or file.sha256 for file in row.files)  # without a certificate only with a hash
    assert sum(quota(row)["train"] for row in DATASETS.values() if row.domain == "EM" and row.role == "in_domain") == 20000


@pytest.mark.parametrize("write", MADE, ids=lambda write: write.__name__)
def test_real_layout_becomes_a_corpus(write, tmp_path):
    corpus, said = convert(write, tmp_path)
    row = find(write.__name__)
    counts = {split: len(corpus.select(split)) for split in corpus.splits}
    assert counts == MADE[write]
    assert row.licence in said and row.citation in said
    sources = {}
    for record in corpus.select(None):
        sample = corpus.read(record)
        size = sample.labels.shape
        assert size[0] == size[1] == 60  # 60 x 40 is padded below
        assert (sample.image[40:] == 0).all() and (sample.labels[40:] == 0).all()
        assert np.array_equal(np.unique(sample.labels), np.arange(sample.labels.max() + 1)) and sample.labels.max() in (2, 3)
        assert sample.labels[28, 40] > 0 and sample.labels[15, 15] == 0
        assert len({sample.labels[5, 10], sample.labels[28, 40], sample.labels[0, 0]}) == 3
        sources.setdefault(record.source_id, set()).add(record.split)
    assert corpus.meta["licence"] == row.licence and corpus.meta["n_images"] == len(corpus)
    assert corpus.meta["skipped"] == []
    assert find_corpora(tmp_path, row.role)[0].name == write.__name__
    own = write in (livecell, neurips_cellseg, plantseg, tissuenet)  # a dataset's own split may divide what we call a source
    assert own or all(len(splits) == 1 for splits in sources.values())


def test_channels_and_ids_of_tissuenet(tmp_path):
    corpus, _ = convert(tissuenet, tmp_path)
    sample = corpus.read(corpus.select("test")[0])
    for channel, own in ((0, RGB[..., 1]), (1, RGB[..., 0])):  # cells in red, nuclei in green, each stretched
        stretched = np.rint((own - float(own.min())) / np.ptp(own).astype(float) * 255)
        np.testing.assert_array_equal(sample.image[:40, :, channel], stretched)
    assert (sample.image[..., 2] == 0).all() and sample.labels.max() == 3  # three whole cells, one nucleus


def test_ids_that_are_no_cell_are_dropped(tmp_path):
    platynereis(tmp_path)
    items = [item for item in readers.platynereis(tmp_path) if item.source == "train_data_membrane_08"]
    assert set(np.unique(items[0].load()[1])) == {0, 7, 300}
    plantseg(tmp_path / "p")
    found = readers.plantseg(tmp_path / "p")
    assert not [item for item in found if item.source == "Movie1"]  # a copy of a test volume
    for item in found:
        assert 1 not in item.load()[1]


def test_a_second_run_does_nothing_and_a_seed_gives_the_same_files(tmp_path):
    first, _ = convert(mitolab, tmp_path / "a")
    second, _ = convert(mitolab, tmp_path / "b")
    table = [(c.folder / "images.csv").read_bytes() for c in (first, second)]
    assert table[0] == table[1]
    said = []
    prepare_dataset("mitolab", tmp_path / "a", say=said.append)
    assert len(said) == 1 and "already" in said[0]


def test_unreadable_files_are_named_and_nothing_half_written_stays(tmp_path):
    root = tmp_path / "downloads" / "cellpose"
    cellpose(root)
    (root / "test" / "test" / "001_img.png").write_bytes(b"no picture")
    save(root / "test" / "test" / "001_masks.png", LABELS)
    said = []
    folder = prepare_dataset("cellpose", tmp_path, say=said.append)
    assert "1 images were skipped" in said[-1] and "001_img.png" in said[-1]
    assert "001_img.png" in json.loads((folder / "meta.json").read_text())["skipped"][0]
    (root / "test" / "test" / "000_img.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="No image of again can be used"):
        prepare(readers.cellpose(root), tmp_path / "again", {}, {"ood": 9})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "out_of_domain"]


@pytest.mark.parametrize(
    ("write", "pattern"),
    [(uro_cell, "*.nii.gz"), (platynereis, "attributes.json"), (consep, "*.mat"), (covid_if, "*.h5")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_whatever_a_damaged_file_makes_its_library_say(write, pattern, tmp_path):
    root = tmp_path / "downloads" / write.__name__
    write(root)
    for file in [path for path in root.rglob(pattern) if path.is_file()]:
        file.write_bytes(b"<html>log in first</html>")
    for remote in find(write.__name__).files:
        (root / remote.name).with_suffix("").mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError, match="cannot be read|can be used"):
        prepare_dataset(write.__name__, tmp_path, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"] and not list(root.glob(".*"))


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ullsam.data.sources.convert.write_atomic", full)
    item = Item("s", None, "n", lambda: (GREY, LABELS.astype(np.int32)))
    with pytest.raises(InputError, match="No space left on device.*free some space"):
        prepare([item], tmp_path / "c", {}, {"ood": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tissuenet", "cellpose", "glas", "consep", "nucmm", "plantseg"])
def test_by_hand_is_one_sentence_with_the_folder(name, tmp_path, capsys):
    assert main(["prepare-data", name, "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    line = captured.err.strip()
    assert "\n" not in line and str(tmp_path / "downloads" / name) in line and line.endswith("run the same command again.")
    assert "licence:" in captured.out and "cite:" in captured.out


def test_unknown_name(tmp_path, capsys):
    assert main(["prepare-data", "imagenet", "--out", str(tmp_path)]) == 2
    assert "no dataset 'imagenet'; choose one of deepbacs" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main(["prepare-data", "busi", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be made (Not a directory); name another folder" in capsys.readouterr().err
    assert len(names("all")) == 19 and len(names("in_domain")) == 9 and names("busi") == ["busi"]
    assert len(names("open")) == 12 and not set(names("open")) & set(names("all"))


def test_a_zip_that_a_person_put_there_is_unpacked(tmp_path):
    cellpose(tmp_path / "made")
    root = tmp_path / "downloads" / "cellpose"
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "test.zip", "w") as archive:
        for path in sorted((tmp_path / "made" / "test").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "made" / "test"))
    folder = prepare_dataset("cellpose", tmp_path, say=lambda line: None)
    with (folder / "images.csv").open(newline="") as lines:
        assert [row["source_id"] for row in csv.DictReader(lines)] == ["000_img"]
    (root / "test.zip").write_bytes(b"PK cut off")
    shutil.rmtree(root / "test")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="test.zip is damaged"):
        prepare_dataset("cellpose", tmp_path, say=lambda line: None)
