"""Question sets on disk: what was written is read again, the benchmark's own files are read, and damage is named."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ullsam import InputError
from ullsam.cli import main
from ullsam.data.questions import read_questions, synthetic_questions
from ullsam.lab.microvqa import RandomGuess, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("datasets")
    out = tmp_path_factory.mktemp("questions") / "set"
    assert main(["make-questions", str(out), "--count", "9", "--seed", "1"]) == 0
    return out


def read(source, split=None):
    pytest.importorskip("datasets")
    return read_questions(source, split)


def test_what_was_written_is_read_again(folder):
    made, found = synthetic_questions(9, seed=1), read(folder)
    assert len(found) == 9 and {len(q.images_list) for q in found} == {1, 2}
    for a, b in zip(made, found, strict=True):
        assert replace(b, images_list=[], key_question=a.key_question) == replace(a, images_list=[])
        assert all(np.array_equal(x, y) for x, y in zip(a.images_list, b.images_list, strict=True))


def benchmark(path, rows, **changes):
    """A parquet file with the benchmark's other columns, too, written without anything of ours."""
    datasets = pytest.importorskip("datasets")
    images = datasets.List(datasets.Image())
    text, number = datasets.Value("string"), datasets.Value("int64")
    columns = {
        "key_question": number,
        "key_image": number,
        "question": text,
        "choices": datasets.List(text),
        "correct_index": number,
        "correct_answer": text,
        "images_list": images,
        "task": number,
        "task_str": text,
        "question_1": text,
        "context_image_generation": text,
    }
    features = datasets.Features({k: v for k, v in columns.items() if k not in changes.get("without", ())})
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{k: v for k, v in row.items() if k in features} for row in rows]
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


def row(key, images, **changes):
    return {
        "key_question": key,
        "key_image": 7,
        "question": "What is this?",
        "choices": ["a", "b", "c", "d", "e"],
        "correct_index": 3,
        "correct_answer": "d",
        "images_list": images,
        "task": 2,
        "task_str": "hypothesis_gen",
        "question_1": "Is it?",
        "context_image_generation": "by hand",
    } | changes


def png(array, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_of_the_benchmark_whatever_its_split(tmp_path, split):
    red = np.zeros((5, 4, 3), np.uint8) + np.array([204, 0, 51], np.uint8)  # a colour of the palette, too
    deep = np.array([[0, 40000], [20000, 65535]], np.uint16)
    images = [png(red), png(red, "P"), png(red, "RGBA"), png(deep), png(red[..., 0])]
    benchmark(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [row(11, images), row(12, images[:1])])
    first, second = read(tmp_path)
    assert (first.key_question, first.correct_answer, first.task, len(first.images_list)) == (11, "d", 2, 5)
    for shown in list(first.images_list)[:3]:
        assert np.array_equal(shown, red)
    assert np.array_equal(first.images_list[3][..., 0], np.rint(deep / 65535 * 255).astype(np.uint8))  # 16 bits kept
    assert np.array_equal(first.images_list[4], np.full((5, 4, 3), 204, np.uint8))
    assert len(second.images_list) == 1
    assert run(RandomGuess(), [first, second], "official")["n_questions"] == 2


def test_several_splits_must_be_named(tmp_path):
    for split in ("train", "test"):
        benchmark(tmp_path / f"{split}-00000-of-00001.parquet", [row(len(split), [png(np.zeros((3, 3), np.uint8))])])
    with pytest.raises(InputError, match="splits.*name one"):
        read(tmp_path)
    assert read(tmp_path, "test")[0].key_question == 4
    with pytest.raises(InputError, match="splits"):
        read(tmp_path, "validation")


def test_sets_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no .parquet file"):
        read(tmp_path)
    with pytest.raises(InputError, match="no folder .*jmhb/microvqa"):
        read(tmp_path / "nowhere")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="could not be read"):
        read(tmp_path)
    image = png(np.zeros((3, 3), np.uint8))
    benchmark(tmp_path / "a" / "test-0.parquet", [row(1, [image])], without=("task", "choices"))
    with pytest.raises(InputError, match="no column choices, task"):
        read(tmp_path / "a")
    benchmark(tmp_path / "b" / "test-0.parquet", [row(1, [image], correct_index=5)])
    with pytest.raises(InputError, match="Question 1 has 5 choices and correct_index 5"):
        read(tmp_path / "b")
    benchmark(tmp_path / "c" / "test-0.parquet", [row(1, [image | {"bytes": image["bytes"][:30]}])])
    with pytest.raises(InputError, match="Image 1 of question 1 is damaged"):
        read(tmp_path / "c")[0].images_list[0]


def test_no_network(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="jmhb/microvqa could not be read") as error:
        read("jmhb/microvqa")
    assert "\n" not in str(error.value)
