"""Where the images and masks of each dataset lie in its original folders; a function named like a dataset lists its items.

First the sets of single images, then those that come as volumes or in the formats HDF5, N5 and NIfTI, whose libraries are in
the extra `full`; an item of a volume is a slice.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import need, read_image, renumbered
from ullsam.data.sources.convert import Item, one_per_mask, read_pair
from ullsam.errors import InputError
from ullsam.files import whole

Arrays = tuple[np.ndarray, np.ndarray]  # image and labels; of a volume (Z, H, W), or what is sliced like it
EMPTY_VOLUME = "fused_paral_stack0_chan2_tp00073_raw_crop_bg_noise"  # of the mouse embryos
PLANT_COPIES = ("Movie1_t00045_crop_gt", "Movie2_T00010_crop_gt")  # root volumes that are in train and in test
PLANT_BACKGROUND, PLANT_LARGEST = 1, 0.3  # id outside the root; no plant cell covers so much of a slice
# ids that are no single cell, as torch-em found them: neuropil, and background that got an id
PLATYNEREIS_NO_CELL = {3: (253,), 4: (58,), 5: (72,), 6: (73,), 7: (63,), 8: (43, 5), 9: (19, 1084)}


def _pairs(
    masks: Iterable[Path],
    folder: str | None = None,
    ending: tuple[str, str] = ("", ""),
    split: Callable[[Path], str] | None = None,
    source: Callable[[Path], str] = lambda image: image.stem,
) -> list[Item]:
    """Items of mask files, each with the image of the same stem, whatever the image's suffix.

    Args:
        masks: the files; folder: of the images beside the masks' own, None for the same one.
        ending: of a mask's stem, and what an image's stem has in its place.
        split: of a mask's path; source: of an image's path.
    """
    items = []
    for mask in sorted(masks):
        images = mask.parent.with_name(folder) if folder else mask.parent
        found = sorted(images.glob(f"{mask.stem.removesuffix(ending[0])}{ending[1]}.*"))
        image = next((path for path in found if path.suffix.lower() != ".zip"), None)
        if image is not None:
            note, own = "/".join(mask.parts[-3:]), split(mask) if split else None
            items.append(Item(source(image), own, note, partial(read_pair, image, mask)))
    return items


def deepbacs(root: Path) -> list[Item]:
    """training/ and test/ with source/ and target/, tif files of equal names."""
    return _pairs(root.rglob("target/*.tif"), "source", split=lambda mask: "test" if mask.parts[-3] == "test" else "train")


def neurips_cellseg(root: Path) -> list[Item]:
    """Training-labeled/, Tuning/ and Testing/Public/ with images/NAME.* and labels/NAME_label.tiff."""

    def split(mask: Path) -> str:
        parts = mask.relative_to(root).parts
        return "val" if "Tuning" in parts else "test" if "Testing" in parts else "train"

    masks = [m for m in root.rglob("labels/*_label.*") if not {"Hidden", "__MACOSX"} & set(m.parts)]
    return _pairs(masks, "images", ("_label", ""), split)


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
                name, cells = image["file_name"], shapes.get(image["id"], [])
                if name in files and cells:
                    field = "_".join(name.split("_")[:4])  # A172_Phase_C7_1_00d00h00m_1.tif: cell line, well, position
                    items.append(Item(field, split, name, partial(_read_polygons, files[name], cells)))
    return items


def _read_polygons(image: Path, shapes: list) -> Arrays:
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
    opened = lru_cache(maxsize=1)(_open_npz)

    def read(path: Path, index: int) -> Arrays:
        images, labels = opened(path)
        return np.asarray(images[index, ..., ::-1]), np.asarray(labels[index, ..., 0]).astype(np.int32)  # cells first

    return [
        Item(f"{split}/{i}", split, f"{path.name} {i}", partial(read, path, i))
        for split in ("train", "val", "test")
        for path in sorted(root.rglob(f"tissuenet_v1*_{split}.npz"))
        for i in range(len(opened(path)[0]))
    ]


def _open_npz(path: Path) -> Arrays:
    """X and y, mapped from two files beside the archive, which is far larger than memory; `meta` is never read."""
    arrays = []
    for name in ("X", "y"):
        target = path.with_name(f"{path.stem}_{name}.npy")
        if not target.is_file():
            with zipfile.ZipFile(path) as archive, whole(target) as part, archive.open(f"{name}.npy") as array:
                with part.open("wb") as file:
                    shutil.copyfileobj(array, file)
        arrays.append(np.load(target, mmap_mode="r", allow_pickle=False))
    return tuple(arrays)


def mitolab(root: Path) -> list[Item]:
    """cem_mitolab/SOURCE/images/*.tiff and masks/*.tiff; the source is the volume or study."""
    return _pairs(root.rglob("masks/*.tif*"), "images", source=lambda image: image.parent.parent.name)


def cellpose(root: Path) -> list[Item]:
    """test/ (and train/) with NNN_img.png and NNN_masks.png."""
    return _pairs(root.rglob("*_masks.png"), ending=("_masks", "_img"))


def omnipose(root: Path) -> list[Item]:
    """bact_*/SPLIT_sorted/KIND/ and worm*/SPLIT/ with NAME.* and NAME_masks.*; the test parts where there are some."""
    masks = list(root.rglob("*_masks.*"))
    tests = [m for m in masks if {"test", "test_sorted"} & set(m.parts)]
    return _pairs(tests or masks, ending=("_masks", ""))


def orgasegment(root: Path) -> list[Item]:
    """train/, val/ and eval/ with NAME_img.jpg and NAME_masks_organoid.png."""
    return _pairs(root.rglob("*_masks_organoid.png"), ending=("_masks_organoid", "_img"))


def glas(root: Path) -> list[Item]:
    """NAME.bmp and NAME_anno.bmp, or *.h5 with raw (3, H, W) and labels, one image each, as torch-em leaves them."""
    return _pairs(root.rglob("*_anno.bmp"), ending=("_anno", "")) or _h5_images(root, "*.h5", "raw", "labels")


def consep(root: Path) -> list[Item]:
    """The authors' Images/NAME.png and Labels/NAME.mat, or the Kaggle copy's tiles/SPLIT_I_Y0_Y1_X0_X1.png and labels/."""
    own = [(path, path.parent.parent / "Images" / f"{path.stem}.png") for path in sorted(root.rglob("Labels/*.mat"))]
    items = [Item(image.stem, None, image.name, partial(_read_mat, image, mat)) for mat, image in own if image.is_file()]
    tiles: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("tiles/*.png")):
        tiles.setdefault("_".join(path.stem.split("_")[:2]), []).append(path)
    return items or [Item(name, None, name, partial(_read_tiles, paths)) for name, paths in tiles.items()]


def _read_mat(image: Path, mat: Path) -> Arrays:
    from scipy.io import loadmat

    content = loadmat(mat)
    return read_image(image), np.asarray(content.get("inst_map", content.get("instance_map"))).astype(np.int32)


def _read_tiles(paths: list[Path]) -> Arrays:
    """Puts tiles back to the image; an instance keeps the pixels that the first tile gave it."""
    corners = [tuple(int(number) for number in path.stem.split("_")[2:6]) for path in paths]  # y0, y1, x0, x1
    size = max(c[1] for c in corners), max(c[3] for c in corners)
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int32)
    for path, (y0, y1, x0, x1) in zip(paths, corners, strict=True):
        pixels, tile = _read_mat(path, path.parent.parent / "labels" / f"{path.stem}.mat")
        image[y0:y1, x0:x1], here = pixels[..., :3], labels[y0:y1, x0:x1]
        new = (tile > 0) & (here == 0)
        here[new] = tile[new] + labels.max()
    return image, labels


def isic2018(root: Path) -> list[Item]:
    """ISIC2018_Task1-2_Test_Input/NAME.jpg and ISIC2018_Task1_Test_GroundTruth/NAME_segmentation.png."""
    images = {f"{path.stem}_segmentation": path for path in root.rglob("ISIC_*.jpg")}
    pairs = [(images[mask.stem], mask) for mask in sorted(root.rglob("*_segmentation.png")) if mask.stem in images]
    return [Item(image.stem, None, "/".join(mask.parts[-3:]), partial(read_pair, image, mask)) for image, mask in pairs]


def busi(root: Path) -> list[Item]:
    """benign/benign (N).png with benign (N)_mask.png, _mask_1.png ...: one mask per lesion."""

    def read(image: Path, masks: list[Path]) -> Arrays:
        pixels = read_image(image)
        return pixels, one_per_mask(pixels, masks)

    items = []
    for mask in sorted(root.rglob("benign (*)_mask.png")):
        image = mask.with_name(mask.name.replace("_mask", ""))
        masks = [mask, *sorted(mask.parent.glob(f"{mask.stem}_*.png"))]
        items.append(Item(image.stem, None, image.name, partial(read, image, masks)))
    return items


def _slices(
    paths: Iterable[Path], opener: Callable[[Path], Arrays], source: Callable[[Path], str], split=None, clean=None
) -> list[Item]:
    """One item per slice of every volume."""
    opened, items = lru_cache(maxsize=1)(opener), []  # items are read volume by volume, and volumes are large

    def read(path: Path, z: int) -> Arrays:
        raw, labels = opened(path)
        ids = _small_ids(np.asarray(labels[z]))
        return np.asarray(raw[z]), clean(ids, path) if clean else ids

    for path in sorted(paths):
        count, own = len(opened(path)[0]), split(path) if split else None
        items += [Item(source(path), own, f"{source(path)} z{z}", partial(read, path, z)) for z in range(count)]
    return items


def _small_ids(ids: np.ndarray) -> np.ndarray:
    """The same instances as int32; negative ids mark what nobody labelled."""
    if ids.dtype.kind == "f":
        ids = np.rint(ids).astype(np.int64)
    if ids.dtype.kind == "i":
        ids = np.where(ids < 0, 0, ids)
    if ids.max(initial=0) > np.iinfo(np.int32).max:
        ids = renumbered(ids)
    return ids.astype(np.int32)


def _h5(path: Path, raw: str, labels: str, labels_path: Path | None = None, library: str = "h5py") -> Arrays:
    """Two arrays of a file, or of two files."""
    arrays = []
    for source, key in ((path, raw), (labels_path or path, labels)):
        file = need(library, "read this dataset").File(str(source), "r")
        if key not in file:
            raise InputError(f"{source} has no array {key}; it is not the expected file, delete it and download it again.")
        arrays.append(file[key])
    return tuple(arrays)


def _h5_images(root: Path, pattern: str, raw: str, labels: str) -> list[Item]:
    """One item per file, each a single image."""

    def read(path: Path) -> Arrays:
        image, ids = map(np.asarray, _h5(path, raw, labels))
        return np.moveaxis(image, 0, -1) if image.ndim == 3 else image, _small_ids(ids)  # (3, H, W) -> (H, W, 3)

    return [Item(path.stem, None, path.name, partial(read, path)) for path in sorted(root.rglob(pattern))]


def covid_if(root: Path) -> list[Item]:
    """gt_image_NNN.h5 with raw/serum_IgG/s0 and labels/cells/s0, one image each."""
    return _h5_images(root, "gt_image_*.h5", "raw/serum_IgG/s0", "labels/cells/s0")


def mouse_embryo(root: Path) -> list[Item]:
    """Membrane/train/*.h5 and Membrane/val/*.h5 with raw and label."""
    paths = [path for path in root.rglob("Membrane/*/*.h5") if path.stem != EMPTY_VOLUME]
    return _slices(paths, partial(_h5, raw="raw", labels="label"), lambda p: p.stem, lambda p: p.parent.name)


