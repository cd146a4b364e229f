"""Slices of the three-dimensional datasets; the libraries for HDF5, N5 and NIfTI are in the extra `full`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from ullsam.data.io import renumbered
from ullsam.data.sources.convert import Item, read_pair
from ullsam.errors import InputError

Arrays = tuple[np.ndarray, np.ndarray]  # image and labels; of a volume (Z, H, W), or what is sliced like it
EMPTY_VOLUME = "fused_paral_stack0_chan2_tp00073_raw_crop_bg_noise"  # of the mouse embryos
PLANT_COPIES = ("Movie1_t00045_crop_gt", "Movie2_T00010_crop_gt")  # root volumes that are in train and in test
PLANT_BACKGROUND, PLANT_LARGEST = 1, 0.3  # id outside the root; no plant cell covers so much of a slice
# ids that are no single cell, as torch-em found them: neuropil, and background that got an id
PLATYNEREIS_NO_CELL = {3: (253,), 4: (58,), 5: (72,), 6: (73,), 7: (63,), 8: (43, 5), 9: (19, 1084)}


class Shelf:
    """The volume that was opened last: items are read volume by volume, and volumes are large."""

    def __init__(self) -> None:
        self.key, self.value = None, None

    def get(self, key, opener: Callable):
        """What `opener(key)` returned, opened anew only when the key changes."""
        if key != self.key:
            self.value = None  # the old one leaves memory first
            self.key, self.value = key, opener(key)
        return self.value


def need(module: str):
    """Imports a library of the extra `full`.

    Raises:
        InputError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f'{module} is needed to read this dataset; pip install "ullsam[full]".') from error


def _slices(
    paths: Iterable[Path], opener: Callable[[Path], Arrays], source: Callable[[Path], str], split=None, clean=None
) -> list[Item]:
    """One item per slice of every volume."""
    shelf, items = Shelf(), []
    for path in sorted(paths):
        count, own = len(shelf.get(path, opener)[0]), split(path) if split else None
        load = partial(_read_slice, shelf, path, opener, clean)
        items += [Item(source(path), own, f"{source(path)} z{z}", partial(load, z)) for z in range(count)]
    return items


def _read_slice(shelf: Shelf, path: Path, opener: Callable, clean: Callable | None, z: int) -> Arrays:
    raw, labels = shelf.get(path, opener)
    ids = _small_ids(np.asarray(labels[z]))
    return np.asarray(raw[z]), clean(ids, path) if clean else ids


def _small_ids(ids: np.ndarray) -> np.ndarray:
    """The same instances as int32; negative ids mark what nobody labelled."""
    if ids.dtype.kind == "f":
        ids = np.rint(ids).astype(np.int64)
    if ids.dtype.kind == "i":
        ids = np.where(ids < 0, 0, ids)
    if ids.max(initial=0) > np.iinfo(np.int32).max:
        ids = renumbered(ids)
    return ids.astype(np.int32)


def _h5(path: Path, raw: str, labels: str) -> Arrays:
    file = need("h5py").File(path, "r")
    return _key(file, raw, path), _key(file, labels, path)


def _key(file, key: str, path: Path):
    if key not in file:
        raise InputError(f"{path} has no array {key}; it is not the expected file, delete it and download it again.")
    return file[key]


def covid_if(root: Path) -> list[Item]:
    """gt_image_NNN.h5 with raw/serum_IgG/s0 and labels/cells/s0, one image each."""
    items = []
    for path in sorted(root.rglob("gt_image_*.h5")):
        items.append(Item(path.stem, None, path.name, partial(_read_h5_image, path, "raw/serum_IgG/s0", "labels/cells/s0")))
    return items


def h5_images(root: Path) -> list[Item]:
    """*.h5 with raw (3, H, W) and labels, one image each, as torch-em leaves GlaS."""
    paths = sorted(root.rglob("*.h5"))
    return [Item(path.stem, None, path.name, partial(_read_h5_image, path, "raw", "labels")) for path in paths]


def _read_h5_image(path: Path, raw: str, labels: str) -> Arrays:
    image, ids = _h5(path, raw, labels)
    image = np.asarray(image)
    return np.moveaxis(image, 0, -1) if image.ndim == 3 else image, _small_ids(np.asarray(ids))  # (3, H, W) -> (H, W, 3)


def mouse_embryo(root: Path) -> list[Item]:
    """Membrane/train/*.h5 and Membrane/val/*.h5 with raw and label."""
    paths = [path for path in root.rglob("Membrane/*/*.h5") if path.stem != EMPTY_VOLUME]
    return _slices(paths, partial(_h5, raw="raw", labels="label"), lambda p: p.stem, lambda p: p.parent.name)


