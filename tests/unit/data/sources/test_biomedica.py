"""Image-text pairs: the filter, webdataset shards in BIOMEDICA's layout, going on after a stop, and training on them."""

import io
import json
import tarfile

import cv2
import numpy as np
import pytest

from ullsam import InputError
from ullsam.data.augment import TrainViews, ViewConfig
from ullsam.data.io import read_lines
from ullsam.data.mixture import Mixture
from ullsam.data.pairs import Pairs
from ullsam.data.sources.biomedica import ShardStream, is_microscopy, save_pairs

GOOD = {"image_primary_label": ["Microscopy"], "image_secondary_label": ["light microscopy"], "image_panel_type": "single"}


def sample(i, side=40, **changes):
    picture = cv2.imencode(".png", np.full((side, side + 8, 3), i, np.uint8))[1].tobytes()
    facts = GOOD | {"article_accession_id": f"PMC{i}", "article_license": "CC BY"} | changes
    return {"__key__": f"PMC{i}/fig {i}", "jpg": picture, "txt": f"Cells of kind {i}.\u2028 Two lines.", "json": facts}


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for one in samples:
            parts = (("jpg", one["jpg"]), ("txt", one["txt"].encode()), ("json", json.dumps(one["json"]).encode()))
            for ending, content in parts:
                info = tarfile.TarInfo(f"{one['__key__'].replace(' ', '_').replace('/', '_')}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"image_secondary_label": ["electron microscopy", "scanning electron microscopy"]}, True),
        ({"image_primary_label": ["Plots and Charts"]}, False),
        ({"image_primary_label": None}, False),
        ({"image_panel_type": "multiple"}, False),
        ({"image_secondary_label": ["microscopy", "flowcytometry"]}, False),
    ],
)
def test_filter(changes, kept):
    assert is_microscopy(GOOD | changes) is kept


def test_pairs_are_written_and_filled_up(tmp_path):
    stream = [sample(0), sample(1, image_panel_type="multiple"), sample(2, side=20), sample(3) | {"txt": " "}]
    stream += [sample(4), sample(5)]
    assert save_pairs(stream, tmp_path / "p", most=2) == 2
    assert [row["key"] for row in read_lines(tmp_path / "p" / "captions.jsonl")] == ["PMC0/fig 0", "PMC4/fig 4"]
    with (tmp_path / "p" / "captions.jsonl").open("a") as file:
        file.write('{"file": "PMC5')  # stopped within a line
    assert save_pairs(stream, tmp_path / "p", most=10) == 3
    rows = read_lines(tmp_path / "p" / "captions.jsonl")
    assert rows[2]["caption"] == "Cells of kind 5.\u2028 Two lines." and rows[2]["licence"] == "CC BY"
    assert sorted(p.name for p in (tmp_path / "p" / "images").iterdir()) == sorted(row["file"] for row in rows)
    assert save_pairs(iter(()), tmp_path / "p", most=3) == 3  # enough: the stream is not even read


def test_shards_stream_and_resume(tmp_path):
    pytest.importorskip("datasets")
    first = [sample(0, image_secondary_label=[]), sample(1, more={"a": 1}), sample(2, image_primary_label=[])]
    second = [sample(3), sample(4, article_license=None), sample(5)]
    paths = [shard(tmp_path / "0.tar", first), shard(tmp_path / "1.tar", second)]
    assert save_pairs(ShardStream(paths), tmp_path / "p", most=2, every=1) == 2
    position = json.loads((tmp_path / "p" / "position.json").read_text())
    again = ShardStream(paths)
    again.stream.load_state_dict(position)
    assert next(iter(again))["__key__"] == "PMC2_fig_2"  # what was seen is not read again
    assert save_pairs(ShardStream(paths), tmp_path / "p", most=99) == 5
    rows = read_lines(tmp_path / "p" / "captions.jsonl")
    assert [row["source_id"] for row in rows] == ["PMC0", "PMC1", "PMC3", "PMC4", "PMC5"] and rows[3]["licence"] is None


def test_shards_out_of_reach_are_one_sentence(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="none.tar could not be read.*; get them again and run the same command again"):
        list(ShardStream([str(tmp_path / "none.tar")]))
    with pytest.raises(InputError, match="could not be read.*accept the terms .*`hf auth login`, and run"):
        list(ShardStream("http://127.0.0.1:9/none.tar"))


def test_a_stream_without_a_pair_is_no_success(tmp_path):
    with pytest.raises(InputError, match="No microscopy picture with a caption came .*check the names of the shards"):
        save_pairs([sample(1, image_panel_type="multiple")], tmp_path / "p")


def test_a_broken_line_is_named(tmp_path):
    for line in ("not json", "[1]", "null"):
        (tmp_path / "captions.jsonl").write_text(f'{{"file": "a"}}\n{line}\n')
        with pytest.raises(InputError, match="Line 2 of .*captions.jsonl is not valid JSON"):
            read_lines(tmp_path / "captions.jsonl")


def test_a_line_that_was_cut_off_does_not_count_and_is_removed_on_demand(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a"}\n{"file": "\u00e4')
    assert read_lines(path) == [{"file": "a"}] and path.read_text().endswith("\u00e4")
    assert read_lines(path, mend=True) == [{"file": "a"}] and path.read_text() == '{"file": "a"}\n'
    assert read_lines(tmp_path / "none.jsonl", mend=True) == []


def test_training_views_of_pairs_show_the_whole_unchanged_image(tmp_path):
    save_pairs([sample(60), sample(90)], tmp_path / "p")
    pairs = Pairs(tmp_path / "p")
    views = TrainViews(Mixture([(pairs, None)]), 12, view=48, with_captions=True)
    for i in range(len(views)):
        item = views[i]
        grey = int(item["caption"].split("kind ")[1].split(".")[0])
        assert (item["image"][:40] == grey).all() and (item["image"][40:] == 0).all()
    with pytest.raises(InputError, match="has no captions.jsonl"):
        (tmp_path / "q" / "images").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "q" / "images" / "a.png"), np.zeros((9, 9), np.uint8))
        Pairs(tmp_path / "q")


def test_written_captions_of_a_corpus_hold_for_whole_views_only(tmp_path):
    from ullsam.data.io import write_labels

    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    labels = np.zeros((64, 64), np.int32)
    labels[10:20, 40:50] = 1
    picture = np.where(labels > 0, 200, 50).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), picture)
    write_labels(tmp_path / "masks" / "a.png", labels)
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "caption": "A square at the upper right."}\n{"file": "b')
    from ullsam import Corpus

    mixture = Mixture([(Corpus(tmp_path), None)])
    for whole in (1.0, 0.0):
        config = ViewConfig(whole=whole, native=0, object_fraction=(0.6, 0.6), min_crop=8)
        views = TrainViews(mixture, 8, view=64, with_captions=True, config=config)
        for i in range(8):
            item = views[i]
            assert (item["caption"] == "A square at the upper right.") == bool(whole) and item["caption"]
            if whole:
                np.testing.assert_array_equal(item["image"][..., 0], picture)
                np.testing.assert_array_equal(item["labels"], labels)
    assert TrainViews(mixture, 1, view=64, config=ViewConfig(whole=1))[0]["caption"] == ""
