"""Questions that are true, answers that are counted right, and conditions that do what they say."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

import ullsam
from ullsam import ULLSAM, InputError
from ullsam.cli import main
from ullsam.config import LlmConfig
from ullsam.data.questions import AREA_FRACTIONS, COUNTS, INSTRUMENTS, QUESTION_TYPES, TASKS, Question, synthetic_questions
from ullsam.lab import microvqa
from ullsam.lab.microvqa import (
    RandomGuess,
    difference,
    extract_choice,
    generate_answer,
    official_choice,
    official_prompt,
    option_scores,
    prompt,
    run,
    score_options,
    shuffle_images,
)
from ullsam.llm import load_llm

QUESTIONS = synthetic_questions(72, seed=3, size=96)
# style -> (technique, structure), written down here a second time on purpose
TRUTH = {
    "fluorescence_nuclei": ("fluorescence microscopy", "nuclei"),
    "phase_contrast_cells": ("phase-contrast microscopy", "cells"),
    "brightfield_smear": ("brightfield microscopy", "nuclei"),
    "brightfield_bacteria": ("brightfield microscopy", "bacteria"),
    "em_mitochondria": ("transmission electron microscopy", "mitochondria"),
    "em_neurites": ("transmission electron microscopy", "neurite cross-sections"),
    "sem_particles": ("scanning electron microscopy", "particles"),
    "tem_particles": ("transmission electron microscopy", "particles"),
    "sem_axons": ("scanning electron microscopy", "axons"),
    "tem_axons": ("transmission electron microscopy", "axons"),
    "histology_nuclei": ("H&E histology", "nuclei"),
    "ultrasound_lesion": ("ultrasound", "lesions"),
}


# ---------------------------------------------------------------- the questions


def samples_of(question: Question):
    """The synthetic samples that a question names, made again, with their styles."""
    names = [key.removeprefix("synthetic_").split("/") for key in question.key_image.split(" + ")]
    return [style for style, _ in names], [ullsam.generate(style, int(seed), 96) for style, seed in names]


def count(labels: np.ndarray) -> int:
    return len(set(labels.ravel().tolist()) - {0})


def true_half(labels: np.ndarray) -> str:
    """The half with at least seven in ten centres of mass."""
    ids = np.unique(labels[labels > 0])
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, ids)) + 0.5
    middle = labels.shape[0] / 2
    inside = {
        "the top half": centres[:, 0] < middle,
        "the bottom half": centres[:, 0] > middle,
        "the left half": centres[:, 1] < middle,
        "the right half": centres[:, 1] > middle,
    }
    held = [name for name, half in inside.items() if half.sum() * 10 >= 7 * len(ids)]
    assert len(held) <= 1
    return held[0] if held else "no half holds that many"


def derive(question: Question) -> str:
    """The answer to a question, from its images' ground truth and nothing of the module."""
    styles, samples = samples_of(question)
    (technique, structure), labels = TRUTH[styles[0]], samples[0].labels
    text, areas = question.question, np.unique(labels[labels > 0], return_counts=True)[1]
    if "technique" in text:
        return technique
    if "Which structures" in text:
        return structure
    if "How many" in text:
        n = count(labels)
        return "one to three" if n < 4 else "four to ten" if n < 11 else "eleven to thirty" if n < 31 else "more than thirty"
    if "How bright" in text:
        gray = samples[0].image @ np.array([0.299, 0.587, 0.114])
        return "clearly brighter" if gray[labels > 0].mean() > gray[labels == 0].mean() else "clearly darker"
    if "seven in ten" in text:
        return true_half(labels)
    if "largest one" in text:
        share = areas.max() / areas.sum()
        return (
            "less than a tenth"
            if share < 0.1
            else "a tenth to a third"
            if share < 1 / 3
            else "a third to two thirds"
            if share < 2 / 3
            else "more than two thirds"
        )
    if "Two pictures" in text:
        return "the first picture" if count(labels) > count(samples[1].labels) else "the second picture"
    if "instrument" in text:
        return INSTRUMENTS[technique]
    assert "segmented one by one" in text
    return f"the area of each of the {structure}"


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: str(q.key_question))
def test_every_answer_is_true(question):
    assert question.correct_answer == derive(question)
    assert question.choices[question.correct_index] == question.correct_answer
    assert len(set(question.choices)) == len(question.choices) in (3, 4, 5)
    assert question.task_str == TASKS[question.task]
    for shown, sample in zip(question.images_list, samples_of(question)[1], strict=True):
        assert np.array_equal(shown, sample.image)


