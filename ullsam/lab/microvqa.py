"""Multiple-choice questions about images: three ways to ask a model, and the score, as MicroVQA does it.

Letters: k images of a question, c choices, n questions, N image tokens, D LLM width.
Source: MicroVQA (Burgess et al. 2025); paper, Appendix B and Table 6.
"""

from __future__ import annotations

import inspect
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ullsam.accel.distributed import distributed_state, gather_results, local_items
from ullsam.data.io import append_line, read_lines
from ullsam.data.questions import MOST_CHOICES, TASKS, Question
from ullsam.errors import InputError
from ullsam.evaluation.statistics import bootstrap_interval
from ullsam.files import whole
from ullsam.llm import LanguageModel

METHODS, IMAGES = ("likelihood", "generate", "official"), ("own", "none", "shuffled")
LETTERS = {1: "V", 2: "H", 3: "E"}  # the paper's names of the tasks


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
    llm, tokens = model.llm_or_raise(), _tokens(model, question) if use_image else None
    return option_scores(llm, tokens, question.question, question.choices)


def option_scores(llm: LanguageModel, image_tokens: Tensor | None, question: str, options: list[str]) -> Tensor:
    """Mean log-likelihood per token of each option as the answer, (len(options),); None: text only.

    Args:
        llm: the language model.
        image_tokens: (1, N, D) of one image, or (1, k*N, D) of k images one after the other.
        question: asked after the images; options: the possible answers.
    """
    x = llm.prompt(torch.zeros(1, 0, llm.dim) if image_tokens is None else image_tokens, question)  # (1, L, D)
    start = llm.lm.model(inputs_embeds=x, use_cache=True)  # all that the options share is read once
    known = inspect.signature(llm.lm.model.forward).parameters  # transformers renames the cache, model by model
    name = "cache" if "cache" in known else "past_key_values"
    start[name].batch_repeat_interleave(len(options))
    rows = [torch.tensor(llm.ids(option + llm.config.end), device=x.device) for option in options]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (options, T), a causal model does not see the padding
    states = llm.lm.model(input_ids=ids, **{name: start[name]}).last_hidden_state
    first = start.last_hidden_state[:, -1:].expand(len(options), -1, -1)
    logits = llm.lm.lm_head(torch.cat([first, states[:, :-1]], dim=1)).float()  # the state before predicts a token
    scores = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]  # (options, T)
    return torch.stack([row[: len(tokens)].mean() for row, tokens in zip(scores, rows, strict=True)])


def _tokens(model, question: Question) -> Tensor:
    """Image tokens of all images of a question, one after the other, (1, k*N, D)."""
    pixels, _ = model.preprocess([np.asarray(image) for image in question.images_list])
    return model.image_tokens(model.encode(pixels)).flatten(0, 1)[None]  # (k, N, D) -> (1, k*N, D)


def prompt(question: Question) -> str:
    """The question with its choices numbered from 1, and the request to end with "The answer is (X)"."""
    return (
        "Choose the right answer to this question. Reason first, then close with the sentence "
        f'"The answer is (X)", where X is the number of an option.{_numbered(question)}'
    )


def _numbered(question: Question) -> str:
    options = "".join(f"  ({i}): {choice}\n" for i, choice in enumerate(question.choices, 1))
    return f"\n\n{question.question}\n\nOptions:\n{options}"


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


def official_prompt(question: Question) -> str:
    """The benchmark's own words, which its published numbers depend on. Source: eval/eval.py of MicroVQA."""
    return (
        "The following is a multiple choice question (with answers). \n"
        'Think step by step and then output the answer in the format of "The answer is (X)" at the end.'
        + _numbered(question)
    )


def official_choice(text: str, count: int) -> int:
    """Read a choice as the benchmark does: its first "answer is", one digit, no look at the number of choices `count`.

    Returns:
        Index from 0, which may be no choice at all and is wrong then; -1, a bad response, where nothing is found.

    Source: the benchmark's evaluation.
    """
    hit = re.search(r"answer is \*?\*?\(?([0-9])\)?\*?\*?", text)
    return int(hit[1]) - 1 if hit else -1


WRITTEN = {"generate": (prompt, extract_choice), "official": (official_prompt, official_choice)}  # method -> ask, read


@torch.no_grad()
def generate_answer(model, question: Question, use_image: bool = True, max_new_tokens: int = 64) -> tuple[str, int]:
    """Let the model write, then read its choice out of the text.

    Args:
        model, question, use_image: as in `score_options`.
        max_new_tokens: upper limit of the text's length.

    Returns:
        The text, and the index of its choice from 0 or -1 for a bad response.
    """
    text = _OurAnswers(model).write(question, prompt(question), use_image, max_new_tokens)
    return text, extract_choice(text, len(question.choices))


