"""Where the images and masks of each two-dimensional dataset lie in its original folders."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import read_image
from ullsam.data.sources.convert import Item, read_pair
from ullsam.data.sources.volumes import Shelf, h5_images


def _pairs(masks: Iterable[Path], image_of, split=None, source_of=lambda image: image.stem) -> Iterator[Item]:
    """Items of mask files; `split` is a name or a function of the mask's path."""
    for mask in sorted(masks):
        image = image_of(mask)
        if image is not None:
            name = split(mask) if callable(split) else split
            yield Item(source_of(image), name, "/".join(mask.parts[-3:]), partial(read_pair, image, mask))


def _with_stem(folder: Path, stem: str) -> Path | None:
    """The image of this stem, whatever its suffix."""
    return next((path for path in sorted(folder.glob(f"{stem}.*")) if path.suffix.lower() != ".zip"), None)


def deepbacs(root: Path) -> list[Item]:
    """training/ and test/ with source/ and target/, tif files of equal names."""

    def own_split(mask: Path) -> str:
        return "test" if mask.parent.parent.name == "test" else "train"

    return list(_pairs(root.rglob("target/*.tif"), lambda m: _with_stem(m.parent.parent / "source", m.stem), own_split))


def neurips_cellseg(root: Path) -> list[Item]:
    """Training-labeled/, Tuning/ and Testing/Public/ with images/NAME.* and labels/NAME_label.tiff."""

    def own_split(mask: Path) -> str:
        parts = mask.relative_to(root).parts
        return "val" if "Tuning" in parts else "test" if "Testing" in parts else "train"

    masks = [m for m in root.rglob("labels/*_label.*") if "Hidden" not in m.parts and "__MACOSX" not in m.parts]
    return list(_pairs(masks, lambda m: _with_stem(m.parent.parent / "images", m.stem.removesuffix("_label")), own_split))


def livecell(root: Path) -> list[Item]:
    """images/livecell_{train_val,test}_images/ and COCO tables livecell_coco_SPLIT.json; a field of view is a source."""
    files = {path.name: path for path in root.rglob("*.tif")}
    items = []
    for split in ("train", "val", "test"):
        for table in root.rglob(f"livecell_coco_{split}.json"):
            coco = json.loads(table.read_text(encoding="utf-8"))
            shapes: dict[int, list] = {}
            for note in coco["annotations"]:
                shapes.setdefault(note["image_id"], []).append((note["area"], note["segmentation"]))
            for image in coco["images"]:
                name, here = image["file_name"], shapes.get(image["id"], [])
                if name in files and here:
                    field = "_".join(name.split("_")[:4])  # A172_Phase_C7_1_00d00h00m_1.tif: cell line, well, position
                    items.append(Item(field, split, name, partial(_read_polygons, files[name], here)))
    return items


def _read_polygons(image: Path, shapes: list) -> tuple[np.ndarray, np.ndarray]:
    """An image and its cells drawn from the smallest to the largest; a small cell under a larger one is lost."""
    pixels = read_image(image)
    labels = np.zeros(pixels.shape[:2], np.int32)
    for index, (_, polygons) in enumerate(sorted(shapes, key=lambda shape: shape[0]), 1):
        for polygon in polygons:
            points = np.rint(np.asarray(polygon, float).reshape(-1, 2)).astype(np.int32)  # (2k,) -> (k, 2) x, y
            cv2.fillPoly(labels, [points], index)
    return pixels, labels


def tissuenet(root: Path) -> list[Item]:
    """tissuenet_v1.1_SPLIT.npz: X (n, H, W, 2) nuclei and cells, y (n, H, W, 2) whole cells and nuclei."""
    return [
        Item(f"{split}/{i}", split, f"{path.name} {i}", partial(_read_tissue, shelf, path, i))
        for split in ("train", "val", "test")
        for path in sorted(root.rglob(f"tissuenet_v1*_{split}.npz"))
        for shelf in [Shelf()]
        for i in range(len(shelf.get(path, _open_npz)[0]))
    ]


def _open_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """X and y, mapped from two files beside the archive, which is far larger than memory; `meta` is never read."""
    arrays = []
    for name in ("X", "y"):
        target = path.with_name(f"{path.stem}_{name}.npy")
        if not target.is_file():
            with zipfile.ZipFile(path) as archive:
                archive.extract(f"{name}.npy", path.parent / f".{path.stem}")
            (path.parent / f".{path.stem}" / f"{name}.npy").replace(target)
        arrays.append(np.load(target, mmap_mode="r", allow_pickle=False))
    return tuple(arrays)


