"""Multiple-choice questions about images: two ways to ask a model, and the score, as MicroVQA does it.

Letters: k images of a question, c choices, n questions, N image tokens, D LLM width.
Source: MicroVQA (Burgess et al. 2025); paper, Appendix B and Table 6.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ullsam.data.questions import MOST_CHOICES, TASKS, Question, synthetic_questions
from ullsam.errors import InputError

__all__ = [
    "Question", "TASKS", "bootstrap_interval", "extract_choice", "generate_answer", "prompt", "run", "score_options",
    "shuffle_images", "synthetic_questions",
]  # fmt: skip

METHODS, IMAGES = ("likelihood", "generate"), ("own", "none", "shuffled")

# ---------------------------------------------------------------- asking a model


@torch.no_grad()
def score_options(model, question: Question, use_image: bool = True) -> Tensor:
    """Score each choice by the mean log-likelihood per token that the model gives it as the answer.

    Args:
        model: a ULLSAM with a language model.
        question: its k images are shown one after the other as k*N image tokens.
        use_image: False asks with the text alone.

    Returns:
        float32 (c,); the largest is the model's answer.
    """
    return _llm(model).option_scores(_tokens(model, question, use_image), question.question, question.choices)


def _llm(model):
    if model.llm is None:
        raise InputError(f"Model {model.config.name} has no language model; load one that has, for example 'tiny'.")
    return model.llm


def _tokens(model, question: Question, use_image: bool) -> Tensor | None:
    """Image tokens of all images of a question, one after the other, (1, k*N, D), or None without images."""
    if not use_image:
        return None
    pixels, _ = model.preprocess([np.asarray(image) for image in question.images_list])
    return model.image_tokens(model.encode(pixels)).flatten(0, 1)[None]  # (k, N, D) -> (1, k*N, D)


def prompt(question: Question) -> str:
    """The question with its choices numbered from 1, and the request to end with "The answer is (X)"."""
    options = "\n".join(f"  ({i}): {choice}" for i, choice in enumerate(question.choices, 1))
    return ("Choose the right answer to this question. Reason first, then close with the sentence "
            f'"The answer is (X)", where X is the number of an option.\n\n{question.question}\n\nOptions:\n{options}\n')


def extract_choice(text: str, count: int) -> int:
    """Read the first "answer is (X)" out of a generated text.

    Args:
        text: what the model wrote.
        count: number of choices c.

    Returns:
        Index of the choice from 0; -1, a bad response, where no such words occur or X is no option.

    Source: the benchmark's protocol; there an X that is no option is wrong without being a bad response.
    """
    hit = re.search(r"answer is (?:\*\*)?\(?(\d+)", text)
    return int(hit[1]) - 1 if hit and 1 <= int(hit[1]) <= count else -1


@torch.no_grad()
def generate_answer(model, question: Question, use_image: bool = True, max_new_tokens: int = 64) -> tuple[str, int]:
    """Let the model write, then read its choice out of the text.

    Args:
        model, question, use_image: as in `score_options`.
        max_new_tokens: upper limit of the text's length.

    Returns:
        The text, and the index of its choice from 0 or -1 for a bad response.
    """
    llm = _llm(model)
    tokens = _tokens(model, question, use_image)
    tokens = torch.zeros(1, 0, llm.dim, device=model.device) if tokens is None else tokens
    text = llm.generate(tokens, prompt(question), max_new_tokens)[0]
    return text, extract_choice(text, len(question.choices))


# ---------------------------------------------------------------- scoring a set


def run(model, questions: Sequence[Question], method: str = "likelihood", image: str = "own", seed: int = 0,
        max_new_tokens: int = 64) -> dict:  # fmt: skip
    """Ask a model all questions and count the right answers.

    Args:
        model: a ULLSAM with a language model.
        questions: from `synthetic_questions`, or rows of the benchmark as `Question`.
        method: "likelihood" (`score_options`) or "generate" (`generate_answer`).
        image: "own", "none" (the text alone), or "shuffled" (each question sees the images of another one).
        seed: of the shuffling and of the bootstrap.
        max_new_tokens: limit of the "generate" method.

    Returns:
        accuracy; interval, its 95 % bootstrap limits; chance, the mean of 1 / c; per_task {1: {task_str, n, accuracy}};
        bad_response_rate; n_questions, method, image, seed; rows, one dict per question: key_question, key_image (as
        shown, None without), task, correct_index, predicted (-1 for a bad response), correct, and scores or text.

    Raises:
        InputError: no questions, one that contradicts itself, a model without language model, an unknown method or
            image condition, or nothing to shuffle.
    """
    _check(model, questions, method, image)
    shown = shuffle_images(questions, seed) if image == "shuffled" else questions
    rows = [_row(model, question, method, image != "none", max_new_tokens) for question in shown]
    correct = np.array([row["correct"] for row in rows])
    return {
        "method": method, "image": image, "seed": seed, "n_questions": len(rows),
        "accuracy": float(correct.mean()), "interval": bootstrap_interval(correct, seed),
        "chance": float(np.mean([1 / len(q.choices) for q in questions])), "per_task": _per_task(rows),
        "bad_response_rate": float(np.mean([row["predicted"] < 0 for row in rows])), "rows": rows,
    }  # fmt: skip


def _row(model, question: Question, method: str, use_image: bool, max_new_tokens: int) -> dict:
    """One question asked and judged."""
    if method == "likelihood":
        scores = score_options(model, question, use_image)
        predicted, answer = int(scores.argmax()), {"scores": scores.tolist()}
    else:
        text, predicted = generate_answer(model, question, use_image, max_new_tokens)
        answer = {"text": text}
    return {"key_question": question.key_question, "key_image": question.key_image if use_image else None,
            "task": question.task, "correct_index": question.correct_index, "predicted": predicted,
            "correct": predicted == question.correct_index, **answer}  # fmt: skip


def _per_task(rows: list[dict]) -> dict[int, dict]:
    """Number of questions and accuracy of each task that occurs."""
    by_task = {task: [row["correct"] for row in rows if row["task"] == task] for task in TASKS}
    return {task: {"task_str": TASKS[task], "n": len(hits), "accuracy": float(np.mean(hits))}
            for task, hits in by_task.items() if hits}  # fmt: skip


def shuffle_images(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """Give each question the images of another one, of the same number of images where there is such.

    Raises:
        InputError: a question has no other with different images.
    """
    rng = np.random.default_rng(seed)
    shown = []
    for question in questions:
        others = [q for q in questions if q.key_image != question.key_image]
        if not others:
            raise InputError("All questions have the same images; give questions about at least two to shuffle them.")
        alike = [q for q in others if len(q.images_list) == len(question.images_list)]
        other = (alike or others)[rng.integers(len(alike or others))]
        shown.append(replace(question, images_list=other.images_list, key_image=other.key_image))
    return shown


def bootstrap_interval(values: np.ndarray, seed: int = 0, level: float = 0.95, draws: int = 2000) -> list[float]:
    """Estimate how far a mean may be off: draw n values again with replacement, and keep the middle of such means.

    Args:
        values: numbers or bool (n,), one per independent item.
        seed, draws: of the random draws, and how many.
        level: share of the means that the interval holds.

    Returns:
        [low, high].
    """
    values = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    outside = (1 - level) / 2
    return [float(x) for x in np.quantile(values[picks].mean(1), (outside, 1 - outside))]


def _check(model, questions: Sequence[Question], method: str, image: str) -> None:
    """Refuse what cannot be scored."""
    _llm(model)
    if method not in METHODS or image not in IMAGES:
        raise InputError(f"There is no method {method!r} with image {image!r}; "
                         f"use a method of {METHODS} and an image of {IMAGES}.")
    if not len(questions):
        raise InputError("There are no questions; give at least one, for example synthetic_questions(30, seed=0).")
    for question in questions:
        _check_question(question)


def _check_question(q: Question) -> None:
    """Refuse a question that contradicts itself."""
    c, i = len(q.choices), q.correct_index
    if not 2 <= c <= MOST_CHOICES or not 0 <= i < c or q.choices[i] != q.correct_answer:
        raise InputError(f"Question {q.key_question} has {c} choices, correct_index {i} and the answer "
                         f"{q.correct_answer!r}; give 2 to 5 choices and a correct_index from 0 that fits.")
    if q.task not in TASKS or not q.images_list:
        raise InputError(f"Question {q.key_question} has task {q.task} and {len(q.images_list)} images; "
                         "give a task of 1, 2 or 3 and at least one image.")
