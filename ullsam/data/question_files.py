"""Question sets on disk and on the Hugging Face hub, in the parquet layout of MicroVQA (`jmhb/microvqa`).

Source: MicroVQA (Burgess et al. 2025) for the columns.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ullsam.data.io import png, to_rgb8
from ullsam.data.questions import TASKS, Question
from ullsam.errors import InputError, reason

COLUMNS = ("key_question", "key_image", "question", "choices", "correct_index", "images_list", "task")
FILE = "test-00000-of-00001.parquet"


class StoredImages(Sequence):
    """The images of one row, uint8 (H, W, 3), decoded when asked for: a whole benchmark would not fit into memory."""

    def __init__(self, table, row: int, name: str):
        self.table, self.row, self.name = table, row, name
        self.count = len(table[row]["images_list"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        return _decode(self.table[self.row]["images_list"][index]["bytes"], f"Image {index + 1} of {self.name}")


def _decode(content: bytes, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

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
            none named, or a column that is missing or of another kind.
    """
    splits = _open(source)
    if split is None and len(splits) > 1 or split is not None and split not in splits:
        raise InputError(f"{source} has the splits {', '.join(splits)}; name one of them with split= (or --split).")
    table = splits[split or next(iter(splits))]
    absent = [name for name in COLUMNS if name not in table.column_names]
    if absent:
        raise InputError(f"{source} has no column {', '.join(absent)}; give questions in MicroVQA's layout.")
    texts, images = _columns(table, source)
    return [_question(row, StoredImages(images, i, f"question {row['key_question']}")) for i, row in enumerate(texts)]


def _columns(table, source) -> tuple:
    """The table without images, and the images alone as the bytes of their files."""
    from datasets import Image, List

    try:
        images = table.select_columns(["images_list"]).cast_column("images_list", List(Image(decode=False)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{source} has no images in the column images_list ({reason(error)}); give questions in MicroVQA's layout."
        ) from error
    return table.select_columns([name for name in COLUMNS if name != "images_list"]), images


def _question(row: dict, images: Sequence) -> Question:
    choices, index = [str(choice) for choice in row["choices"]], int(row["correct_index"])
    task = int(row["task"])
    if not 0 <= index < len(choices):
        raise InputError(
            f"Question {row['key_question']} has {len(choices)} choices and correct_index {index}; "
            "give an index from 0 that fits."
        )
    return Question(
        row["key_question"],
        row["key_image"],
        row["question"],
        choices,
        index,
        choices[index],
        images,
        task,
        TASKS.get(task, "unknown"),
    )


def _open(source: str | Path) -> dict:
    """All splits by name."""
    folder = Path(source)
    if folder.is_dir() and not any(folder.rglob("*.parquet")):
        raise InputError(f"{folder} has no .parquet file; give the folder of a question set.")
    if not folder.is_dir() and (len(folder.parts) != 2 or folder.is_absolute()):
        raise InputError(f"There is no folder {source}; check the path, or give a hub name such as jmhb/microvqa.")
    try:
        import datasets
    except ImportError as error:
        raise InputError("Reading question sets needs the package datasets; run: pip install 'ullsam[full]'") from error
    try:
        return datasets.load_dataset(str(source))
    except Exception as error:  # hub, network, cache and pyarrow raise many kinds here
        raise InputError(
            f"The questions {source} could not be read ({reason(error)}); download them elsewhere and give their folder."
        ) from error


def write_questions(folder: str | Path, questions: Sequence[Question]) -> Path:
    """Writes questions as one parquet file in MicroVQA's layout, images as png; the file is whole or absent.

    Raises:
        InputError: `datasets` is not installed, or the file cannot be written.
    """
    from ullsam.files import whole

    try:
        from datasets import Dataset, Features, Image, List, Value
    except ImportError as error:
        raise InputError("Writing question sets needs the package datasets; run: pip install 'ullsam[full]'") from error
    text, number = Value("string"), Value("int64")
    features = Features(
        key_question=text,
        key_image=text,
        question=text,
        choices=List(text),
        correct_index=number,
        correct_answer=text,
        images_list=List(Image()),
        task=number,
        task_str=text,
    )
    rows = [{name: getattr(q, name) for name in features} for q in questions]
    for row in rows:
        row |= {"key_question": str(row["key_question"]), "images_list": [_png(x) for x in row["images_list"]]}
    path = Path(folder) / FILE
    with whole(path) as part:
        Dataset.from_list(rows, features=features).to_parquet(part)
    return path


def _png(image) -> dict:
    return {"bytes": png(to_rgb8(np.asarray(image))), "path": None}