def plantseg(root: Path) -> list[Item]:
    """root_SPLIT/*.h5 and ovules_SPLIT/*.h5 with raw and label, as torch-em leaves them; the movie is the source."""
    volumes = [path for path in root.rglob("*.h5") if path.parent.name.split("_")[0] in ("root", "ovules")]
    paths = [path for path in volumes if not (path.parent.name == "root_train" and path.stem in PLANT_COPIES)]

    def cells(ids: np.ndarray, path: Path) -> np.ndarray:
        """Without what lies outside the tissue: its id in the root volumes, and whatever is too large for a cell."""
        outside = np.bincount(ids.ravel(), minlength=PLANT_BACKGROUND + 1) > PLANT_LARGEST * ids.size
        outside[PLANT_BACKGROUND] |= path.parent.name.startswith("root")
        return np.where(outside[ids], 0, ids)

    opener, movie = partial(_h5, raw="raw", labels="label"), re.compile(r"_[tT]\d+.*")
    return _slices(paths, opener, lambda p: movie.sub("", p.stem), lambda p: p.parent.name.split("_")[1], cells)


def platynereis(root: Path) -> list[Item]:
    """train_data_membrane_NN.n5 (cells), train_data_nuclei_NN.h5 and train_data_cilia_NN.h5."""

    def cells(ids: np.ndarray, path: Path) -> np.ndarray:
        return np.where(np.isin(ids, PLATYNEREIS_NO_CELL.get(int(path.stem[-2:]), ())), 0, ids)

    n5 = partial(_h5, raw="volumes/raw/s1", labels="volumes/labels/segmentation/s1", library="z5py")
    nuclei = partial(_h5, raw="volumes/raw", labels="volumes/labels/nucleus_instance_labels")
    cilia = partial(_h5, raw="volumes/raw", labels="volumes/labels/segmentation")
    parts = (("membrane_*.n5", n5, cells), ("nuclei_*.h5", nuclei, None), ("cilia_*.h5", cilia, None))
    return [
        item
        for pattern, opener, clean in parts
        for item in _slices(root.rglob(f"train_data_{pattern}"), opener, lambda path: path.stem, None, clean)
    ]


