"""Descriptions against the facts: what is counted as right, as made up and as said anyway, worked out by hand."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ullsam import ULLSAM, Corpus, InputError, Sample, write_labels
from ullsam.cli import main
from ullsam.evaluation.caption_metrics import (
    CAPTION_METRICS,
    describe_nothing,
    evaluate_captions,
    judge_caption,
    mean_captions,
    summarise_captions,
)
from ullsam.evaluation.statistics import format_table, report

META = {"name": "n", "modality": "fluorescence microscopy", "structure": "nucleus", "specimen": "cell culture"}


def squares(count: int) -> np.ndarray:
    """A label map with `count` squares of 12 x 12 pixels, four in a row."""
    labels = np.zeros((96, 112), np.int32)
    for i in range(count):
        y, x = 4 + 20 * (i // 4), 4 + 24 * (i % 4)
        labels[y : y + 12, x : x + 12] = i + 1
    return labels


def write_corpus(folder, counts, meta=None):
    """Image k is filled with the grey value k + 1, so that a speaker can tell which one it sees."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for k, count in enumerate(counts):
        labels = squares(count)
        cv2.imwrite(str(folder / "images" / f"{k:02}.png"), np.full(labels.shape, k + 1, np.uint8))
        write_labels(folder / "masks" / f"{k:02}.png", labels)
    if meta:
        (folder / "meta.json").write_text(json.dumps(meta))
    return Corpus(folder)


class Speaker:
    """A model that says one sentence per grey value, and the last one where there is no image."""

    device = "cpu"

    def __init__(self, sentences):
        self.sentences, self.config, self.asked = sentences, SimpleNamespace(name="speaker"), []

    def llm_or_raise(self):
        return SimpleNamespace(dim=4, generate=self._generate)

    def _generate(self, image_tokens, question=None, max_new_tokens=96):
        self.asked.append(tuple(image_tokens.shape))
        return [self.sentences[-1]]

    def describe(self, image, max_new_tokens):
        return self.sentences[int(image[0, 0, 0]) - 1]


def test_words_are_judged_by_the_facts(tmp_path):
    corpus = write_corpus(tmp_path / "c", [3, 3], META)
    speaker = Speaker(["A fluorescence microscopy image of nuclei. There are three nuclei.", "An ultrasound image."])
    result = evaluate_captions(speaker, corpus)
    assert (result["modality"], result["structure"], result["distinct"]) == (0.5, 0.5, 2)
    assert [row["contradictions"] for row in result["per_image"]] == [[], ["modality"]]
    assert result["contradicted"] == 0.5 and result["condition"] == "image"


def test_shares_by_hand(tmp_path):
    said = ["Three nuclei.", "Four nuclei.", "Some nuclei.", "Four nuclei.", "4 cells, evenly spread."]
    result = evaluate_captions(Speaker(said), write_corpus(tmp_path / "c", [3, 3, 3, 4, 1], META))
    assert [row["count"] for row in result["per_image"]] == [True, False, None, True, False]
    assert result["count"] == pytest.approx(2 / 4)  # of the four that state a number
    assert result["count_stated"] == pytest.approx(4 / 5)
    assert result["count_chance"] == pytest.approx(3 / 5)  # "three" for all
    assert result["distinct_share"] == pytest.approx(4 / 5) and result["distinct"] == 4
    assert result["hallucinated"] == pytest.approx(2 / 5)  # the second and the last
    assert result["contradicted"] == pytest.approx((1 + 3) / 5)  # count; structure, count and place
    assert result["modality"] == 0.0 and result["structure"] == pytest.approx(4 / 5)


def test_many_objects_are_counted_in_bands():
    sample = Sample(np.zeros((96, 112, 3), np.uint8), squares(13))
    assert [judge_caption(text, sample)["count"] for text in ("about a dozen", "14 of them", "15 of them", "ten")] == [
        True,
        True,
        False,
        False,
    ]


def test_shuffled_words_come_from_the_other_corpus(tmp_path):
    corpus = write_corpus(tmp_path / "c", [3] * 4, META)
    other = write_corpus(tmp_path / "other", [1])
    result = evaluate_captions(Speaker(["Cells."] + ["Nuclei."] * 3), corpus, other=other)
    assert result["condition"] == "shuffled"
    assert (result["data"], result["n_images"], result["distinct"], result["structure"]) == ("c", 4, 1, 0.0)


