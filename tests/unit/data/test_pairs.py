"""Image-text pairs: which folders count as such, and what a stage of training draws from."""

import json

import cv2
import numpy as np
import pytest

from ullsam.data.corpus import Corpus
from ullsam.data.pairs import Pairs, holds_pairs, training_sources
from ullsam.errors import InputError


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "in_domain" / "pairs"
    (folder / "images").mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), np.full((8, 9), 10 * i, np.uint8))
    rows = [{"file": f"{i}.png", "caption": f"Caption {i}."} for i in (2, 0)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_an_image_with_a_caption_is_one_object_that_fills_it(pairs):
    opened = Pairs(pairs)
    assert [record.file for record in opened.records] == ["0.png", "2.png"]
    sample = opened.read(opened.records[1])
    assert sample.meta["caption"] == "Caption 2." and sample.name == "pairs/2"
    assert sample.image.shape == (8, 9, 3) and (sample.image == 20).all() and (sample.labels == 1).all()


def test_a_folder_with_masks_holds_no_pairs_and_keeps_its_captions(pairs, make_corpus):
    cells = make_corpus(pairs.parent / "cells", 2)
    (cells / "captions.jsonl").write_text('{"file": "0.png", "caption": "Nuclei."}\n')
    assert holds_pairs(pairs) and not holds_pairs(cells) and not holds_pairs(pairs.parent)
    sources = training_sources(pairs.parents[1], pairs=True)
    assert [(type(corpus), corpus.name, split) for corpus, split in sources] == [
        (Corpus, "cells", None),
        (Pairs, "pairs", None),
    ]
    assert sources[0][0].captions == {"0.png": "Nuclei."}


def test_one_folder_may_be_named_by_itself(pairs, make_corpus, tmp_path):
    ((corpus, split),) = training_sources(pairs, pairs=True)
    assert isinstance(corpus, Pairs) and split is None
    cells = make_corpus(tmp_path / "cells", 2)
    (cells / "images.csv").write_text("file,split\n0.png,train\n1.png,test\n")
    ((corpus, split),) = training_sources(cells, pairs=False)
    assert type(corpus) is Corpus and split == "train"
    (cells / "images.csv").write_text("file,split\n0.png,val\n1.png,test\n")
    with pytest.raises(InputError, match="cells has no split 'train'"):
        training_sources(cells, pairs=False)


def test_masks_are_asked_for_where_they_are_needed(pairs):
    for root in (pairs, pairs.parents[1]):
        with pytest.raises(InputError, match="pairs holds image-text pairs without masks, which only stages 1 and 2 can"):
            training_sources(root, pairs=False)


def test_captions_of_other_images_are_one_sentence(pairs):
    (pairs / "captions.jsonl").write_text('{"file": "other.png", "caption": "Lost."}\n')
    with pytest.raises(InputError, match="No line of .*captions.jsonl names a file of images/"):
        Pairs(pairs)
    with pytest.raises(InputError, match="holds no dataset"):
        (pairs.parents[1] / "empty" / "in_domain").mkdir(parents=True)
        training_sources(pairs.parents[1] / "empty", pairs=True)
