"""The pages of results hold the numbers of the results' files, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from tests.unit.lab.test_reports import cells, claims
from tools.pages import BEGIN, END, model_card, results_page, summary_table, write_pages
from ullsam import InputError
from ullsam.lab.arms import OURS, USAM
from ullsam.lab.reports import aims_table, phases_table

ROOT = Path(__file__).parents[2]
CONDITIONS = {"front_end": "page", "threads": 1, "cores": 2, "note": "idle"}


def mask_result(dice, sa, points=(1, 3)):
    images = [{"dice_instance": dice + x, "sa50_instance": sa + x} for x in (-0.05, 0.05)]
    row = {"data": "cells", "n_images": 2, "n_instances": 7, "points": list(points), "seed": 0, "per_image": images}
    mean = {"dice_instance": dice, "sa50_instance": sa, "dice_image": 0.71, "msa": 0.41}
    return {"command": "python -m ullsam evaluate --data a/b c/d --split test", "results": [row | mean], "mean": mean}


def words_result(**changed):
    row = {"data": "cells", "n_images": 2, "distinct": 2, "modality": 1.0, "structure": 0.5, "count": None}
    row |= {"count_chance": 0.25, "hallucinated": 0.75} | changed
    return {"command": "python -m ullsam evaluate-words", "results": [row]}


@pytest.fixture
def write(tmp_path):
    """Writes a results file."""
    return lambda name, values: (tmp_path / name).write_text(json.dumps(values))


@pytest.fixture
def results(tmp_path, write):
    write("tiny_test.json", mask_result(0.81234, 0.9))
    write("usam_tiny_test.json", mask_result(0.7, 0.65))
    return tmp_path


def section(text, title):
    """What stands below a heading."""
    return next(part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(title))


def test_masks_are_told_per_dataset_with_intervals_and_differences(results):
    text = section(results_page(results), "Masks: in domain")
    assert cells(text, "cells") == ["cells", "2", "7", "0.812 / 0.900", "0.700 / 0.650"]
    assert cells(text, "95 % interval (Dice)")[3:] == ["0.762 to 0.862", "0.650 to 0.750"]
    assert cells(text, "mean of the datasets")[3:] == ["0.812 / 0.900", "0.700 / 0.650"]
    assert cells(text, "uLLSAM-tiny minus this (Dice)")[4] == "+0.112 (+0.112 to +0.112)"  # images are paired
    assert "a/b" not in text and "--split test" in text  # the command, without its folders


def test_what_was_not_measured_is_left_out(results):
    text = results_page(results)
    assert text.count("## ") == 1 and "without knowledge" not in text.split("## ")[1]


def test_the_readme_gets_the_means_alone(results, write):
    write("tiny_click_test.json", mask_result(0.71234, 0.8, (1, 0)))
    text = summary_table(results)
    assert cells(text, "in domain") == ["in domain", "0.812 / 0.900", "", "0.700 / 0.650"]
    assert cells(text, "in domain, one click")[1] == "0.712 / 0.800"
    assert len(text.splitlines()) == 4
    assert "1 inside and 0 outside" in section(results_page(results), "Masks: in domain, one click")


def test_words_stand_beside_those_of_another_image_and_of_none(results, write):
    write("tiny_words.json", words_result())
    write("tiny_words_shuffled.json", words_result(modality=0.25))
    write("tiny_words_text_only.json", words_result(modality=0.125))
    text = section(results_page(results), "Descriptions")
    assert cells(text, "cells") == ["cells", "2", "2", "1.000", "0.500", "", "0.750"]
    means = [cells(text, f"mean, {name}")[3] for name in ("own image", "image of another set", "no image")]
    assert means == ["1.000", "0.250", "0.125"] and "0.250" in text.splitlines()[-1]  # chance of the number


def test_questions_are_told_by_what_was_shown(results, write):
    rows = [
        {"image": image, "n_questions": 9, "accuracy": right, "interval": [0.1, 0.9], "chance": 0.25}
        for image, right in (("own", 0.75), ("none", 0.5))
    ]
    write("microvqa_tiny.json", {"command": "c", "results": rows})
    text = section(results_page(results), "Questions")
    assert cells(text, "own")[1] == "0.750 (0.100 to 0.900)" and cells(text, "none")[1].startswith("0.500")
    assert "75.0%" in text and "25.0%" in text


def test_clicks_are_told_with_their_conditions(results, write):
    write("click_latency.json", {"median_ms": 86.3, "p95_ms": 132.9, "clicks": 30, "conditions": CONDITIONS, "command": "d"})
    text = section(results_page(results), "From a click")
    assert cells(text, "30") == ["30", "86 ms", "133 ms"]
    assert all(f"{name.replace('_', ' ')}: {value}" in text for name, value in CONDITIONS.items()) and "`d`" in text


def test_several_people_at_once_are_told_in_a_row_each(results, write):
    tried = [
        {
            "users": n,
            "seconds": {"ready": {"largest": 7.6}, "first_mask": {"largest": 2.0 * n}},
            "click_ms": {"median": 99.6, "p95": 250.2},
            "memory": {"ready": {"sum_mb": 100}, "worked": {"sum_mb": 1460}},
        }
        for n in (2, 8)
    ]
    write("app_users.json", {"tried": tried, "conditions": CONDITIONS, "command": "d"})
    text = section(results_page(results), "Several people")
    assert cells(text, "2") == ["2", "8 s", "4 s", "100 ms", "250 ms", "1.5 GB"]
    assert cells(text, "8")[:3] == ["8", "8 s", "16 s"] and "cores: 2" in text


TIMES = {"ullsam": 1.5, "plain_ullsam": 0.2, "segment_anything": 0.3, "transformers": 0.8}
SPEED = {
    "aims": {
        "click_ms": {"measured": 21.54, "aim": 25, "reached": True},
        "resident_with_llm_mb": {"measured": 1176.4, "aim": 1000, "reached": False},
    },
    "work": [
        {
            "work": work,
            "image": size,
            "objects": 1,
            "times": {who: {"cpu_median_s": x * scale, "median_s": x} for who, x in TIMES.items()},
        }
        for work in ("ready", "point")
        for size, scale in (("a", 1), ("b", 2))
    ]
    + [{"work": "caption", "image": "a", "objects": 1, "times": {"ullsam": {"median_s": 4.25}}}],
    "training": {"steps_per_s": 0.123, "images_per_step": 8, "view_px": 256},
    "conditions": CONDITIONS | {"versions": {"torch": "2.14"}},
    "command": "make bench",
}


def test_speed_is_told_beside_its_aims_and_that_of_others(results, write):
    write("bench_tiny.json", SPEED)
    text = section(results_page(results), "Speed of tiny")
    assert cells(text, "one click, any image size, ms")[1:] == ["21.5", "< 25", "yes"]
    assert cells(text, "memory with the language model, MB")[1:] == ["1176", "< 1000", "no"]
    assert "1 of 2" in text and "4.2 s" in text and "0.12 steps" in text and "torch: 2.14" in text
    assert "1.5 to 1.5" in text and "4 to 4" in text  # processor time of others, as multiples of ours
    write("bench_tiny.json", SPEED | {"training": None})
    assert "steps per second" not in results_page(results)


PAPER = {
    "what": "random weights",
    "command": "make bench-paper",
    "gemm_gflops_per_second": {"fp32": 190.2, "bf16": 400.0},
    "aims": {
        "inference, seconds": {"measured": 12.345, "aim": "< 15", "reached": True},
        "training step, seconds": {"measured": None, "aim": "< 35", "reached": False},
        "share of the peak": {"measured": 0.5},
    },
    "parts": {
        "inference": {
            "peak_gb": 5.3,
            "phases": {
                "encoder": {"seconds": 4.0, "gflops": 970.0, "share_of_gemm": 0.606},
                "mask": {"seconds": 0.0512, "gflops": 4.0, "share_of_gemm": 0.2},
            },
        },
        "training": {"error": "ended with -9: no message; was the memory full?"},
    },
    "conditions": CONDITIONS,
}


def test_the_papers_size_is_told_aim_by_aim_and_phase_by_phase(results, write):
    assert cells(aims_table(PAPER), "inference, seconds")[1:] == ["12.3", "< 15", "yes"]
    assert cells(aims_table(PAPER), "training step, seconds")[1:] == ["not measured", "< 35", "no"]
    assert cells(aims_table(PAPER), "share of the peak")[1:] == ["0.5", "", ""]
    assert cells(phases_table(PAPER), "inference", "mask")[2:] == ["0.0512", "0.00", "20%", "5.3"]
    assert "training" not in phases_table(PAPER)  # it failed
    write("bench_paper.json", PAPER)
    text = section(results_page(results), "At the paper's size")
    assert aims_table(PAPER) in text and phases_table(PAPER) in text and "190 GFLOP/s in fp32" in text


def test_the_largest_budget_speaks_for_each_claim(results, write):
    small, large = claims("smoke", 1, 0.1), claims("short", 3, 0.2)
    large["rows"].pop("full | 1P+3N | without VLK | in-domain")
    write("reproduce_smoke.json", small)
    write("reproduce_short.json", large)
    text = section(results_page(results), "The paper's tables")
    paper = f"{OURS[0] - USAM[0]:+.3f}"
    found = cells(text, "Table 3", "uLLSAM > uSAM trained with SBR points")
    assert found[2:] == [paper, "+0.200 (+0.200 to +0.200)", "agrees", "short, 3"]
    assert cells(text, "Figure 5", "uLLSAM > uLLSAM without VLK")[3:] == ["+0.100 (+0.100 to +0.100)", "agrees", "smoke, 1"]
    assert cells(text, "Figure 5", "uLLSAM without VLK > uSAM")[4] == "cannot tell"
    assert "Table 1" not in text and "reproduce_smoke/tables.md" in text and "40 steps" in text
    assert "3 (agrees 2, cannot tell 1)" in text


def test_the_card_tells_runs_and_means(results, write):
    log = [{"step": step, "seconds": 9.0 * step, "loss": 2.0 - step / 400} for step in range(10, 401, 10)]
    write("training_log.json", {"first": log[:20], "second": log})
    text = model_card(results)
    assert cells(text, "first") == ["first", "200", "0.50", "1.96", "1.51"]
    assert text.index("| first |") < text.index("| second |") and "1.5 hours" in text
    assert cells(text, "uSAM-tiny, in domain")[1:] == ["0.700", "0.650", "0.710", "0.410"]


def test_only_what_stands_between_the_marks_is_replaced(results):
    readme, card = results / "A.md", results / "B.md"
    for path in (readme, card):
        path.write_text(f"before\n{BEGIN}\nold numbers\n{END}\nafter\n")
    written = write_pages(results, readme, card)
    first = [path.read_text() for path in written]
    assert set(written) == {readme, card, results / "README.md"}
    assert readme.read_text() == f"before\n{BEGIN}\n{summary_table(results)}\n{END}\nafter\n"
    write_pages(results, readme, card)
    assert [path.read_text() for path in written] == first
    card.write_text("no marks")
    (results / "README.md").write_text("as it was")
    with pytest.raises(InputError, match="B.md has no lines"):
        write_pages(results, readme, card)
    assert (results / "README.md").read_text() == "as it was"  # nothing is written by halves


def test_the_pages_are_up_to_date():
    results = ROOT / "data" / "results"
    assert (results / "README.md").read_text() == results_page(results)
    for file, expected in (("README.md", summary_table(results)), ("data/weights/README.md", model_card(results))):
        assert (ROOT / file).read_text().split(BEGIN)[1].split(END)[0] == f"\n{expected}\n"