def test_questions_about_structures_name_the_right_one():
    for question in QUESTIONS:
        styles, _ = samples_of(question)
        for words in ("How many ", "How bright are the ", "in ten of the ", "of all "):
            if words in question.question:
                assert question.question.split(words)[1].startswith(TRUTH[styles[0]][1])


def test_choices_that_may_both_be_true_never_meet():
    for a, b in (
        ("nuclei", "cells"),
        ("axons", "neurite cross-sections"),
        ("H&E histology", "brightfield microscopy"),
        ("a fluorescence microscope", "a phase-contrast microscope"),
    ):
        for question in QUESTIONS:
            true = question.correct_answer
            assert not (true.endswith(a) and any(c.endswith(b) for c in question.choices))
            assert not (true.endswith(b) and any(c.endswith(a) for c in question.choices))


def test_contrast_is_clear_where_it_is_asked():
    asked = [q for q in QUESTIONS if "How bright" in q.question]
    assert asked
    for question in asked:
        (sample,) = samples_of(question)[1]
        gray, inside = sample.image @ np.array([0.299, 0.587, 0.114]), sample.labels > 0
        assert abs(gray[inside].mean() - gray[~inside].mean()) > 0.45 * gray.std()


def test_all_kinds_and_tasks_take_turns():
    assert [q.task for q in QUESTIONS[:6]] == [1, 2, 3, 1, 2, 3]
    assert len({q.question.split(" the ")[0] for q in QUESTIONS}) >= sum(len(types) for types in QUESTION_TYPES.values())
    assert {len(q.images_list) for q in QUESTIONS} == {1, 2}
    assert len({q.key_image for q in QUESTIONS}) == len(QUESTIONS)
    assert [smallest for smallest, _ in COUNTS + AREA_FRACTIONS] == [1, 4, 11, 31, 0.0, 0.1, 1 / 3, 2 / 3]


def test_right_answers_stand_at_every_place():
    places = np.bincount([q.correct_index for q in QUESTIONS if len(q.choices) == 5], minlength=5)
    assert len(places) == 5 and places.min() > 0


def test_same_seed_same_questions_and_more_begin_with_fewer():
    few, more, other = synthetic_questions(5, 1, 64), synthetic_questions(8, 1, 64), synthetic_questions(5, 2, 64)
    assert few == more[:5] and few != other
    for a, b in zip(few, more, strict=False):
        assert all(np.array_equal(x, y) for x, y in zip(a.images_list, b.images_list, strict=True))


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 0), (3, -1)])
def test_impossible_requests_for_questions(arguments):
    with pytest.raises(ullsam.InputError, match="give a count of 1 or more"):
        synthetic_questions(*arguments)


@torch.no_grad()
def test_option_scores_equal_the_caption_loss_of_each_option():
    language = load_llm(LlmConfig(name="debug"))
    tokens, options = torch.randn(1, 4, language.dim), ["one", "twenty-five", "no"]
    scores = option_scores(language, tokens, "How many?", options)
    expected = [-language.caption_loss(tokens, [o], ["How many?"]).item() for o in options]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)
    assert option_scores(language, None, "How many?", options).shape == (3,)


# ---------------------------------------------------------------- a model whose answers are known


class FakeLlm:
    """Gives the option that `choose(tokens, question, options)` names the best score, or writes it."""

    dim = 1

    def __init__(self, choose, sentence="I think so. The answer is ({})."):
        self.choose, self.sentence, self.seen = choose, sentence, []

    def option_scores(self, tokens, question, options):
        self.seen.append(tokens)
        return torch.nn.functional.one_hot(torch.tensor(self.choose(tokens, question, options)), len(options)).float()

    def generate(self, tokens, question, max_new_tokens):
        self.seen.append(tokens)
        options = [line.split(": ", 1)[1] for line in question.splitlines() if line.startswith("  (")]
        return [self.sentence.format(1 + self.choose(tokens, question, options))]


@pytest.fixture(autouse=True)
def _the_fake_scores_by_itself(monkeypatch):
    real = microvqa.option_scores
    fake = lambda llm, *rest: llm.option_scores(*rest) if isinstance(llm, FakeLlm) else real(llm, *rest)  # noqa: E731
    monkeypatch.setattr(microvqa, "option_scores", fake)


