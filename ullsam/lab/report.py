"""Tables of the measured results, written between two marks of a Markdown file: no number is copied by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from ullsam.errors import InputError
from ullsam.evaluation.caption_metrics import mean_of_known
from ullsam.lab.markdown import table_head, table_row
from ullsam.lab.report_paper import paper_tables
from ullsam.lab.report_tiny import claims_table, speed_table
from ullsam.lab.reproduce_report import difference, interval

BEGIN, END = "<!-- results: python -m ullsam readme -->", "<!-- end of results -->"
ARMS = {"tiny": "uLLSAM-tiny", "tiny_novlk": "without VLK", "usam_tiny": "uSAM-tiny"}  # file prefix -> column
WORDS = {"own image": "", "image of another set": "_shuffled", "no image": "_text_only"}  # what is shown -> file suffix
LARGEST = ("full", "evening", "class")  # budgets of `reproduce`
SETS = {"test": "In-domain test splits", "ood": "Out of domain, never trained or tuned on"}  # file suffix -> title


def update(readme: str | Path, text: str) -> Path:
    """Replaces what stands between the marks of a Markdown file by `text`.

    Raises:
        InputError: the file or its marks are missing.
    """
    path = Path(readme)
    old = path.read_text() if path.is_file() else ""
    if BEGIN not in old or END not in old:
        raise InputError(f"{path} has no lines {BEGIN} and {END}; put them where the tables belong.")
    before, rest = old.split(BEGIN, 1)
    path.write_text(before + BEGIN + "\n" + text + END + rest.split(END, 1)[1])
    return path


def tables(results: str | Path) -> str:
    """All tables as Markdown; a measurement whose file is absent is left out."""
    folder, parts = Path(results), []
    for suffix, title in SETS.items():
        arms = {arm: read_result(folder / f"{prefix}_{suffix}.json") for prefix, arm in ARMS.items()}
        arms = {arm: result for arm, result in arms.items() if result}
        if arms:
            parts.append(_scores(title, arms))
        click = read_result(folder / f"tiny_click_{suffix}.json")
        parts += [_one_click(click)] if click else []
    words = {shown: read_result(folder / f"tiny_words{end}.json") for shown, end in WORDS.items()}
    parts += [_words({shown: result for shown, result in words.items() if result})] if words["own image"] else []
    questions, clicks = read_result(folder / "microvqa_tiny.json"), read_result(folder / "click_latency.json")
    parts += [_questions(questions)] if questions else []
    claims = {name: result for name in LARGEST if (result := read_result(folder / f"reproduce_{name}.json"))}
    parts += [claims_table(claims)] if claims else []
    speed = read_result(folder / "bench_tiny.json")
    parts += [speed_table(speed)] if speed else []
    parts += [_clicks(clicks)] if clicks else []
    users = read_result(folder / "app_users.json")
    parts += [_users(users)] if users else []
    paper = read_result(folder / "bench_paper.json")
    parts += [paper_tables(paper)] if paper else []
    return "\n".join(parts)


def read_result(path: Path) -> dict | None:
    """A results file; None where it is absent."""
    return json.loads(path.read_text()) if path.is_file() else None


def _scores(title: str, arms: dict[str, dict]) -> str:
    """One row per dataset, Dice / SA(0.5) per object for each arm; the mean last."""
    first_name, first = next(iter(arms.items()))
    lines = [f"**{title}**, Dice / SA(0.5) per object:\n", *table_head(["dataset", "images", "objects", *arms])]
    for i, row in enumerate(first["results"]):
        pairs = [_pair(result["results"][i]) for result in arms.values()]
        lines.append(table_row([row["data"], row["n_images"], row["n_instances"], *pairs]))
    means = [f"**{_pair(result['mean'])}**" for result in arms.values()]
    lines.append(table_row(["**mean of the datasets**", "", "", *means]))
    lines.append(table_row(["95 % interval (Dice)", "", "", *(_interval(result) for result in arms.values())]))
    points = "{} positive and {} negative points".format(*first["results"][0]["points"])
    gaps = [f"{first_name} minus {name} {_gap(first, result)}" for name, result in arms.items() if result is not first]
    compared = f"Dice, {'; '.join(gaps)}. " if gaps else ""
    conditions = f"Intervals hold 95 % of draws of images; {points} per object (SBR), seed {first['results'][0]['seed']}"
    return "\n".join([*lines, f"\n{compared}{conditions}; {_command(first)}.\n"])


def _one_click(result: dict) -> str:
    """The mean scores where each object was clicked once."""
    return (
        f"With **one click** inside and none outside, the same images: {ARMS['tiny']} {_pair(result['mean'])} "
        f"(95 % interval of Dice {_interval(result)}); {_command(result)}.\n"
    )


def _sets(result: dict) -> dict[str, np.ndarray]:
    """Dice and SA of each image of each dataset, (1, images, 2)."""
    keys = ("dice_instance", "sa50_instance")
    return {r["data"]: np.array([[[image[key] for key in keys] for image in r["per_image"]]]) for r in result["results"]}


def _interval(result: dict) -> str:
    low, high = interval(_sets(result))[:, 0]
    return f"{low:.3f} to {high:.3f}"


def _gap(ours: dict, other: dict) -> str:
    mean, low, high = difference(_sets(ours), _sets(other))
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _words(conditions: dict[str, dict]) -> str:
    """What the descriptions get right, per dataset; then the means when another image or none is shown."""
    rows, command = conditions["own image"]["results"], _command(conditions["own image"])
    columns = ["modality", "structure", "count", "hallucinated"]
    titles = ["right modality", "right structure", "right number", "something false"]
    lines = ["**Descriptions**, share of texts with:\n", *table_head(["dataset", "images", "distinct texts", *titles])]
    for row in rows:
        lines.append(table_row([row["data"], row["n_images"], row["distinct"], *(_number(row[c]) for c in columns)]))
    for shown, result in conditions.items():
        means = [_number(mean_of_known(row[c] for row in result["results"])) for c in columns]
        lines.append(table_row([f"**mean, {shown}**", "", "", *(x and f"**{x}**" for x in means)]))
    chance = _number(mean_of_known(row["count_chance"] for row in rows))
    note = f"A number is right within its band; always saying a set's most frequent band gives {chance}. {command}."
    return "\n".join([*lines, f"\n{note}\n"])


def _questions(result: dict) -> str:
    """Shares of right answers by what was shown: its own image, none, or another one's."""
    rows, names = result["results"], {"none": "no"}
    shares = [
        "{} image {} ({:.3f} to {:.3f})".format(
            names.get(row["image"], row["image"]), _number(row["accuracy"]), *row["interval"]
        )
        for row in rows
    ]
    count, chance = rows[0]["n_questions"], _number(rows[0]["chance"])
    return (
        f"**Questions** about synthetic images ({count}, several choices), share of right answers and 95 % interval: "
        f"{', '.join(shares)}; chance {chance}. {_command(result)}.\n"
    )


