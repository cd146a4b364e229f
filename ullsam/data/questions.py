"""Questions in MicroVQA's layout: a small set about synthetic images, and sets on disk and on the Hugging Face hub.

Tasks as in MicroVQA: 1 expert visual understanding (V), 2 hypothesis generation (H), 3 experiment proposal (E).
The synthetic questions have that shape, but not its difficulty: each answer follows from how the image was made.
Source: MicroVQA (Burgess et al. 2025) for the columns; `jmhb/microvqa` on the hub.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ullsam.data.captions import find_modality, find_structure, measure
from ullsam.data.corpus import Sample
from ullsam.data.io import need, png, to_rgb8
from ullsam.data.synthetic import PICTURES, generate
from ullsam.errors import InputError, reason
from ullsam.files import whole

TABLES = tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))
CONFLICTS, LIGHT = [set(names) for names in TABLES["conflicts"]], set(TABLES["light"])
COUNTS, AREA_FRACTIONS, HALVES = TABLES["counts"], TABLES["area_fractions"], TABLES["halves"]
INSTRUMENTS, WHICH = TABLES["instruments"], TABLES["which"]
CLEAR = 0.05  # a fraction nearer than this to the edge of a band gives no question
MOST, NOT_MOST = 0.7, 0.6  # fractions of objects in a half that do and that do not make it the answer
TASKS = {1: "perception", 2: "hypothesis_gen", 3: "experiment_proposal"}
MOST_CHOICES = 5
COLUMNS = ("key_question", "key_image", "question", "choices", "correct_index", "images_list", "task")
FILE = "test-00000-of-00001.parquet"
Draft = tuple[str, list[str]]  # the question, and its choices with the true one first


@dataclass(frozen=True)
class Question:
    """One row of MicroVQA, with the columns that scoring needs.

    choices has 2 to 5 texts, correct_index counts from 0, images_list holds k images, arrays (H, W[, C]) or PIL.
    """

    key_question: int | str
    key_image: int | str
    question: str
    choices: list[str]
    correct_index: int
    correct_answer: str
    images_list: list = field(compare=False, repr=False)
    task: int
    task_str: str


def _modality(meta: dict) -> str:
    return find_modality(meta).name


def _structures(meta: dict) -> str:
    return find_structure(meta).many


def _ask_which(
    sample: Sample, question: str, name: Callable[[dict], str], conflicts=CONFLICTS, choice: Callable[[str], str] = str
) -> Draft:
    """What `name` says of the sample, and what it says of the other synthetic styles, where that is certainly wrong."""
    true, names = name(sample.meta), dict.fromkeys(name(style.meta) for style in PICTURES.values())
    wrong = [n for n in names if n != true and not any({n, true} <= group for group in conflicts)]
    return question, [choice(n) for n in (true, *wrong)]


def _with_bands(value: float, bands: Sequence) -> list[str]:
    """The words of a table of bands, those of the value's own band first."""
    true = [words for smallest, words in bands if value >= smallest][-1]
    return [true, *(words for _, words in bands if words != true)]


# V: the imaging technique, what the objects are; E: the instrument for more pictures, what segmenting the objects allows
ask_modality = partial(_ask_which, question=WHICH["technique"], name=_modality)
ask_structure = partial(_ask_which, question=WHICH["structures"], name=_structures)
ask_instrument = partial(
    _ask_which, question=WHICH["instrument"], name=_modality, conflicts=[LIGHT], choice=INSTRUMENTS.__getitem__
)
ask_measurement = partial(_ask_which, question=WHICH["table"], name=_structures, choice="the area of each of the {}".format)


def ask_count(sample: Sample) -> Draft:
    """V: the number of objects, in bands; objects cut by the edge count."""
    question = f"How many {_structures(sample.meta)} are in this picture, whole or cut by its edge?"
    return question, _with_bands(measure(sample.image, sample.labels)["count"], COUNTS)


def ask_contrast(sample: Sample) -> Draft | None:
    """V: mean gray of the objects against the rest; None where the two are about equal."""
    contrast = measure(sample.image, sample.labels)["contrast"]
    if contrast == "similar":
        return None
    wrong = "darker" if contrast == "brighter" else "brighter"
    question = f"How bright are the {_structures(sample.meta)} on average, compared with the rest of the picture?"
    return question, [f"clearly {contrast}", f"clearly {wrong}", "about as bright"]