def _read_tissue(shelf: Shelf, path: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = shelf.get(path, _open_npz)
    nuclei, cells = np.moveaxis(np.asarray(images[index]), -1, 0)
    return np.stack([cells, nuclei], axis=-1), np.asarray(labels[index, ..., 0]).astype(np.int32)


def mitolab(root: Path) -> list[Item]:
    """cem_mitolab/SOURCE/images/*.tiff and masks/*.tiff; the source is the volume or study."""
    masks = root.rglob("masks/*.tif*")
    return list(
        _pairs(masks, lambda m: _with_stem(m.parent.parent / "images", m.stem), None, lambda i: i.parent.parent.name)
    )


def cellpose(root: Path) -> list[Item]:
    """test/ (and train/) with NNN_img.png and NNN_masks.png."""
    return list(_pairs(root.rglob("*_masks.png"), lambda m: _with_stem(m.parent, m.stem.replace("_masks", "_img"))))


def omnipose(root: Path) -> list[Item]:
    """bact_*/SPLIT_sorted/KIND/ and worm*/SPLIT/ with NAME.* and NAME_masks.*; the test parts where there are some."""
    masks = list(root.rglob("*_masks.*"))
    tests = [m for m in masks if {"test", "test_sorted"} & set(m.parts)]
    return list(_pairs(tests or masks, lambda m: _with_stem(m.parent, m.stem.removesuffix("_masks"))))


def orgasegment(root: Path) -> list[Item]:
    """train/, val/ and eval/ with NAME_img.jpg and NAME_masks_organoid.png."""
    masks = root.rglob("*_masks_organoid.png")
    return list(_pairs(masks, lambda m: _with_stem(m.parent, m.stem.replace("_masks_organoid", "_img"))))


def glas(root: Path) -> list[Item]:
    """NAME.bmp and NAME_anno.bmp, or what torch-em made of them."""
    pairs = _pairs(root.rglob("*_anno.bmp"), lambda m: _with_stem(m.parent, m.stem.removesuffix("_anno")))
    return list(pairs) or h5_images(root)


def consep(root: Path) -> list[Item]:
    """The authors' Images/NAME.png and Labels/NAME.mat, or the Kaggle copy's tiles/SPLIT_I_Y0_Y1_X0_X1.png and labels/."""
    own = [(path, path.parent.parent / "Images" / f"{path.stem}.png") for path in sorted(root.rglob("Labels/*.mat"))]
    items = [Item(image.stem, None, image.name, partial(_read_mat, image, mat)) for mat, image in own if image.is_file()]
    tiles: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("tiles/*.png")):
        tiles.setdefault("_".join(path.stem.split("_")[:2]), []).append(path)
    return items or [Item(name, None, name, partial(_read_tiles, paths)) for name, paths in tiles.items()]


def _mat_labels(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    content = loadmat(path)
    return np.asarray(content.get("inst_map", content.get("instance_map"))).astype(np.int32)


def _read_mat(image: Path, mat: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_image(image), _mat_labels(mat)


def _read_tiles(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Puts tiles back to the image; an instance keeps the pixels that the first tile gave it."""
    places = [tuple(int(word) for word in path.stem.split("_")[2:6]) for path in paths]  # y0, y1, x0, x1
    size = max(p[1] for p in places), max(p[3] for p in places)
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int32)
    for path, (y0, y1, x0, x1) in zip(paths, places, strict=True):
        image[y0:y1, x0:x1] = read_image(path)[..., :3]
        tile, here = _mat_labels(path.parent.parent / "labels" / f"{path.stem}.mat"), labels[y0:y1, x0:x1]
        new = (tile > 0) & (here == 0)
        here[new] = tile[new] + labels.max()
    return image, labels


def isic2018(root: Path) -> list[Item]:
    """ISIC2018_Task1-2_Test_Input/NAME.jpg and ISIC2018_Task1_Test_GroundTruth/NAME_segmentation.png."""
    images = {path.stem: path for path in root.rglob("ISIC_*.jpg")}
    return list(_pairs(root.rglob("*_segmentation.png"), lambda m: images.get(m.stem.removesuffix("_segmentation"))))


def busi(root: Path) -> list[Item]:
    """benign/benign (N).png with benign (N)_mask.png, _mask_1.png ...: one mask per lesion."""
    items = []
    for mask in sorted(root.rglob("benign (*)_mask.png")):
        image = mask.with_name(mask.name.replace("_mask", ""))
        masks = [mask, *sorted(mask.parent.glob(f"{mask.stem}_*.png"))]
        items.append(Item(image.stem, None, image.name, partial(_read_masks, image, masks)))
    return items


def _read_masks(image: Path, masks: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """One instance per mask file, which may be saved in colour."""
    pixels = read_image(image)
    labels = np.zeros(pixels.shape[:2], np.int32)
    for index, path in enumerate(masks, 1):
        mask = read_image(path)
        labels[(mask if mask.ndim == 2 else mask[..., :3].max(-1)) > 0] = index
    return pixels, labels
