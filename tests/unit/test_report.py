"""The README's tables come from the results' files, and from nowhere else."""

import json
from pathlib import Path

import pytest

from ullsam import InputError
from ullsam.report import BEGIN, END, tables, update

ROOT = Path(__file__).parents[2]


def result(dice, sa):
    row = {"data": "cells", "n_images": 2, "n_instances": 7, "points": [1, 3], "seed": 0}
    return {"command": "python -m ullsam evaluate", "results": [row | {"dice_instance": dice, "sa50_instance": sa}],
            "mean": {"dice_instance": dice, "sa50_instance": sa}}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    for name, values in {"tiny": (0.81234, 0.9), "usam_tiny": (0.7, 0.65)}.items():
        (tmp_path / f"{name}_test.json").write_text(json.dumps(result(*values)))
    row = {"data": "cells", "n_images": 2, "modality": 1.0, "structure": 0.5, "distinct": 2}
    (tmp_path / "tiny_words.json").write_text(json.dumps({"command": "c", "results": [row]}))
    return tmp_path


def test_tables_hold_the_numbers_of_the_files(results):
    text = tables(results)
    assert "| cells | 2 | 7 | 0.812 / 0.900 | 0.700 / 0.650 |" in text
    assert "| cells | 2 | 2 | 1.000 | 0.500 |" in text
    assert "uSAM-tiny" in text and "without VLK" not in text and "Out of domain" not in text


def test_words_stand_beside_those_of_another_image(results):
    rows = [{"data": name, "n_images": 2, "modality": 0.25, "structure": share, "distinct": 1}
            for name, share in (("cells", 0.125), ("pores", None))]  # fmt: skip
    true = [row | {"modality": 1.0, "distinct": 2} for row in rows]
    for name, values in (("", true), ("_shuffled", rows)):
        (results / f"tiny_words{name}.json").write_text(json.dumps({"command": "c", "results": values}))
    text = tables(results)
    assert "| cells | 2 | 2 | 1.000 | 0.125 | 0.250 | 0.125 |" in text and "| pores | 2 | 2 | 1.000 |  | 0.250 |  |" in text
    assert "| **mean of the datasets** |  |  | **1.000** | **0.125** | **0.250** | **0.125** |" in text


def test_questions_and_clicks_are_told_with_their_conditions(results):
    rows = [{"image": image, "n_questions": 9, "accuracy": share, "interval": [0.1, 0.9], "chance": 0.25}
            for image, share in (("own", 0.75), ("none", 0.5))]  # fmt: skip
    (results / "microvqa_tiny.json").write_text(json.dumps({"command": "c", "results": rows}))
    conditions = {"front_end": "page", "image": "8 x 8 pixels", "model": "m", "threads": 1, "cores": 2, "note": "idle"}
    clicks = {"median_ms": 86.3, "p95_ms": 132.9, "clicks": 30, "conditions": conditions, "command": "d"}
    (results / "click_latency.json").write_text(json.dumps(clicks))
    text = tables(results)
    assert "own image 0.750 (0.100 to 0.900), no image 0.500" in text and "chance 0.250" in text
    assert "86 ms (median), 133 ms (95 %) of 30 clicks; page, 8 x 8 pixels, m, 1 thread of 2 cores; idle. `d`." in text


def test_update_replaces_the_block_only(results):
    path = results / "README.md"
    path.write_text(f"before\n{BEGIN}\nold numbers\n{END}\nafter\n")
    update(path, results)
    first = path.read_text()
    assert first.startswith("before\n") and first.endswith(f"{END}\nafter\n") and "old numbers" not in first
    update(path, results)
    assert path.read_text() == first
    path.write_text("no marks")
    with pytest.raises(InputError, match="has no lines"):
        update(path, results)


def test_the_readme_is_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0] == "\n" + tables(ROOT / "data" / "results")