def _clicks(result: dict) -> str:
    """Time of a click, with its conditions."""
    c = result["conditions"]
    times = f"{result['median_ms']:.0f} ms (median), {result['p95_ms']:.0f} ms (95 %) of {result['clicks']} clicks"
    where = f"{c['front_end']}, {c['image']}, {c['model']}, {c['threads']} thread of {c['cores']} cores"
    return f"**From a click to its mask on the page**: {times}; {where}; {c['note']}. {_command(result)}.\n"


def _users(result: dict) -> str:
    """What several people at once in the app wait for, one row for each number of people."""
    c, names = result["conditions"], ("page ready", "first mask", "click, median", "click, 95 %", "memory of all")
    rows = []
    for tried in result["tried"]:
        ready, first = (f"{tried['seconds'][part]['largest']:.0f} s" for part in ("ready", "first_mask"))
        click, memory = tried["click_ms"], max(held["sum_mb"] for held in tried["memory"].values()) / 1000
        rows.append(
            table_row(
                [tried["users"], ready, first, f"{click['median']:.0f} ms", f"{click['p95']:.0f} ms", f"{memory:.1f} GB"]
            )
        )
    note = (
        f"All come at the same moment, upload at the same moment, and click {c['pause_s']:g} s after each mask; of pages "
        f"and uploads the slowest is told. Server, kernels and browsers share {c['cores']} cores; {c['note']}. Picture, "
        f"files and masks of each were their own. {_command(result)}."
    )
    return "\n".join(["**Several people at once in the app**:\n", *table_head(["people", *names]), *rows, f"\n{note}\n"])


def _command(result: dict) -> str:
    """The command with its folders, whose names stand in the table, left out."""
    return "`" + re.sub(r"--data .*? (?=--)", "--data FOLDER ... ", result["command"]) + "`"


def _pair(row: dict) -> str:
    return f"{_number(row['dice_instance'])} / {_number(row['sa50_instance'])}"


def _number(value) -> str:
    return "" if value is None else f"{value:.3f}"