def plantseg(root: Path) -> list[Item]:
    """root_SPLIT/*.h5 and ovules_SPLIT/*.h5 with raw and label, as torch-em leaves them; the movie is the source."""
    volumes = [path for path in root.rglob("*.h5") if path.parent.name.split("_")[0] in ("root", "ovules")]
    paths = [path for path in volumes if not (path.parent.name == "root_train" and path.stem in PLANT_COPIES)]
    opener = partial(_h5, raw="raw", labels="label")
    return _slices(paths, opener, lambda p: re.sub(r"_[tT]\d+.*", "", p.stem), _plant_split, _plant_cells)


def _plant_split(path: Path) -> str:
    return path.parent.name.split("_")[1]


def _plant_cells(ids: np.ndarray, path: Path) -> np.ndarray:
    """Without what lies outside the tissue: its id in the root volumes, and whatever is too large for a cell."""
    outside = np.bincount(ids.ravel(), minlength=PLANT_BACKGROUND + 1) > PLANT_LARGEST * ids.size
    outside[PLANT_BACKGROUND] |= path.parent.name.startswith("root")
    return np.where(outside[ids], 0, ids)


def platynereis(root: Path) -> list[Item]:
    """train_data_membrane_NN.n5 (cells), train_data_nuclei_NN.h5 and train_data_cilia_NN.h5."""
    cells = partial(_n5, raw="volumes/raw/s1", labels="volumes/labels/segmentation/s1")
    nuclei = partial(_h5, raw="volumes/raw", labels="volumes/labels/nucleus_instance_labels")
    cilia = partial(_h5, raw="volumes/raw", labels="volumes/labels/segmentation")
    kinds = (("membrane_*.n5", cells, _platynereis_cells), ("nuclei_*.h5", nuclei, None), ("cilia_*.h5", cilia, None))
    return [
        item
        for pattern, opener, clean in kinds
        for item in _slices(root.rglob(f"train_data_{pattern}"), opener, lambda p: p.stem, None, clean)
    ]


def _n5(path: Path, raw: str, labels: str) -> Arrays:
    file = need("z5py").File(str(path), "r")
    return _key(file, raw, path), _key(file, labels, path)


def _platynereis_cells(ids: np.ndarray, path: Path) -> np.ndarray:
    return np.where(np.isin(ids, PLATYNEREIS_NO_CELL.get(int(path.stem[-2:]), ())), 0, ids)


def uro_cell(root: Path) -> list[Item]:
    """data/NAME.nii.gz with mito/instance/NAME.nii.gz; volumes without labelled mitochondria are left out."""
    paths = [path for path in root.rglob("data/*.nii.gz") if _uro_labels(path).is_file()]
    return _slices(paths, _nifti, lambda path: path.name.removesuffix(".nii.gz"))


def _uro_labels(path: Path) -> Path:
    return path.parent.parent / "mito" / "instance" / path.name


def _nifti(path: Path) -> Arrays:
    load = need("nibabel").load
    return np.asarray(load(path).dataobj), np.asarray(load(_uro_labels(path)).dataobj)


def nucmm(root: Path) -> list[Item]:
    """Mouse (NucMM-M)/Image/SPLIT/*.h5 and Label/SPLIT/*.h5 with main; pairs by their order, as their names differ."""
    items = []
    for folder in sorted(root.rglob("Image/*")):
        images = sorted(folder.glob("*.h5"))
        masks = sorted((folder.parent.parent / "Label" / folder.name).glob("*.h5"))
        if len(images) != len(masks):
            raise InputError(
                f"{folder} has {len(images)} volumes but {len(masks)} label volumes; download the missing ones."
            )
        labels = dict(zip(images, masks, strict=True))
        items += _slices(images, partial(_two_h5, labels), lambda path: path.stem)
    return items


def _two_h5(labels: dict[Path, Path], path: Path) -> Arrays:
    files = [need("h5py").File(part, "r") for part in (path, labels[path])]
    return _key(files[0], "main", path), _key(files[1], "main", labels[path])


def mitonet_benchmark(root: Path) -> list[Item]:
    """VOLUME/VOLUME_em.tif and VOLUME_mito.tif, and tem_benchmark/ with images/ and masks/ of single micrographs."""
    volumes = [
        path for path in root.rglob("*_em.tif") if path.with_name(path.name.replace("_em.tif", "_mito.tif")).is_file()
    ]
    items = _slices(volumes, _tif, lambda path: path.stem.removesuffix("_em"))
    for mask in sorted(root.rglob("tem_benchmark/masks/*.tif*")):
        image = mask.parent.parent / "images" / mask.name
        items.append(Item(f"tem/{mask.stem}", None, f"tem_benchmark {mask.name}", partial(read_pair, image, mask)))
    return items


def _tif(path: Path) -> Arrays:
    import tifffile

    def stack(file: Path) -> np.ndarray:
        try:
            return tifffile.memmap(file, mode="r")
        except ValueError:  # compressed: read as a whole
            return tifffile.imread(file)

    return stack(path), stack(path.with_name(path.name.replace("_em.tif", "_mito.tif")))