class FakeModel:
    """Image tokens are the mean gray of each image: N = 1, D = 1."""

    device = torch.device("cpu")
    config = ullsam.preset("debug")

    def __init__(self, choose, **options):
        self.llm = FakeLlm(choose, **options)

    def llm_or_raise(self):
        return self.llm

    def preprocess(self, images):
        return torch.tensor([float(image.mean()) for image in images]), None

    def encode(self, pixels):
        return pixels

    def image_tokens(self, features):
        return features[:, None, None]  # (k,) -> (k, 1, 1)


def knows(shift=lambda question: 0):
    """A rule that is asked QUESTIONS in order, and picks the option `shift(question)` places after the right one."""
    left = iter(QUESTIONS)

    def choose(tokens, text, options):
        question = next(left)
        assert question.question in text and question.choices == options
        return (question.correct_index + shift(question)) % len(options)

    return choose


@pytest.mark.parametrize("method", ["likelihood", "generate"])
@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_always_right_and_always_wrong(method, shift, accuracy):
    result = run(FakeModel(knows(lambda question: shift)), QUESTIONS, method)
    assert result["accuracy"] == accuracy and result["interval"] == [accuracy, accuracy]
    assert result["bad_response_rate"] == 0 and result["n_questions"] == 72
    assert {task: part["accuracy"] for task, part in result["per_task"].items()} == dict.fromkeys(TASKS, accuracy)
    assert all(row["correct"] == bool(accuracy) for row in result["rows"])


def test_accuracy_per_task_is_counted_by_hand():
    result = run(FakeModel(knows(lambda question: question.task != 1)), QUESTIONS[:8])  # tasks 1 2 3 1 2 3 1 2
    assert result["accuracy"] == 3 / 8
    assert [(part["n"], part["accuracy"]) for part in result["per_task"].values()] == [(3, 1.0), (3, 0.0), (2, 0.0)]


def test_a_random_model_is_near_chance():
    rng = np.random.default_rng(0)
    questions = QUESTIONS * 10
    result = run(FakeModel(lambda tokens, text, options: int(rng.integers(len(options)))), questions)
    assert result["chance"] == pytest.approx(np.mean([1 / len(q.choices) for q in questions]))
    assert abs(result["accuracy"] - result["chance"]) < 0.06
    assert result["interval"][0] < result["accuracy"] < result["interval"][1]


def test_a_text_without_an_answer_is_a_bad_response_and_wrong():
    result = run(FakeModel(knows(), sentence="It is number {}."), QUESTIONS[:6], "generate")
    assert result["bad_response_rate"] == 1 and result["accuracy"] == 0
    assert {row["predicted"] for row in result["rows"]} == {-1}
    assert result["rows"][0]["text"].startswith("It is number")


def test_all_images_of_a_question_are_shown_one_after_the_other():
    model = FakeModel(knows())
    run(model, QUESTIONS[:24])
    for question, tokens in zip(QUESTIONS, model.llm.seen, strict=False):
        assert tokens.flatten().tolist() == pytest.approx([image.mean() for image in question.images_list])


def test_shuffled_images_are_another_questions():
    model = FakeModel(knows())
    result = run(model, QUESTIONS, image="shuffled", seed=5)
    for question, tokens, row in zip(QUESTIONS, model.llm.seen, result["rows"], strict=True):
        other = next(q for q in QUESTIONS if q.key_image == row["key_image"])
        assert other.key_image != question.key_image and len(other.images_list) == len(question.images_list)
        assert tokens.flatten().tolist() == pytest.approx([image.mean() for image in other.images_list])
        assert not np.array_equal(other.images_list[0], question.images_list[0])
    assert run(FakeModel(knows()), QUESTIONS, image="shuffled", seed=5) == result
    assert result["accuracy"] == 1.0  # question and choices stay


def test_shuffling_falls_back_on_another_number_of_images():
    pair = next(q for q in QUESTIONS if len(q.images_list) == 2)
    assert [len(q.images_list) for q in shuffle_images([QUESTIONS[0], pair])] == [2, 1]


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_without_image_no_image_token_is_seen(method):
    model = FakeModel(knows())
    result = run(model, QUESTIONS[:3], method, image="none")
    assert all(tokens is None or tokens.shape == (1, 0, 1) for tokens in model.llm.seen)
    assert {row["key_image"] for row in result["rows"]} == {None}


# ---------------------------------------------------------------- the real classes


@pytest.fixture(scope="module")
def debug():
    return ullsam.ULLSAM.from_preset("debug")