def test_without_an_image_the_same_is_said_of_all(tmp_path):
    speaker = Speaker(["Cells.", "Three nuclei."])
    result = evaluate_captions(speaker, write_corpus(tmp_path / "c", [3, 1], META), use_image=False)
    assert result["condition"] == "text-only" and speaker.asked == [(1, 0, 4)]  # asked once, with no image token
    assert {row["text"] for row in result["per_image"]} == {"Three nuclei."}
    assert (result["structure"], result["count"], result["distinct_share"]) == (1.0, 0.5, 0.5)


def test_text_only_is_the_question_without_image_tokens():
    model = ULLSAM.from_preset("debug")
    c = model.llm.config
    ids = model.llm.ids(c.before_image + c.after_image + c.answer)
    expected = model.llm.lm.generate(
        inputs_embeds=model.llm.embed(ids, 1), max_new_tokens=5, do_sample=False, eos_token_id=2, pad_token_id=2
    )
    assert describe_nothing(model, 5) == model.llm.tokenizer.decode(expected[0], skip_special_tokens=True).strip()


def test_no_image_and_another_image_exclude_each_other(tmp_path):
    corpus = write_corpus(tmp_path / "c", [1])
    with pytest.raises(InputError, match="choose one of the two"):
        evaluate_captions(Speaker(["Nuclei."]), corpus, other=corpus, use_image=False)


def test_facts_that_meta_lacks_are_not_judged(tmp_path):
    result = evaluate_captions(Speaker(["Nuclei."]), write_corpus(tmp_path / "c", [3]))
    assert result["modality"] is None and result["structure"] is None and result["count"] is None
    assert result["count_stated"] == 0.0 and result["hallucinated"] == 0.0
    assert judge_caption("Nuclei.", Sample(np.zeros((96, 112, 3), np.uint8), squares(1)))["contradictions"] == []


def test_words_need_a_language_model(tmp_path):
    plain = ULLSAM.from_preset("debug", llm=None, vlsa="none")
    with pytest.raises(InputError, match="has no language model"):
        evaluate_captions(plain, write_corpus(tmp_path / "c", [1]))


def test_means_leave_out_datasets_without_the_fact():
    rows = [dict.fromkeys(CAPTION_METRICS, 1.0), dict.fromkeys(CAPTION_METRICS, 0.5) | {"modality": None}]
    assert mean_captions(rows) == dict.fromkeys(CAPTION_METRICS, 0.75) | {"modality": 1.0}
    assert report(rows, "c", mean_captions)["mean"] == mean_captions(rows)


def test_table_has_a_mean_row_and_no_texts(tmp_path):
    results = [
        evaluate_captions(Speaker([text]), write_corpus(tmp_path / name, [3], META))
        for name, text in (("a", "Three nuclei."), ("b", "Five cells."))
    ]
    rows = summarise_captions(results)
    assert [row["data"] for row in rows] == ["a", "b", "mean"] and "per_image" not in rows[0]
    assert (rows[2]["structure"], rows[2]["count"], rows[2]["n_images"]) == (0.5, 0.5, 2)
    assert len(summarise_captions(results[:1])) == 1
    assert "nuclei." not in format_table(rows)


def test_command_without_an_image(tmp_path, capsys):
    ULLSAM.from_preset("debug").save_pretrained(tmp_path / "small")
    folders = [str(write_corpus(tmp_path / name, [1, 2], META).folder) for name in "ab"]
    words = ["evaluate-words", "--model", str(tmp_path / "small"), "--data", *folders, "--text-only"]
    assert main([*words, "--out", str(tmp_path / "words.json")]) == 0
    written = json.loads((tmp_path / "words.json").read_text())
    assert [row["condition"] for row in written["results"]] == ["text-only"] * 2
    assert set(written["mean"]) == set(CAPTION_METRICS)
    assert len({row["text"] for result in written["results"] for row in result["per_image"]}) == 1
    assert main([*words, "--shuffled", "--out", str(tmp_path / "words.json")]) == 2
    assert "exclude each other" in capsys.readouterr().err
