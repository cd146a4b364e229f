"""Tables of the measured results, written between two marks of a Markdown file: no number is copied by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ullsam.errors import InputError
from ullsam.evaluate import mean_of_known

BEGIN, END = "<!-- results: python -m ullsam readme -->", "<!-- end of results -->"
ARMS = {"tiny": "uLLSAM-tiny", "tiny_novlk": "without VLK", "usam_tiny": "uSAM-tiny"}  # file prefix -> column
SETS = {"test": "In-domain test splits", "ood": "Out of domain, never trained or tuned on"}  # file suffix -> title


def update(readme: str | Path, results: str | Path) -> Path:
    """Replaces what stands between the marks of `readme` by the tables of the JSON files in `results`.

    Raises:
        InputError: the file or its marks are missing.
    """
    path = Path(readme)
    text = path.read_text() if path.is_file() else ""
    if BEGIN not in text or END not in text:
        raise InputError(f"{path} has no lines {BEGIN} and {END}; put them where the tables belong.")
    before, rest = text.split(BEGIN, 1)
    path.write_text(before + BEGIN + "\n" + tables(results) + END + rest.split(END, 1)[1])
    return path


def tables(results: str | Path) -> str:
    """All tables as Markdown; a measurement whose file is absent is left out."""
    folder, parts = Path(results), []
    for suffix, title in SETS.items():
        arms = {arm: _read(folder / f"{prefix}_{suffix}.json") for prefix, arm in ARMS.items()}
        arms = {arm: result for arm, result in arms.items() if result}
        if arms:
            parts.append(_scores(title, arms))
    words = _read(folder / "tiny_words.json")
    if words:
        parts.append(_words(words, _read(folder / "tiny_words_shuffled.json")))
    questions, clicks = _read(folder / "microvqa_tiny.json"), _read(folder / "click_latency.json")
    parts += [_questions(questions)] if questions else []
    parts += [_clicks(clicks)] if clicks else []
    return "\n".join(parts)


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _scores(title: str, arms: dict[str, dict]) -> str:
    """One row per dataset, Dice / SA(0.5) per object for each arm; the mean last."""
    first = next(iter(arms.values()))
    lines = [f"**{title}**, Dice / SA(0.5) per object:\n", _row(["dataset", "images", "objects", *arms])]
    lines.append(_row(["---"] * (3 + len(arms))))
    for i, row in enumerate(first["results"]):
        pairs = [_pair(result["results"][i]) for result in arms.values()]
        lines.append(_row([row["data"], row["n_images"], row["n_instances"], *pairs]))
    means = [f"**{_pair(result['mean'])}**" for result in arms.values()]
    lines.append(_row(["**mean of the datasets**", "", "", *means]))
    points = "{} positive and {} negative points".format(*first["results"][0]["points"])
    conditions = f"\n{points} per object (SBR), seed {first['results'][0]['seed']}; {_command(first)}.\n"
    return "\n".join([*lines, conditions])


def _words(result: dict, shuffled: dict | None) -> str:
    """One row per dataset: how often the description names modality and structure, and how often that of another image
    does by chance."""
    arms = [arm for arm in (result, shuffled) if arm]
    columns = [("modality", 0), ("structure", 0), *((key, 1) for key in ("modality", "structure") if shuffled)]
    titles = ["modality", "structure", "modality, image of another set", "structure, image of another set"]
    lines = ["**Descriptions**, share of images whose description names the right modality and structure:\n"]
    lines.append(_row(["dataset", "images", "distinct texts", *titles[: len(columns)]]))
    lines.append(_row(["---"] * (3 + len(columns))))
    for i, row in enumerate(result["results"]):
        lines.append(_row([row["data"], row["n_images"], row["distinct"]]
                          + [_number(arms[arm]["results"][i][key]) for key, arm in columns]))  # fmt: skip
    means = [_number(mean_of_known(row[key] for row in arms[arm]["results"])) for key, arm in columns]
    lines.append(_row(["**mean of the datasets**", "", "", *(f"**{value}**" for value in means)]))
    return "\n".join([*lines, f"\n{_command(result)}.\n"])


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
    return (f"**Questions** about synthetic images ({count}, several choices), share of right answers and 95 % interval: "
            f"{', '.join(shares)}; chance {chance}. {_command(result)}.\n")  # fmt: skip


def _clicks(result: dict) -> str:
    """Time of a click, with its conditions."""
    c = result["conditions"]
    times = f"{result['median_ms']:.0f} ms (median), {result['p95_ms']:.0f} ms (95 %) of {result['clicks']} clicks"
    where = f"{c['front_end']}, {c['image']}, {c['model']}, {c['threads']} thread of {c['cores']} cores"
    return f"**From a click to its mask on the page**: {times}; {where}; {c['note']}. {_command(result)}.\n"


def _command(result: dict) -> str:
    """The command with its folders, whose names stand in the table, left out."""
    return "`" + re.sub(r"--data .*? (?=--)", "--data FOLDER ... ", result["command"]) + "`"


def _pair(row: dict) -> str:
    return f"{_number(row['dice_instance'])} / {_number(row['sa50_instance'])}"


def _number(value) -> str:
    return "" if value is None else f"{value:.3f}"


def _row(cells: list) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"