def test_scores_are_mean_log_likelihoods_of_the_answers(debug):
    question = next(q for q in QUESTIONS if len(q.images_list) == 2)
    scores = score_options(debug, question)
    assert scores.shape == (len(question.choices),) and scores.dtype == torch.float32 and (scores < 0).all()
    llm = debug.llm
    with torch.no_grad():
        parts = [debug.image_tokens(debug.encode(debug.preprocess([image])[0])) for image in question.images_list]
        start = [llm.embed(llm.ids(llm.config.before_image), 1), *parts]
        text = llm.ids(f"{llm.config.after_image}\n{question.question}{llm.config.answer}")
        for choice, score in zip(question.choices, scores, strict=True):
            answer = llm.ids(choice + llm.config.end)
            x = torch.cat([*start, llm.embed(text + answer, 1)], 1)
            logits = llm.lm(inputs_embeds=x).logits[0, -len(answer) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(answer)), answer].mean()
            torch.testing.assert_close(score, expected, atol=1e-5, rtol=1e-5)


def test_scores_depend_on_the_image_only_where_it_is_shown(debug):
    a = QUESTIONS[0]
    b = replace(a, images_list=[255 - image for image in a.images_list])
    assert not torch.equal(score_options(debug, a), score_options(debug, b))
    assert torch.equal(score_options(debug, a, False), score_options(debug, b, False))


@pytest.mark.parametrize("use_image", [True, False])
def test_generating_with_the_debug_model(debug, use_image):
    text, choice = generate_answer(debug, QUESTIONS[0], use_image, max_new_tokens=4)
    assert isinstance(text, str) and choice == -1


def test_a_whole_run_of_the_debug_model(debug):
    result = run(debug, QUESTIONS[:4])
    assert len(result["rows"]) == 4 and all(np.isfinite(row["scores"]).all() for row in result["rows"])
    assert [int(np.argmax(row["scores"])) for row in result["rows"]] == [row["predicted"] for row in result["rows"]]


# ---------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is (2)", 1),
        ("the answer is 3.", 2),
        ("So the answer is **(1)**, since", 0),
        ("The answer is **4**", 3),
        ("The answer is (1). No, the answer is (2).", 0),
        ("The Answer is (2)", -1),
        ("answer: (2)", -1),
        ("The answer is (B)", -1),
        ("", -1),
        ("The answer is (0)", -1),
        ("The answer is (6)", -1),
        ("The answer is (12)", -1),
        ("The answer is that (2)", -1),
    ],
)
def test_extraction(text, expected):
    assert extract_choice(text, 5) == expected


def test_prompt_numbers_the_options_from_one():
    lines = prompt(QUESTIONS[0]).splitlines()
    assert lines[-len(QUESTIONS[0].choices) :] == [f"  ({i + 1}): {c}" for i, c in enumerate(QUESTIONS[0].choices)]
    assert QUESTIONS[0].question in lines
    assert extract_choice(prompt(QUESTIONS[0]), 5) == -1  # a model that repeats its prompt has not answered


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"correct_index": 7}, "correct_index from 0 that fits"),
        ({"correct_index": -1}, "correct_index from 0"),
        ({"correct_answer": "elsewhere"}, "correct_index from 0"),
        ({"choices": ["one"]}, "2 to 5 choices"),
        ({"choices": list("abcdef")}, "2 to 5 choices"),
        ({"task": 4}, "task of 1, 2 or 3"),
        ({"images_list": []}, "at least one image"),
    ],
)
def test_questions_that_contradict_themselves(change, words):
    with pytest.raises(ullsam.InputError, match=words):
        run(FakeModel(knows()), [QUESTIONS[0], replace(QUESTIONS[1], **change)])


def test_what_cannot_be_run():
    with pytest.raises(ullsam.InputError, match="no questions"):
        run(FakeModel(knows()), [])
    with pytest.raises(ullsam.InputError, match="method"):
        run(FakeModel(knows()), QUESTIONS, "guess")
    with pytest.raises(ullsam.InputError, match="image"):
        run(FakeModel(knows()), QUESTIONS, image="blurred")
    with pytest.raises(ullsam.InputError, match="at least two"):
        run(FakeModel(knows()), QUESTIONS[:1], image="shuffled")


def test_a_model_without_language_model():
    plain = ullsam.ULLSAM.from_preset("debug", llm=None, vlsa="none")
    for ask in (
        lambda: run(plain, QUESTIONS[:1]),
        lambda: score_options(plain, QUESTIONS[0]),
        lambda: generate_answer(plain, QUESTIONS[0], False),
    ):
        with pytest.raises(ullsam.InputError, match="no language model"):
            ask()