def ask_half(sample: Sample) -> Draft | None:
    """H: the half of the picture that holds most objects; None where the answer is not clear."""
    labels, (h, w) = sample.labels, sample.labels.shape
    y, x = np.array([np.argwhere(labels == i).mean(0) for i in np.unique(labels[labels > 0])]).T + 0.5
    fractions = [np.mean(half) for half in (x < w / 2, x > w / 2, y < h / 2, y > h / 2)]
    clear = [words for words, fraction in zip(HALVES, fractions, strict=False) if fraction >= MOST]
    if len(clear) > 1 or any(NOT_MOST < fraction < MOST for fraction in fractions):
        return None
    true = clear[0] if clear else HALVES[-1]
    question = f"Which half of the picture holds the centres of at least seven in ten of the {_structures(sample.meta)}?"
    return question, [true, *(words for words in HALVES if words != true)]


def ask_largest(sample: Sample) -> Draft | None:
    """H: the part of the largest object in the area of all; None near the edge of a band."""
    areas = np.bincount(sample.labels[sample.labels > 0])
    fraction = areas.max() / areas.sum()
    if any(abs(fraction - edge) < CLEAR for edge, _ in AREA_FRACTIONS[1:]):
        return None
    question = f"Which part of the area of all {_structures(sample.meta)} belongs to the largest one?"
    return question, _with_bands(fraction, AREA_FRACTIONS)


def ask_more(first: Sample, second: Sample) -> Draft | None:
    """H: which of two pictures holds more objects; None where the counts are near."""
    counts = [measure(s.image, s.labels)["count"] for s in (first, second)]
    if max(counts) < 1.5 * min(counts) or max(counts) - min(counts) < 3:
        return None
    more, fewer = ("first", "second") if counts[0] > counts[1] else ("second", "first")
    choices = [f"the {more} picture", f"the {fewer} picture", "both hold the same number"]
    return "Two pictures are given. Which holds more objects?", choices


QUESTION_TYPES = {
    1: ((ask_modality, 1), (ask_structure, 1), (ask_count, 1), (ask_contrast, 1)),
    2: ((ask_half, 1), (ask_largest, 1), (ask_more, 2)),
    3: ((ask_instrument, 1), (ask_measurement, 1)),
}  # task -> (function, number of images it takes)


def synthetic_questions(count: int, seed: int = 0, size: int = 256) -> list[Question]:
    """Make questions about synthetic images whose answers are true by construction.

    The tasks 1, 2, 3 take turns, and so do the types of question within a task. Every question has its own images;
    `key_image` names them, joined by " + " where there are two.

    Args:
        count: number of questions, at least 1.
        seed: not negative; the same seed gives the same questions, and more of them begin with the fewer.
        size: side of the images in pixels.
    """
    if count < 1 or seed < 0:
        raise InputError(f"count is {count} and seed {seed}; give a count of 1 or more and a seed of 0 or more.")
    return [_make(number, seed, size) for number in range(count)]


