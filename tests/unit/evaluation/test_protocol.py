"""The evaluation protocol: exact scores of known masks, prompts that depend on seed and image alone, strict files."""

import csv
import json
import logging
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ullsam import ULLSAM, Corpus, InputError, Predictor, Sample, write_labels
from ullsam.evaluation.protocol import SCORES, evaluate, make_prompts, mean_scores, score_image, score_masks, summarise
from ullsam.evaluation.statistics import format_table, report
from ullsam.files import write_json

KEYS = ["model", "data", "split", "points", "vlk", "seed", "n_images", "n_instances", *SCORES, "seconds", "per_image"]


def squares(count: int, side: int = 96) -> np.ndarray:
    """A label map with `count` squares of 12 x 12 pixels in rows, ids 5, 10, .."""
    labels = np.zeros((side, side + 16), np.int32)
    for i in range(count):
        y, x = 4 + 20 * (i // 4), 4 + 24 * (i % 4)
        labels[y : y + 12, x : x + 12] = 5 * (i + 1)
    return labels


def write_corpus(folder, label_maps, meta=None, splits=None):
    """Image k is filled with the grey value k + 1, so that a fake model can tell which one it sees."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    files = [f"{k:02}.png" for k in range(len(label_maps))]
    for k, (file, labels) in enumerate(zip(files, label_maps, strict=True)):
        cv2.imwrite(str(folder / "images" / file), np.full(labels.shape, k + 1, np.uint8))
        write_labels(folder / "masks" / file, labels)
    if meta:
        (folder / "meta.json").write_text(json.dumps(meta))
    if splits:
        with (folder / "images.csv").open("w", newline="") as table:
            csv.writer(table).writerows([("file", "split"), *zip(files, splits, strict=True)])
    return Corpus(folder)


class Fake:
    """A predictor that answers from the truth: `answer(labels, ids) -> masks`."""

    def __init__(self, label_maps, answer):
        self.label_maps, self.answer, self.calls = label_maps, answer, []
        self.model = SimpleNamespace(config=SimpleNamespace(name="fake"), vlsa=None)

    def set_image(self, image):
        self.number = int(image[0, 0, 0]) - 1

    def predict(self, points=None, labels=None, box=None, use_vlk=True):
        truth = self.label_maps[self.number]
        self.calls.append((self.number, points, labels, box, use_vlk))
        return SimpleNamespace(masks=self.answer(truth, np.unique(truth[truth != 0])))


def right(labels, ids):
    return np.stack([labels == i for i in ids])


def nothing(labels, ids):
    return np.zeros((len(ids), *labels.shape), bool)


def half(labels, ids):
    """The first half of the instances is right, of the others nothing is found."""
    return right(labels, ids) & (np.arange(len(ids)) < len(ids) / 2)[:, None, None]


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "blobs", [squares(3), squares(1), squares(8)], splits=["train", "test", "test"])


# ---------------------------------------------------------------- scores


def test_the_truth_scores_one_everywhere(corpus):
    result = evaluate(Fake([squares(3), squares(1), squares(8)], right), corpus)
    assert list(result) == KEYS
    assert [result[name] for name in SCORES] == [1.0] * 5
    assert (result["n_images"], result["n_instances"], result["data"]) == (3, 12, "blobs")
    assert (result["model"], result["split"], result["points"], result["vlk"]) == ("fake", None, [1, 3], False)


def test_nothing_scores_zero_everywhere(corpus):
    result = evaluate(Fake([squares(3), squares(1), squares(8)], nothing), corpus)
    assert [result[name] for name in SCORES] == [0.0] * 5


def test_half_of_the_instances_by_hand():
    labels = squares(8)
    ids = np.unique(labels)[1:]
    scores = score_masks(half(labels, ids), labels, ids)
    assert scores == {
        "dice_instance": 0.5,
        "sa50_instance": 0.5,
        "dice_image": pytest.approx(2 / 3),
        "sa50_labelmap": 0.5,
        "msa": 0.5,
    }  # 4 found, 4 missed, nothing wrong: TP 4, FN 4


def test_wrong_masks_of_half_relate_as_stated():
    labels = squares(8)
    ids = np.unique(labels)[1:]
    masks = right(labels, ids)
    masks[4:] = np.roll(masks[4:], 12, axis=2)  # beside the instance: 4 misses that are also false positives
    scores = score_masks(masks, labels, ids)
    r = scores["sa50_instance"]
    assert r == 0.5
    assert scores["sa50_labelmap"] == pytest.approx(r / (2 - r))


def test_dataset_score_is_the_mean_over_images_not_instances(tmp_path):
    maps = [squares(1), squares(8)]
    fake = Fake(maps, lambda labels, ids: (right if len(ids) == 1 else nothing)(labels, ids))
    result = evaluate(fake, write_corpus(tmp_path / "c", maps))
    assert [result[name] for name in SCORES] == [0.5] * 5
    assert [row["dice_instance"] for row in result["per_image"]] == [1.0, 0.0]


def test_pieces_of_an_instance_count_as_in_micro_sam():
    labels = squares(2)
    labels[labels == 10] = 5  # one instance in two pieces
    scores = score_masks(right(labels, np.array([5])), labels, np.array([5]))
    assert [scores[name] for name in SCORES] == [1.0] * 5


def test_many_instances_are_scored_in_parts():
    labels = np.arange(1, 101, dtype=np.int32).reshape(10, 10).repeat(4, 0).repeat(4, 1)
    ids = np.arange(1, 101)
    masks = right(labels, ids)
    masks[40:50] = False
    scores = score_masks(masks, labels, ids)
    assert scores["dice_instance"] == pytest.approx(0.9)
    assert scores["sa50_labelmap"] == pytest.approx(0.9)


# ---------------------------------------------------------------- prompts


def test_points_lie_in_and_around_their_instances(corpus):
    fake = Fake([squares(3), squares(1), squares(8)], right)
    evaluate(fake, corpus, points=(2, 1))
    for number, points, kinds, box, _ in fake.calls:
        truth = fake.label_maps[number]
        ids = np.unique(truth)[1:]
        found = truth[points[..., 1].astype(int), points[..., 0].astype(int)]  # (I, 3)
        assert box is None
        assert ((found == ids[:, None]) == (kinds == 1)).all()
        assert kinds.tolist() == [[1, 1, 0]] * len(ids)


def test_prompts_depend_on_seed_and_image_alone(corpus):
    maps = [squares(3), squares(1), squares(8)]

    def points(**options):
        fake = Fake(maps, right)
        evaluate(fake, corpus, **options)
        return {number: points for number, points, *_ in fake.calls}

    every, tests, one = points(), points(split="test"), points(split="test", limit=1)
    assert sorted(every) == [0, 1, 2] and sorted(tests) == [1, 2] and len(one) == 1
    for other in (tests, one):
        for number, xy in other.items():
            np.testing.assert_array_equal(xy, every[number])
    assert not np.array_equal(points(seed=1)[2], every[2])


def test_boxes_are_the_edges_of_the_instance():
    labels = squares(2)
    prompts = make_prompts(labels, np.array([5, 10]), "box", np.random.default_rng(0))
    assert prompts["box"].tolist() == [[3.5, 3.5, 15.5, 15.5], [27.5, 3.5, 39.5, 15.5]]


def test_instance_that_fills_the_image_has_no_negative_points(tmp_path):
    maps = [np.full((40, 40), 7, np.int32)]
    fake = Fake(maps, right)
    result = evaluate(fake, write_corpus(tmp_path / "c", maps))
    assert fake.calls[0][1].shape == (1, 1, 2)
    assert [result[name] for name in SCORES] == [1.0] * 5


def test_one_call_per_image_without_knowledge_when_asked(corpus):
    fake = Fake([squares(3), squares(1), squares(8)], right)
    evaluate(fake, corpus, use_vlk=False)
    assert [(call[0], call[4]) for call in fake.calls] == [(0, False), (1, False), (2, False)]


# ---------------------------------------------------------------- which images


def test_limit_takes_evenly_spaced_images(tmp_path):
    maps = [squares(1)] * 10
    corpus = write_corpus(tmp_path / "c", maps)
    files = [[row["file"] for row in evaluate(Fake(maps, right), corpus, limit=n)["per_image"]] for n in (1, 3, 99)]
    assert files[:2] == [["05.png"], ["01.png", "05.png", "08.png"]]
    assert len(files[2]) == 10


def test_images_without_instances_are_not_scored_but_counted_in_a_warning(tmp_path, caplog):
    maps = [squares(0), squares(2), squares(0)]
    with caplog.at_level(logging.WARNING):
        result = evaluate(Fake(maps, right), write_corpus(tmp_path / "c", maps))
    assert result["n_images"] == 1 and result["dice_instance"] == 1.0
    assert "c: 2 images without an instance" in caplog.text


def test_no_instance_at_all_is_an_error(tmp_path):
    with pytest.raises(InputError, match="has an instance"):
        evaluate(Fake([squares(0)], right), write_corpus(tmp_path / "c", [squares(0)]))


def test_split_needs_a_table(tmp_path):
    corpus = write_corpus(tmp_path / "c", [squares(1)])
    assert evaluate(Fake([squares(1)], right), corpus)["split"] is None
    with pytest.raises(InputError, match="has no split 'test'"):
        evaluate(Fake([squares(1)], right), corpus, split="test")


@pytest.mark.parametrize("points", [(0, 3), (1, -1), (1,), "boxes", 3])
def test_unusable_points(corpus, points):
    with pytest.raises(InputError, match="points is"):
        evaluate(Fake([], right), corpus, points=points)


@pytest.mark.parametrize("options", [{"seed": -1}, {"limit": 0}])
def test_unusable_seed_or_limit(corpus, options):
    with pytest.raises(InputError, match="seed of 0 or more and a limit"):
        evaluate(Fake([], right), corpus, **options)


def test_missing_mask_is_named(corpus):
    (corpus.folder / "masks" / "01.png").unlink()
    with pytest.raises(InputError, match="01.png is missing"):
        evaluate(Fake([squares(3), squares(1), squares(8)], right), Corpus(corpus.folder))


# ---------------------------------------------------------------- a real model


@pytest.fixture(scope="module")
def model():
    return ULLSAM.from_preset("debug")


def test_real_model_gives_finite_scores_and_says_whether_it_used_knowledge(model, corpus):
    options = [{"points": (1, 3), "use_vlk": True}, {"points": "box", "use_vlk": False}]
    results = [evaluate(Predictor(model), corpus, limit=2, **chosen) for chosen in options]
    assert [(r["vlk"], r["points"]) for r in results] == [(True, [1, 3]), (False, "box")]
    for result in results:
        assert list(result) == KEYS
        assert all(0 <= result[name] <= 1 for name in SCORES)
        assert all(row["ms_image"] > 0 and row["ms_per_object"] > 0 for row in result["per_image"])
        json.dumps(result, allow_nan=False)


def test_narrow_instance_can_be_prompted_with_its_box(model):
    labels = np.zeros((40, 40), np.int32)
    labels[:, 0] = 1
    sample = Sample(np.zeros((40, 40, 3), np.uint8), labels)
    scores = score_image(Predictor(model), sample, np.random.default_rng(0), "box")
    assert scores["n_instances"] == 1


def test_same_result_twice(model, corpus):
    first, second = (evaluate(Predictor(model), corpus, split="test") for _ in range(2))
    assert mean_scores([first]) == mean_scores([second])


def test_many_objects_are_segmented_and_scored_a_few_at_a_time():
    """The scores are those of all masks at once, and never more than 16 of them are in memory."""
    labels = np.kron(np.arange(100).reshape(10, 10), np.ones((8, 8), int)).astype(np.int32)
    sizes, rng = [], np.random.default_rng(3)
    noise = {i: rng.random(labels.shape) < 0.004 for i in range(1, 100)}

    def segmented(ids):
        return np.stack([(labels == i) ^ noise[i] for i in ids])

    class Some:
        model = SimpleNamespace(vlsa=None)

        def set_image(self, image):
            self.ids = np.arange(1, 100)

        def predict(self, points, labels, use_vlk):
            now, self.ids = self.ids[: len(points)], self.ids[len(points) :]
            sizes.append(len(points))
            return SimpleNamespace(masks=segmented(now))

    sample = Sample(np.zeros((80, 80, 3), np.uint8), labels)
    scores = score_image(Some(), sample, np.random.default_rng(0))
    ids = np.arange(1, 100)
    assert max(sizes) <= 16 and sum(sizes) == 99
    assert {k: scores[k] for k in SCORES} == score_masks(segmented(ids), labels, ids)


# ---------------------------------------------------------------- an interrupted run


class Counting(Predictor):
    """Counts the images that it is given, and stops like a killed process at the one that is told."""

    count, stop_at = 0, None

    def set_image(self, image):
        self.count += 1
        if self.count == self.stop_at:
            raise KeyboardInterrupt
        super().set_image(image)


def test_an_interrupted_run_goes_on_where_it_was(model, corpus, tmp_path):
    keep, stopped = tmp_path / "new" / "rows", Counting(model)
    stopped.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, corpus, keep=keep)
    (rows,) = keep.parent.iterdir()
    rows.write_text(rows.read_text() + '{"of": "a line that was being wri')
    second = Counting(model)
    result = evaluate(second, corpus, keep=keep)
    assert second.count == 1 and len(rows.read_text().splitlines()) == 3
    fresh = evaluate(Predictor(model), corpus)
    assert mean_scores([result]) == mean_scores([fresh]) and result["n_images"] == 3


def test_what_was_kept_counts_for_the_same_measurement_only(model, corpus, tmp_path):
    def counted(network=model, **options):
        predictor = Counting(network)
        evaluate(predictor, corpus, keep=tmp_path / "rows", **options)
        return predictor.count

    assert [counted(), counted(), counted(limit=1), counted(split="test")] == [3, 0, 0, 0]
    assert [counted(seed=1), counted(points="box"), counted(use_vlk=False)] == [3, 3, 3]
    assert counted(ULLSAM.from_preset("debug", seed=1)) == 3
    os.utime(corpus.records[1].mask_path, (0, 0))  # another mask
    assert counted() == 1


# ---------------------------------------------------------------- tables and files


def test_table_has_a_mean_row_of_datasets(tmp_path):
    maps = [squares(2)]
    results = [
        evaluate(Fake(maps, answer), write_corpus(tmp_path / name, maps))
        for name, answer in (("good", right), ("bad", nothing))
    ]
    rows = summarise(results)
    assert [row["data"] for row in rows] == ["good", "bad", "mean"]
    assert [rows[2][name] for name in SCORES] == [0.5] * 5
    assert (rows[2]["images"], rows[2]["instances"], rows[2]["model"]) == (2, 4, None)
    assert len(summarise(results[:1])) == 1


def test_table_layout():
    rows = [{"variant": "paper", "dice": 0.5, "n": 3}, {"variant": None, "dice": None, "n": 12}]
    assert format_table(rows) == "variant   dice   n\npaper    0.500   3\n-            -  12"
    assert format_table([]) == ""


def test_report_holds_one_result_itself_and_several_in_a_list():
    result = {name: 0.25 for name in SCORES} | {"data": "a"}
    single, several = report([result], "c"), report([result, {name: 0.75 for name in SCORES}], "c", mean_scores)
    assert single["data"] == "a" and single["command"] == "c" and single["machine"]["threads"] >= 1
    assert several["mean"] == {name: 0.5 for name in SCORES} and len(several["results"]) == 2
    assert "mean" not in report([{"text": "a"}, {"text": "b"}], "c")


def test_file_is_strict_json_and_complete(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_json(path, {"a": [1.5, None]})
    assert json.loads(path.read_text()) == {"a": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1.5, None]}
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        write_json(tmp_path / "file" / "results.json", {})