# ---------------------------------------------------------------- answers that are kept


NINE = synthetic_questions(9, seed=1, size=64)


class Counting(RandomGuess):
    """Counts what it is asked, and stops after `limit` questions as a power cut would."""

    def __init__(self, limit=None):
        super().__init__()
        self.asked, self.limit = [], limit

    def score(self, question, use_image=True):
        if len(self.asked) == self.limit:
            raise KeyboardInterrupt
        self.asked.append(question.key_question)
        return super().score(question)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Counting(limit=4), NINE, answers=path)
    (part,) = tmp_path.glob("*.part")
    assert len(part.read_text().splitlines()) == 1 + 4  # the settings and four answers, each there at once
    part.write_text(part.read_text() + '{"index": 4, "key_que')  # cut off in the middle of a line
    rest = Counting()
    result = run(rest, NINE, answers=path)
    assert rest.asked == [q.key_question for q in NINE[4:]]
    assert result == run(Counting(), NINE)
    assert list(tmp_path.iterdir()) == [path]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines[1:]] == list(range(9))
    assert [line["predicted"] for line in lines[1:]] == [r["predicted"] for r in result["rows"]]
    again = Counting()
    assert run(again, NINE, answers=path) == result and again.asked == []


def test_parts_of_several_processes_are_taken_together(tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = run(Counting(), NINE, answers=path)
    head, *lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    (tmp_path / "answers.0.part").write_text(head + "".join(lines[::2]))
    (tmp_path / "answers.1.part").write_text(head + lines[1] + lines[3])
    rest = Counting()
    assert run(rest, NINE, answers=path) == whole
    assert rest.asked == [NINE[5].key_question, NINE[7].key_question]


def test_answers_of_another_run_are_not_taken_over(tmp_path):
    path = tmp_path / "answers.jsonl"
    run(Counting(), NINE, answers=path)
    for other in ({"image": "none"}, {"method": "generate"}, {"seed": 4}):
        with pytest.raises(InputError, match="other settings"):
            run(Counting(), NINE, answers=path, **other)
    with pytest.raises(InputError, match="other settings"):
        run(Counting(), synthetic_questions(9, seed=2, size=64), answers=path)
    model = ULLSAM.from_preset("debug")
    debug = tmp_path / "debug.jsonl"
    run(model, NINE[:1], answers=debug)
    with torch.no_grad():
        next(model.projection.parameters()).add_(1)
    with pytest.raises(InputError, match="other settings"):  # the same name, but weights of another training
        run(model, NINE[:1], answers=debug)
    path.write_text("no json\n")
    with pytest.raises(InputError, match="not valid JSON"):
        run(Counting(), NINE, answers=path)


def test_line_separators_in_an_answer_are_no_ends_of_lines(tmp_path):
    class Odd(RandomGuess):
        def write(self, *args):
            return "first\u2028second\u2029third\x0b\x1c\x85 The answer is (1)"

    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Stopping(Odd(), 3), NINE, "generate", answers=path)
    result = run(Odd(), NINE, "generate", answers=path)
    assert run(Odd(), NINE, "generate", answers=path) == result
    assert {row["text"] for row in result["rows"]} == {Odd().write()} and "\u2028" in path.read_text("utf-8")


class Stopping:
    """Writes as another does, and stops after `limit` answers."""

    def __init__(self, other, limit):
        self.other, self.limit, self.name, self.score = other, limit, other.name, other.score

    def write(self, *args):
        self.limit -= 1
        if self.limit < 0:
            raise KeyboardInterrupt
        return self.other.write(*args)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(RandomGuess(), NINE, answers=tmp_path / "file" / "answers.jsonl")


# ---------------------------------------------------------------- the benchmark's protocol


def test_official_words_and_extraction():
    text = official_prompt(NINE[0])
    assert text.startswith("The following is a multiple choice question (with answers). \nThink step by step and then")
    assert text.endswith("".join(f"  ({i}): {c}\n" for i, c in enumerate(NINE[0].choices, 1)))
    readings = {
        "The answer is (2)": 1,
        "answer is **3**": 2,
        "the answer is 1. answer is 2": 0,
        "Answer is 2": -1,
        "": -1,
        "The answer is B": -1,
        "answer is (9)": 8,
        "answer is **(4)**": 3,
    }
    for words, expected in readings.items():
        assert official_choice(words, 5) == expected


