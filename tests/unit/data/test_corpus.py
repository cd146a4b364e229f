"""The folder format: tables, facts, splits, pairs of files, and what is said when something is missing."""

import json

import cv2
import numpy as np
import pytest

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
        ("meta.json", "{no", "not valid JSON"),
        ("meta.json", "[1]", "holds a list"),
        ("images.csv", "image,split\na.png,train\n", "column 'file'"),
        ("images.csv", "file,split\n,train\n", "column 'file'"),
        ("images.csv", "file\n\xff\xfe".encode("latin1"), "not a readable csv"),
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


def test_a_line_of_captions_without_a_caption(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "captions.jsonl").write_text('{"file": "0000.png"}\n')
    with pytest.raises(InputError, match="captions.jsonl has a line without 'caption'"):
        Corpus(folder)


def test_a_table_of_excel_with_byte_order_mark(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "images.csv").write_text("file,split\n0001.png,val\n", encoding="utf-8-sig")
    record = Corpus(folder).records[0]
    assert (record.file, record.split, record.source_id) == ("0001.png", "val", None)


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