def _make(number: int, seed: int, size: int) -> Question:
    """Question `number` of a seed: draws images until one gives a clear answer."""
    rng = np.random.default_rng([seed, number])
    task = 1 + number % 3
    ask, images = QUESTION_TYPES[task][number // 3 % len(QUESTION_TYPES[task])]
    draft = None
    while draft is None:
        samples = [generate(str(rng.choice(list(PICTURES))), int(rng.integers(2**31)), size) for _ in range(images)]
        draft = ask(*samples)
    text, choices = draft
    chosen = [0, *(1 + rng.permutation(len(choices) - 1))][:MOST_CHOICES]
    order = rng.permutation(chosen).tolist()
    key, pictures = " + ".join(sample.name for sample in samples), [sample.image for sample in samples]
    shuffled = [choices[i] for i in order]
    return Question(number, key, text, shuffled, order.index(0), choices[0], pictures, task, TASKS[task])


class StoredImages(Sequence):
    """The images of one row, uint8 (H, W, 3), decoded when asked for: a whole benchmark would not fit into memory."""

    def __init__(self, table, row: int, name: str):
        self.table, self.row, self.name = table, row, name
        self.count = len(table[row]["images_list"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        content, name = self.table[self.row]["images_list"][index]["bytes"], f"Image {index + 1} of {self.name}"
        try:
            image = Image.open(io.BytesIO(content or b""))
            grey = image.mode in ("1", "L") or image.mode.startswith(("I", "F"))  # up to 32 bits, which RGB would cut off
            return to_rgb8(np.asarray(image if grey else image.convert("RGB")), name)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{name} is damaged or no image ({error}); download the questions again.") from error


def read_questions(source: str | Path, split: str | None = None) -> list[Question]:
    """Questions of a folder of parquet files, or of a dataset of the hub such as jmhb/microvqa.

    The benchmark has one split, once called "train" and now "test", so none need be named. The right answer is
    `choices[correct_index]`; the column correct_answer is not read. Images are decoded when they are looked at.

    Args:
        source: the folder, or "owner/name".
        split: which split, where there are several.

    Raises:
        InputError: `datasets` is not installed, no such folder or dataset, no network, no parquet file, several splits and
            none named, or a column that is missing or of another type.
    """
    splits = _open(source)
    if split is None and len(splits) > 1 or split is not None and split not in splits:
        raise InputError(f"{source} has the splits {', '.join(splits)}; name one of them with split= (or --split).")
    table = splits[split or next(iter(splits))]
    absent = [name for name in COLUMNS if name not in table.column_names]
    if absent:
        raise InputError(f"{source} has no column {', '.join(absent)}; give questions in MicroVQA's layout.")
    from datasets import Image, List

    try:  # the images alone, as the bytes of their files
        images = table.select_columns(["images_list"]).cast_column("images_list", List(Image(decode=False)))
    except (TypeError, ValueError, RuntimeError) as error:
        text = f"{source} has no images in the column images_list ({reason(error)}); give questions in MicroVQA's layout."
        raise InputError(text) from error
    texts = table.select_columns([name for name in COLUMNS if name != "images_list"])
    return [_question(row, StoredImages(images, i, f"question {row['key_question']}")) for i, row in enumerate(texts)]


def _question(row: dict, images: Sequence) -> Question:
    key, task, index, choices = (
        row["key_question"],
        int(row["task"]),
        int(row["correct_index"]),
        list(map(str, row["choices"])),
    )
    if not 0 <= index < len(choices):
        raise InputError(f"Question {key} has {len(choices)} choices and correct_index {index}; give an index that fits.")
    name = TASKS.get(task, "unknown")
    return Question(key, row["key_image"], row["question"], choices, index, choices[index], images, task, name)


def _open(source: str | Path) -> dict:
    """All splits by name."""
    folder = Path(source)
    if folder.is_dir() and not any(folder.rglob("*.parquet")):
        raise InputError(f"{folder} has no .parquet file; give the folder of a question set.")
    if not folder.is_dir() and (len(folder.parts) != 2 or folder.is_absolute()):
        raise InputError(f"There is no folder {source}; check the path, or give a hub name such as jmhb/microvqa.")
    datasets = need("datasets", "read question sets")
    try:
        return datasets.load_dataset(str(source), trust_remote_code=False)
    except Exception as error:  # hub, network, cache and pyarrow raise many kinds here
        raise InputError(
            f"The questions {source} could not be read ({reason(error)}); download them elsewhere and give their folder."
        ) from error


def write_questions(folder: str | Path, questions: Sequence[Question]) -> Path:
    """Writes questions as one parquet file in MicroVQA's layout, images as png; the file is whole or absent."""
    datasets = need("datasets", "write question sets")
    text, number, images = datasets.Value("string"), datasets.Value("int64"), datasets.List(datasets.Image())
    other = {"choices": datasets.List(text), "correct_index": number, "images_list": images, "task": number}
    features = datasets.Features({name: other.get(name, text) for name in Question.__dataclass_fields__})
    rows = [{name: getattr(q, name) for name in features} for q in questions]
    for row in rows:
        pictures = [{"bytes": png(to_rgb8(np.asarray(x))), "path": None} for x in row["images_list"]]
        row |= {"key_question": str(row["key_question"]), "images_list": pictures}
    path = Path(folder) / FILE
    with whole(path) as part:
        datasets.Dataset.from_list(rows, features=features).to_parquet(part)
    return path