def test_an_answer_that_is_no_choice_is_wrong_but_no_bad_response():
    class Nine(RandomGuess):
        def write(self, *args):
            return "The answer is (9)"

    official, ours = (run(Nine(), NINE, method) for method in ("official", "generate"))
    assert (official["accuracy"], official["bad_response_rate"]) == (0, 0)
    assert (ours["accuracy"], ours["bad_response_rate"]) == (0, 1)


def test_random_guesses_are_at_chance_and_repeat():
    questions = [replace(q, key_question=i) for i, q in enumerate(NINE * 100)]
    result = run(RandomGuess(), questions)
    assert abs(result["accuracy"] - result["chance"]) < 0.06
    assert result["accuracy"] == run(RandomGuess(), questions, "official")["accuracy"]
    assert run(RandomGuess(1), questions)["accuracy"] != result["accuracy"]
    tasks = result["per_task"]
    assert [tasks[i]["letter"] for i in (1, 2, 3)] == ["V", "H", "E"]
    for part in tasks.values():
        assert part["interval"][0] < part["accuracy"] < part["interval"][1] and part["n"] == 300


def test_difference_is_paired():
    a, b = ({"rows": [{"correct": c} for c in row]} for row in ([1, 1, 1, 0], [0, 1, 1, 0]))
    found = difference(a, b)
    assert found["mean"] == 0.25 and 0 <= found["interval"][0] <= 0.25 <= found["interval"][1]


# ---------------------------------------------------------------- the command


def test_the_command_in_all_conditions(tmp_path, capsys):
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    assert main(["make-questions", str(folder), "--count", "9", "--seed", "1"]) == 0
    capsys.readouterr()
    ULLSAM.from_preset("debug").save_pretrained(tmp_path / "small")
    out = tmp_path / "out" / "result.json"
    words = [
        "microvqa",
        "--model",
        str(tmp_path / "small"),
        "--data",
        str(folder),
        "--method",
        "likelihood",
        "official",
        "--image",
        "own",
        "none",
        "shuffled",
        "--limit",
        "4",
        "--max-new-tokens",
        "3",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    result = json.loads(out.read_text())
    assert [(r["method"], r["image"], r["n_questions"]) for r in result["results"]] == [
        (method, image, 4) for method in ("likelihood", "official") for image in ("own", "none", "shuffled")
    ]
    assert [(d["method"], d["second"]) for d in result["differences"]] == [
        (method, image) for method in ("likelihood", "official") for image in ("none", "shuffled")
    ]
    assert str(tmp_path) not in out.read_text() and "rows" not in result["results"][0]
    printed = capsys.readouterr().out
    assert "chance" in printed and "likelihood: image own minus none" in printed
    files = sorted(p.name for p in out.parent.iterdir())
    assert len(files) == 7 and "result.official.none.jsonl" in files
    for r in result["results"]:
        rows = [json.loads(x) for x in (out.parent / r["answers"]).read_text().split("\n")[1:-1]]
        assert r["accuracy"] == np.mean([x["correct"] for x in rows])


def test_the_command_on_synthetic_questions_at_random(tmp_path):
    out = tmp_path / "r.json"
    assert main(["microvqa", "--model", "random", "--count", "6", "--image", "own", "--out", str(out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["model"], result["data"], result["n_questions"]) == ("random", "synthetic", 6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "guess"], "guess is no method"),
        (["--image", "blurred"], "blurred is no method"),
        (["--limit", "0"], "give a number from 1"),
        (["--data", "nowhere"], "no folder nowhere"),
        (["--out", "."], "is a folder"),
        (["--model", "huge"], "or tiny or usam-tiny"),
    ],
)
def test_wrong_input_is_one_sentence(words, sentence, tmp_path, capsys):
    assert main(["microvqa", "--model", "random", "--count", "2", "--out", str(tmp_path / "r.json"), *words]) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    ULLSAM.from_preset("debug").save_pretrained(tmp_path / "small")
    results = []
    for count in (1, 2):
        out = tmp_path / str(count) / "r.json"
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone", "-m"]
        words += ["ullsam", "microvqa", "--model", str(tmp_path / "small"), "--count", "7", "--out", str(out)]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1
        assert ("4/4" in done.stderr) is ("3/3" in done.stderr) is (count == 2)  # each process asks its share
        results.append(json.loads(out.read_text())["results"])
        assert sorted(p.suffix for p in out.parent.iterdir()) == [".json", ".jsonl", ".jsonl"]
    assert results[0] == results[1]