class _OurAnswers:
    """A ULLSAM as a participant."""

    def __init__(self, model):
        self.model, self.llm = model, model.llm_or_raise()

    @property
    def name(self) -> str:
        """Name and a number of the weights that training changes last: answers of other weights are not taken over."""
        weights = b"".join(p.detach().float().cpu().numpy().tobytes() for p in self.model.projection.parameters())
        return f"{self.model.config.name}-{zlib.crc32(weights):08x}"

    def score(self, question: Question, use_image: bool = True) -> Tensor:
        return score_options(self.model, question, use_image)

    @torch.no_grad()
    def write(self, question: Question, text: str, use_image: bool = True, max_new_tokens: int = 64) -> str:
        nothing = torch.zeros(1, 0, self.llm.dim, device=self.model.device)
        tokens = _tokens(self.model, question) if use_image else nothing
        return self.llm.generate(tokens, text, max_new_tokens)[0]


class RandomGuess:
    """Picks a choice at random, the same one for the same seed and question: what knowing nothing gives."""

    def __init__(self, seed: int = 0):
        self.seed, self.name = seed, "random"

    def score(self, question: Question, use_image: bool = True) -> Tensor:
        """A number per choice, (c,); the largest is the answer."""
        rng = np.random.default_rng([self.seed, zlib.crc32(str(question.key_question).encode())])
        return torch.from_numpy(rng.random(len(question.choices)))

    def write(self, question: Question, text: str, use_image: bool = True, max_new_tokens: int = 64) -> str:
        """An answer to `text`, which holds the question and its choices: a sentence that names the same choice."""
        return f"The answer is ({1 + int(self.score(question).argmax())})."


def run(
    model,
    questions: Sequence[Question],
    method: str = "likelihood",
    image: str = "own",
    seed: int = 0,
    max_new_tokens: int = 64,
    answers: str | Path | None = None,
    progress: bool = False,
) -> dict:
    """Ask a model all questions and count the right answers; processes of a launcher divide the questions among them.

    Args:
        model: a ULLSAM with a language model, or another participant with a name, `score` and `write`, see `RandomGuess`.
        questions: from `synthetic_questions` or `read_questions`.
        method: "likelihood" (`score_options`), "generate" (`generate_answer`), or "official": as generate, with the
            benchmark's own prompt and its own way of reading the choice.
        image: "own", "none" (the text alone), or "shuffled" (each question sees the images of another one).
        seed: of the shuffling and of the bootstrap.
        max_new_tokens: limit of what is written.
        answers: a file that gets each answer at once, one JSON object per line; what it holds is not asked again.
        progress: show a bar on standard error.

    Returns:
        accuracy; interval, its 95 % bootstrap limits; chance, the mean of 1 / c; per_task {1: {task_str, letter, n,
        accuracy, interval}}; bad_response_rate; n_questions, method, image, seed; rows, one dict per question:
        key_question, key_image (as shown, None without), task, correct_index, predicted (-1 for a bad response), correct,
        and scores or text.

    Raises:
        InputError: no questions, one that contradicts itself, a model without language model, an unknown method or
            image condition, nothing to shuffle, or `answers` belongs to another run.
    """
    from tqdm import tqdm

    _check(questions, method, image)
    participant = model if hasattr(model, "score") else _OurAnswers(model)
    asked = shuffle_images(questions, seed) if image == "shuffled" else questions
    file, done, new = None, {}, []
    if answers:
        texts = repr([(q.key_question, q.key_image, q.question, q.choices) for q in questions])
        settings = {"model": participant.name, "questions": zlib.crc32(texts.encode())}
        settings |= {"method": method, "image": image, "seed": seed, "max_new_tokens": max_new_tokens}
        file = AnswerFile(answers, settings)
        done = file.read(asked)
    left = local_items([(i, q) for i, q in enumerate(asked) if i not in done])
    for index, question in tqdm(left, desc=f"{method}, image {image}", disable=not progress):
        row = _ask(participant, question, method, image != "none", max_new_tokens)
        if file:
            file.add({"index": index, **row})
        new.append((index, (index, row)))
    done |= dict(gather_results(new))
    if file:
        file.finish(done)
    rows = [done[i] for i in range(len(asked))]
    per_task = {}
    for task, name in TASKS.items():
        if hits := [row["correct"] for row in rows if row["task"] == task]:
            per_task[task] = {"task_str": name, "letter": LETTERS[task], "n": len(hits), **_accuracy(hits, seed)}
    return {
        "method": method,
        "image": image,
        "seed": seed,
        "n_questions": len(rows),
        **_accuracy([row["correct"] for row in rows], seed),
        "chance": float(np.mean([1 / len(q.choices) for q in questions])),
        "per_task": per_task,
        "bad_response_rate": float(np.mean([row["predicted"] < 0 for row in rows])),
        "rows": rows,
    }


def _accuracy(hits: list[bool], seed: int) -> dict:
    return {"accuracy": float(np.mean(hits)), "interval": bootstrap_interval(hits, seed)}


