"""The folder format: tables, facts, splits, pairs of files, and what is said when something is missing."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from ullsam.data.corpus import Corpus, data_root, find_corpora
from ullsam.data.io import write_labels
from ullsam.errors import InputError

LABELS = np.array([[0, 1, 1, 0], [0, 0, 2, 2], [0, 0, 2, 2]])


def make(folder, names=("0000", "0001", "0002"), splits=("train", "train", "test"), meta=None):
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    rows = ["file,source_id,split,n_instances,height,width,note"]
    for i, (name, split) in enumerate(zip(names, splits, strict=True)):
        cv2.imwrite(str(folder / "images" / f"{name}.png"), np.full((3, 4), 10 * i, np.uint8))
        write_labels(folder / "masks" / f"{name}.png", LABELS)
        rows.append(f'{name}.png,src/{i},{split},2,3,4,"y0, x0"')
    (folder / "images.csv").write_text("\n".join(rows) + "\n")
    (folder / "meta.json").write_text(json.dumps(meta or {"name": "cells", "modality": "SEM"}))
    return folder


def test_records_and_samples(tmp_path):
    corpus = Corpus(make(tmp_path / "a"))
    assert (corpus.name, len(corpus), corpus.splits) == ("cells", 3, ["test", "train"])
    assert [r.file for r in corpus.select("train")] == ["0000.png", "0001.png"]
    assert len(corpus.select(None)) == 3
    record = corpus.select("test")[0]
    assert record.source_id == "src/2" and record.mask_path == tmp_path / "a" / "masks" / "0002.png"
    sample = corpus.read(record)
    assert sample.image.dtype == np.uint8 and sample.image.shape == (3, 4, 3) and (sample.image == 20).all()
    assert sample.labels.dtype == np.int32 and sample.name == "cells/0002"
    np.testing.assert_array_equal(sample.labels, LABELS)
    facts = {"name": "cells", "modality": "SEM", "file": "0002.png", "source_id": "src/2", "split": "test"}
    assert sample.meta == facts
    assert corpus.meta == {"name": "cells", "modality": "SEM"}  # not touched by reading


def test_unknown_split_lists_those_that_exist(tmp_path):
    with pytest.raises(InputError, match="no split 'val'; the splits that exist: test, train"):
        Corpus(make(tmp_path / "a")).select("val")


def test_without_tables(tmp_path):
    folder = make(tmp_path / "plain")
    (folder / "images.csv").unlink()
    (folder / "meta.json").unlink()
    (folder / "images" / "notes.txt").write_text("x")
    (folder / "images" / ".hidden.png").write_text("x")
    corpus = Corpus(folder)
    assert (corpus.name, corpus.meta, corpus.splits) == ("plain", {}, [])
    assert [(r.file, r.split) for r in corpus.records] == [(f"000{i}.png", None) for i in range(3)]
    with pytest.raises(InputError, match="none, use split None"):
        corpus.select("train")


def test_a_jpg_finds_its_png_mask(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "images.csv").unlink()
    cv2.imwrite(str(folder / "images" / "0000.jpg"), np.zeros((3, 4), np.uint8))
    (folder / "images" / "0000.png").unlink()
    corpus = Corpus(folder)
    assert corpus.records[0].file == "0000.jpg" and corpus.read(corpus.records[0]).labels.max() == 2


def test_missing_and_unequal_masks_name_both_files(tmp_path):
    folder = make(tmp_path / "a")
    corpus = Corpus(folder)
    write_labels(folder / "masks" / "0000.png", LABELS.T)
    (folder / "masks" / "0001.png").unlink()
    with pytest.raises(InputError, match=r"masks/0000.png has 3 x 4 pixels but .*images/0000.png has 4 x 3"):
        corpus.read(corpus.records[0])
    with pytest.raises(InputError, match=r"masks/0001.png is missing, the mask of .*images/0001.png"):
        corpus.read(corpus.records[1])


def test_broken_folders(tmp_path):
    with pytest.raises(InputError, match="has no folder images/"):
        Corpus(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="has no images"):
        Corpus(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("meta.json", "{no", "is not JSON .*; correct or remove it"),
        ("meta.json", "{}".encode("utf-16-le"), "not text in UTF-8"),
        ("meta.json", "[1]", "holds a list"),
        ("images.csv", "image,split\na.png,train\n", "column 'file'"),
        ("images.csv", "file,split\n,train\n", "column 'file'"),
        ("images.csv", "file\n\xff\xfe".encode("latin1"), "not text in UTF-8"),
        ("images.csv", "file\n" + "a" * 200_000, "not a readable csv"),
        ("images.csv", "file;split\na.png;train\n", "column 'file'"),
        ("captions.jsonl", '{"file": "0000.png", "caption": null}\n', "line without 'caption' as a text"),
        ("captions.jsonl", '{"file": "0000.png", "caption": NaN}', "line without 'caption' as a text"),
        ("captions.jsonl", '{"caption": "Cells."}', "line without 'file' as a text"),
        ("captions.jsonl", "null\n", "Line 1 of"),
    ],
)
def test_broken_tables(tmp_path, name, text, words):
    folder = make(tmp_path / "a")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words) as caught:
        Corpus(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("file", ["../../secret.png", "sub/../../secret.png", "{tmp_path}/secret.png"])
def test_a_table_cannot_reach_outside_its_folder(tmp_path, file):
    folder = make(tmp_path / "a")
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((3, 4), np.uint8))
    (folder / "images.csv").write_text(f"file\n{file.format(tmp_path=tmp_path)}\n")
    with pytest.raises(InputError, match="images.csv names .*secret.png, which is outside images/; put the image there"):
        Corpus(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_other_programs(tmp_path, encoding, end):
    folder = make(tmp_path / "a")
    texts = {"images.csv": "file,split\n0001.png,val", "meta.json": '{\n"name": "\u00b5"\n}'}
    texts["captions.jsonl"] = '{"file": "0001.png", "caption": "5 \u00b5m"}\n{"file": "0002.png", "caption": "None."}'
    for name, text in texts.items():
        (folder / name).write_bytes(text.replace("\n", end).encode(encoding))
    corpus = Corpus(folder)
    record = corpus.records[0]
    assert (record.file, record.split, record.source_id, corpus.name) == ("0001.png", "val", None, "\u00b5")
    assert corpus.captions == {"0001.png": "5 \u00b5m", "0002.png": "None."}


def test_masks_lie_as_their_images(tmp_path):
    folder = make(tmp_path / "a")
    for sub, value in (("x", 1), ("y", 2), ("z", 3)):
        for part in ("images", "masks"):
            (folder / part / sub).mkdir()
        cv2.imwrite(str(folder / "images" / sub / "0000.jpg"), np.zeros((3, 4), np.uint8))
        if sub != "z":
            write_labels(folder / "masks" / sub / "0000.tif", np.full((3, 4), value))
    (folder / "images.csv").write_text("file\nx/0000.jpg\ny/0000.jpg\nz/0000.jpg\n")
    corpus = Corpus(folder)
    samples = [corpus.read(record) for record in corpus.records[:2]]
    assert [sample.labels.max() for sample in samples] == [1, 2]
    assert [sample.name for sample in samples] == ["cells/x/0000", "cells/y/0000"]
    with pytest.raises(InputError, match="masks/z/0000.jpg is missing"):  # masks/0000.png is the mask of another image
        corpus.read(corpus.records[2])


def test_a_jpg_among_the_masks_is_passed_over_or_refused(tmp_path):
    folder = make(tmp_path / "a", ["0000"], ["train"])
    for part in ("images", "masks"):
        cv2.imwrite(str(folder / part / "0000.jpg"), np.zeros((3, 4), np.uint8))
    (folder / "images.csv").write_text("file\n0000.jpg\n")
    corpus = Corpus(folder)
    np.testing.assert_array_equal(corpus.read(corpus.records[0]).labels, LABELS)
    (folder / "masks" / "0000.png").unlink()
    with pytest.raises(InputError, match="masks/0000.jpg is compressed with losses"):
        Corpus(folder).read(Corpus(folder).records[0])


def test_stacks_are_not_read_by_their_first_page(tmp_path):
    folder = make(tmp_path / "a", ["0000"], ["train"])
    stack = np.zeros((5, 9, 8), np.uint16)
    tifffile.imwrite(folder / "masks" / "0000.tif", stack, photometric="minisblack")
    (folder / "masks" / "0000.png").unlink()
    cv2.imwrite(str(folder / "images" / "0000.png"), np.zeros((9, 8), np.uint8))
    with pytest.raises(InputError, match="masks/0000.tif has 5 pages where one image is needed; save each page"):
        Corpus(folder).read(Corpus(folder).records[0])
    tifffile.imwrite(folder / "images" / "0000.tif", stack, photometric="minisblack")
    (folder / "images.csv").write_text("file\n0000.tif\n")
    with pytest.raises(InputError, match="images/0000.tif has 5 pages"):
        Corpus(folder).read(Corpus(folder).records[0])


@pytest.mark.parametrize("name", ["images", "images.csv", "masks"])
def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, name):
    folder = make(tmp_path / "a")
    if name == "images":
        (folder / "images.csv").unlink()

    def denied(method):
        real = getattr(Path, method)

        def act(path, *args, **more):
            if folder / name in (path, path.parent) and (path != folder / name or method != "is_dir"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **more)

        monkeypatch.setattr(Path, method, act)

    for method in ("iterdir", "read_bytes") if name != "masks" else ("is_file",):
        denied(method)
    with pytest.raises(InputError, match=f"{name}.* .*Permission denied.*; check"):
        Corpus(folder)


def test_a_name_that_no_disk_takes_is_one_sentence(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "images.csv").write_text(f"file\n{'a' * 300}.png\n")
    with pytest.raises(InputError, match="cannot be read: .*check its names"):
        Corpus(folder)


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.delenv("ULLSAM_DATA", raising=False)
    with pytest.raises(InputError, match="no data folder is named; set ULLSAM_DATA"):
        data_root()
    monkeypatch.setenv("ULLSAM_DATA", str(tmp_path))
    assert data_root() == tmp_path
    (tmp_path / "other").mkdir()
    assert data_root(tmp_path / "other") == tmp_path / "other"
    with pytest.raises(InputError, match="does not exist; set ULLSAM_DATA"):
        data_root(tmp_path / "none")


def test_find_corpora(tmp_path):
    for name in ("b", "a"):
        make(tmp_path / "in_domain" / name, meta={"name": name})
    (tmp_path / "in_domain" / "empty").mkdir()
    assert [c.name for c in find_corpora(tmp_path)] == ["a", "b"]
    with pytest.raises(InputError, match="holds no dataset"):
        find_corpora(tmp_path, "out_of_domain")
