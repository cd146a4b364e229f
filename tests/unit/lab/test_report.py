"""The README's tables come from the results' files, and from nowhere else."""

import json
from pathlib import Path

import pytest

from ullsam import InputError
from ullsam.lab.card import card
from ullsam.lab.report import BEGIN, END, tables, update

ROOT = Path(__file__).parents[3]


def result(dice, sa):
    row = {"data": "cells", "n_images": 2, "n_instances": 7, "points": [1, 3], "seed": 0}
    images = [{"dice_instance": dice + x, "sa50_instance": sa + x} for x in (-0.05, 0.05)]
    row |= {"dice_instance": dice, "sa50_instance": sa, "per_image": images}
    return {"command": "python -m ullsam evaluate", "results": [row], "mean": {"dice_instance": dice, "sa50_instance": sa}}


@pytest.fixture
def results(tmp_path):
    for name, values in {"tiny": (0.81234, 0.9), "usam_tiny": (0.7, 0.65)}.items():
        (tmp_path / f"{name}_test.json").write_text(json.dumps(result(*values)))
    row = {
        "data": "cells",
        "n_images": 2,
        "modality": 1.0,
        "structure": 0.5,
        "count": None,
        "count_chance": 0.25,
        "hallucinated": 0.75,
        "distinct": 2,
    }
    (tmp_path / "tiny_words.json").write_text(json.dumps({"command": "c", "results": [row]}))
    return tmp_path


def test_tables_hold_the_numbers_of_the_files(results):
    text = tables(results)
    assert "| cells | 2 | 7 | 0.812 / 0.900 | 0.700 / 0.650 |" in text
    assert "| 95 % interval (Dice) |  |  | 0.762 to 0.862 | 0.650 to 0.750 |" in text
    assert "uLLSAM-tiny minus uSAM-tiny +0.112 (+0.112 to +0.112)" in text  # images are paired
    assert "| cells | 2 | 2 | 1.000 | 0.500 |  | 0.750 |" in text and "most frequent band gives 0.250" in text
    assert "uSAM-tiny" in text and "without VLK" not in text and "Out of domain" not in text


def test_one_click_is_told_below_its_table(results):
    (results / "tiny_click_test.json").write_text(json.dumps(result(0.71234, 0.8)))
    text = tables(results)
    assert "uLLSAM-tiny 0.712 / 0.800 (95 % interval of Dice 0.662 to 0.762)" in text
    assert text.index("mean of the datasets") < text.index("one click") < text.index("Descriptions")


def test_words_stand_beside_those_of_another_image_and_of_none(results):
    rows = json.loads((results / "tiny_words.json").read_text())["results"]
    for end, share in (("shuffled", 0.25), ("text_only", 0.125)):
        other = {"command": "c", "results": [row | {"modality": share} for row in rows]}
        (results / f"tiny_words_{end}.json").write_text(json.dumps(other))
    text = tables(results)
    assert "| **mean, own image** |  |  | **1.000** | **0.500** |  | **0.750** |" in text
    assert "| **mean, image of another set** |  |  | **0.250** |" in text
    assert "| **mean, no image** |  |  | **0.125** |" in text


def test_questions_and_clicks_are_told_with_their_conditions(results):
    rows = [
        {"image": image, "n_questions": 9, "accuracy": share, "interval": [0.1, 0.9], "chance": 0.25}
        for image, share in (("own", 0.75), ("none", 0.5))
    ]
    (results / "microvqa_tiny.json").write_text(json.dumps({"command": "c", "results": rows}))
    conditions = {"front_end": "page", "image": "8 x 8 pixels", "model": "m", "threads": 1, "cores": 2, "note": "idle"}
    clicks = {"median_ms": 86.3, "p95_ms": 132.9, "clicks": 30, "conditions": conditions, "command": "d"}
    (results / "click_latency.json").write_text(json.dumps(clicks))
    text = tables(results)
    assert "own image 0.750 (0.100 to 0.900), no image 0.500" in text and "chance 0.250" in text
    assert "86 ms (median), 133 ms (95 %) of 30 clicks; page, 8 x 8 pixels, m, 1 thread of 2 cores; idle. `d`." in text


def test_several_people_at_once_are_told_in_a_row_each(results):
    tried = [
        {
            "users": n,
            "seconds": {"ready": {"largest": 7.6}, "first_mask": {"largest": 2.0 * n}},
            "click_ms": {"median": 99.6, "p95": 250.2},
            "memory": {"ready": {"sum_mb": 100}, "worked": {"sum_mb": 1460}},
        }
        for n in (2, 8)
    ]
    conditions = {"pause_s": 2.0, "cores": 2, "note": "idle"}
    (results / "app_users.json").write_text(json.dumps({"tried": tried, "conditions": conditions, "command": "d"}))
    text = tables(results)
    assert "| 2 | 8 s | 4 s | 100 ms | 250 ms | 1.5 GB |" in text and "| 8 | 8 s | 16 s |" in text
    assert "click 2 s after each mask" in text and "share 2 cores; idle." in text


def test_update_replaces_the_block_only(results):
    path = results / "README.md"
    path.write_text(f"before\n{BEGIN}\nold numbers\n{END}\nafter\n")
    update(path, tables(results))
    first = path.read_text()
    assert first.startswith("before\n") and first.endswith(f"{END}\nafter\n") and "old numbers" not in first
    update(path, tables(results))
    assert path.read_text() == first
    path.write_text("no marks")
    with pytest.raises(InputError, match="has no lines"):
        update(path, "")


def test_the_readme_is_up_to_date():
    results = ROOT / "data" / "results"
    for file, expected in (("README.md", tables(results)), ("data/weights/README.md", card(results))):
        assert (ROOT / file).read_text().split(BEGIN)[1].split(END)[0] == "\n" + expected


def test_the_card_tells_runs_and_means(results):
    log = [{"step": step, "seconds": 9.0 * step, "loss": 2.0 - step / 400} for step in range(10, 401, 10)]
    (results / "training_log.json").write_text(json.dumps({"kinds": log, "base": log[:20]}))
    for name in ("tiny", "usam_tiny"):
        values = result(0.8, 0.9)
        values["mean"] |= {"dice_image": 0.7, "msa": 0.4}
        (results / f"{name}_test.json").write_text(json.dumps(values))
    text = card(results)
    assert "| base | encoder | 3 | 256 px | 4 | 200 | 0.50 | 1.96 | 1.51 |" in text
    assert text.index("| base |") < text.index("| kinds |") and "Together 1.5 hours" in text
    assert "| uSAM-tiny: in-domain test splits | 0.800 | 0.900 | 0.700 | 0.400 |" in text