def _ask(participant, question: Question, method: str, use_image: bool, max_new_tokens: int) -> dict:
    """One question asked and judged."""
    if method == "likelihood":
        scores = participant.score(question, use_image)
        predicted, answer = int(scores.argmax()), {"scores": scores.tolist()}
    else:
        ask, read = WRITTEN[method]
        text = participant.write(question, ask(question), use_image, max_new_tokens)
        predicted, answer = read(text, len(question.choices)), {"text": text}
    return {
        "key_question": question.key_question,
        "key_image": question.key_image if use_image else None,
        "task": question.task,
        "correct_index": question.correct_index,
        "predicted": predicted,
        "correct": predicted == question.correct_index,
        **answer,
    }


def difference(first: dict, second: dict, seed: int = 0) -> dict:
    """How much more often the first of two runs is right, question by question: mean and its 95 % interval."""
    gap = np.array([a["correct"] - b["correct"] for a, b in zip(first["rows"], second["rows"], strict=True)], float)
    return {"mean": float(gap.mean()), "interval": bootstrap_interval(gap, seed)}


def shuffle_images(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """Give each question the images of another one, of the same number of images where there is such.

    Raises:
        InputError: a question has no other with different images.
    """
    rng = np.random.default_rng(seed)
    shuffled = []
    for question in questions:
        others = [q for q in questions if q.key_image != question.key_image]
        if not others:
            raise InputError("All questions have the same images; give questions about at least two to shuffle them.")
        alike = [q for q in others if len(q.images_list) == len(question.images_list)]
        other = (alike or others)[rng.integers(len(alike or others))]
        shuffled.append(replace(question, images_list=other.images_list, key_image=other.key_image))
    return shuffled


def _check(questions: Sequence[Question], method: str, image: str) -> None:
    """Refuse what cannot be scored, and questions that contradict themselves."""
    if method not in METHODS or image not in IMAGES:
        known = f"use a method of {METHODS} and an image of {IMAGES}"
        raise InputError(f"There is no method {method!r} with image {image!r}; {known}.")
    if not len(questions):
        raise InputError("There are no questions; give at least one, for example synthetic_questions(30, seed=0).")
    for q in questions:
        c, i = len(q.choices), q.correct_index
        if not 2 <= c <= MOST_CHOICES or not 0 <= i < c or q.choices[i] != q.correct_answer:
            raise InputError(
                f"Question {q.key_question} has {c} choices, correct_index {i} and the answer "
                f"{q.correct_answer!r}; give 2 to 5 choices and a correct_index from 0 that fits."
            )
        if q.task not in TASKS or not q.images_list:
            raise InputError(
                f"Question {q.key_question} has task {q.task} and {len(q.images_list)} images; "
                "give a task of 1, 2 or 3 and at least one image."
            )


class AnswerFile:
    """The answers of a run, kept while they come in, so that a run that was stopped goes on.

    A jsonl file: a line with the run's settings, then a line per answer; every process writes a part of its own.

    Args:
        path: the file; its parts, which are merged into it at the end, have the process's number before the suffix.
        settings: what must be equal for the answers of an earlier run to count.
    """

    def __init__(self, path: str | Path, settings: dict):
        self.path, self.settings = Path(path), settings
        self.part = self.path.with_suffix(f".{distributed_state().process_index}.part")

    def read(self, questions: Sequence[Question]) -> dict[int, dict]:
        """Answers that are there already, by the place of their question; all processes read before one goes on.

        Raises:
            InputError: the file belongs to a run with other settings or questions, is damaged, or cannot be written.
        """
        found = {}
        for path in (self.path, *self._parts()):
            head, *rows = read_lines(path) or [{"settings": self.settings}]
            if head.get("settings") != self.settings:
                raise InputError(f"{path} holds answers of a run with other settings; name another file or delete it.")
            for row in rows:
                index = row.pop("index", -1)
                if not 0 <= index < len(questions) or questions[index].key_question != row.get("key_question"):
                    raise InputError(f"{path} holds answers to other questions; name another file or delete it.")
                found[index] = row
        distributed_state().wait_for_everyone()
        if not read_lines(self.part, mend=True):
            self.add({"settings": self.settings})
        return found

    def add(self, line: dict) -> None:
        """Appends a line at once.

        Raises:
            InputError: it cannot be written.
        """
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            with self.part.open("a", encoding="utf-8") as file:
                append_line(file, line)
        except OSError as error:
            raise InputError(f"{self.part} cannot be written ({error.strerror}); name another file.") from error

    def finish(self, rows: dict[int, dict]) -> None:
        """Puts all answers into the one file, in the order of the questions, and removes the parts."""
        distributed_state().wait_for_everyone()
        if distributed_state().is_main_process:
            lines = [{"settings": self.settings}, *({"index": i, **rows[i]} for i in sorted(rows))]
            with whole(self.path) as new:
                new.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
            for part in self._parts():
                part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{escape(self.path.stem)}.[0-9]*.part"))