def uro_cell(root: Path) -> list[Item]:
    """data/NAME.nii.gz with mito/instance/NAME.nii.gz; volumes without labelled mitochondria are left out."""

    def labels_of(path: Path) -> Path:
        return path.parent.parent / "mito" / "instance" / path.name

    def nifti(path: Path) -> Arrays:
        load = need("nibabel", "read this dataset").load
        return np.asarray(load(path).dataobj), np.asarray(load(labels_of(path)).dataobj)

    paths = [path for path in root.rglob("data/*.nii.gz") if labels_of(path).is_file()]
    return _slices(paths, nifti, lambda path: path.name.removesuffix(".nii.gz"))


def nucmm(root: Path) -> list[Item]:
    """Mouse (NucMM-M)/Image/SPLIT/*.h5 and Label/SPLIT/*.h5 with main; pairs by their order, as their names differ."""
    items = []
    for folder in sorted(root.rglob("Image/*")):
        images = sorted(folder.glob("*.h5"))
        masks = sorted((folder.parent.parent / "Label" / folder.name).glob("*.h5"))
        if len(images) != len(masks):
            counts = f"{len(images)} volumes but {len(masks)} label volumes"
            raise InputError(f"{folder} has {counts}; download the missing ones.")
        for image, mask in zip(images, masks, strict=True):
            items += _slices([image], partial(_h5, raw="main", labels="main", labels_path=mask), lambda path: path.stem)
    return items


def mitonet_benchmark(root: Path) -> list[Item]:
    """VOLUME/VOLUME_em.tif and VOLUME_mito.tif, and tem_benchmark/ with images/ and masks/ of single micrographs."""
    import tifffile

    def labels_of(path: Path) -> Path:
        return path.with_name(path.name.replace("_em.tif", "_mito.tif"))

    def stack(path: Path) -> np.ndarray:
        try:
            return tifffile.memmap(path, mode="r")
        except ValueError:  # compressed: read as a whole
            return tifffile.imread(path)

    volumes = [path for path in root.rglob("*_em.tif") if labels_of(path).is_file()]
    items = _slices(volumes, lambda path: (stack(path), stack(labels_of(path))), lambda path: path.stem.removesuffix("_em"))
    for mask in sorted(root.rglob("tem_benchmark/masks/*.tif*")):
        image = mask.parent.parent / "images" / mask.name
        items.append(Item(f"tem/{mask.stem}", None, f"tem_benchmark {mask.name}", partial(read_pair, image, mask)))
    return items
