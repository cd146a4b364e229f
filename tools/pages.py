"""The repository's pages of measured results, written from their JSON files: no number is copied by hand.

Run by `make pages`: data/results/README.md, the small table of README.md, and the tables of the model card.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from ullsam.errors import InputError
from ullsam.evaluation.statistics import mean_of_known
from ullsam.files import whole
from ullsam.lab.arms import TABLES
from ullsam.lab.reports import aims_table, markdown_table, phases_table, three_decimals, with_interval
from ullsam.lab.verdicts import difference, interval, summary, verdicts

BEGIN, END = "<!-- results: make pages -->", "<!-- end of results -->"
MODELS = {"tiny": "uLLSAM-tiny", "tiny_novlk": "without knowledge", "usam_tiny": "uSAM-tiny"}  # file prefix -> column
SETS = {"test": "in domain", "ood": "out of domain", "click_test": "in domain, one click"}  # file suffix -> title
INPUTS = {"own image": "", "image of another set": "_shuffled", "no image": "_text_only"}  # of descriptions -> file suffix
BUDGETS = ("full", "short", "smoke")  # of `reproduce`, the largest first
OTHERS = {"segment_anything": "segment_anything's predictor", "transformers": "transformers' SamModel"}
PREFACE = """# Measured results

Written by `make pages` from the JSON files in this folder; do not edit it by hand. **Dice** says how well a
mask and the truth overlap (1 is perfect), a mean over objects. **SA** is the fraction of objects whose mask has an IoU of at
least 0.5 with the truth. **Knowledge** is what the language model hands to SAM; uSAM-tiny is the same SAM, trained alike
without it. Intervals hold 95 % of draws of images (bootstrap). Notebook 07 explains each measure.
"""


def write_pages(results: str | Path, readme: str | Path, card: str | Path) -> list[Path]:
    """Writes the page of all results and what stands between the marks of the README and of the model card.

    Args:
        results: folder of the JSON files, where the page is written to; readme, card: files with the marks.

    Returns:
        The three files.

    Raises:
        InputError: a file or its marks are missing, or cannot be written.
    """
    pages = {Path(results) / "README.md": results_page(results)}
    for path, block in {Path(readme): summary_table(results), Path(card): model_card(results)}.items():
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        if BEGIN not in old or END not in old:
            raise InputError(f"{path} has no lines {BEGIN} and {END}; put them where the tables belong.")
        before, rest = old.split(BEGIN, 1)
        pages[path] = f"{before}{BEGIN}\n{block}\n{END}{rest.split(END, 1)[1]}"
    for path, text in pages.items():
        with whole(path) as part:
            part.write_text(text, encoding="utf-8")
    return list(pages)


def results_page(results: str | Path) -> str:
    """All tables, one section each; a measurement whose file is absent is left out."""
    folder = Path(results)
    sections = [_masks(title, models) for title, models in _mask_results(folder).items()]
    sections += [_descriptions({name: _read(folder / f"tiny_words{end}.json") for name, end in INPUTS.items()})]
    sections += [_claims({name: found for name in BUDGETS if (found := _read(folder / f"reproduce_{name}.json"))})]
    sections += [section(found) for file, section in FILES.items() if (found := _read(folder / file))]
    return "\n".join([PREFACE, *filter(None, sections)])


def summary_table(results: str | Path) -> str:
    """The README's small table: mean Dice and SA of the models in domain, out of domain, and with one click."""
    rows = [
        [title, *(_pair(models[name]["mean"]) if name in models else "" for name in MODELS.values())]
        for title, models in _mask_results(Path(results)).items()
    ]
    return markdown_table(["mean Dice / SA", *MODELS.values()], rows)


def model_card(results: str | Path) -> str:
    """The card's tables: what the weights reach, and the runs behind them (from training_log.json)."""
    folder, keys = Path(results), ("dice_instance", "sa50_instance", "dice_image", "msa")
    means = [
        [f"{name}, {title}", *(three_decimals(result["mean"][key]) for key in keys)]
        for title, models in _mask_results(folder).items()
        for name, result in models.items()
    ]
    logs, runs = _read(folder / "training_log.json") or {}, []
    for name, log in logs.items():
        tenth = max(1, len(log) // 10)
        first, last = (np.mean([entry["loss"] for entry in part]) for part in (log[:tenth], log[-tenth:]))
        runs.append([name, log[-1]["step"], f"{log[-1]['seconds'] / 3600:.2f}", f"{first:.2f}", f"{last:.2f}"])
    hours = sum(log[-1]["seconds"] for log in logs.values()) / 3600
    return "\n\n".join(
        [
            markdown_table(
                ["mean of the datasets", "Dice", "SA per object", "Dice per image", "mSA of the label map"], means
            ),
            f"The runs behind both models took {hours:.1f} hours on two cores, some shared with other work. What each was "
            "for stands in `ullsam/tiny/README.md`; losses are means over the first and the last tenth of a run.",
            markdown_table(["run", "steps", "hours", "loss at first", "loss at last"], runs),
        ]
    )


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _mask_results(folder: Path) -> dict[str, dict[str, dict]]:
    """Title of a group of datasets -> model -> what `evaluate` wrote, of those that were measured."""
    found = {}
    for suffix, title in SETS.items():
        models = {name: _read(folder / f"{prefix}_{suffix}.json") for prefix, name in MODELS.items()}
        found[title] = {name: result for name, result in models.items() if result}
    return {title: models for title, models in found.items() if models}


def _section(title: str, says: str, table: str, conditions: str, result: dict) -> str:
    """The folders of the command are left out; their names stand in the table."""
    command = re.sub(r"--data .*? (?=--)", "--data FOLDER ... ", result["command"])
    return f"## {title}\n\n{says}\n\n{table}\n\n{conditions} Made by `{command}`.\n"


def _pair(row: dict) -> str:
    return f"{three_decimals(row['dice_instance'])} / {three_decimals(row['sa50_instance'])}"


def _masks(title: str, models: dict[str, dict]) -> str:
    """One row per dataset, Dice / SA of each model, and the means; the first model is compared with the others."""
    (name, first), *others = models.items()
    keys, rows = ("dice_instance", "sa50_instance"), []
    sets = {
        model: {r["data"]: np.array([[[image[key] for key in keys] for image in r["per_image"]]]) for r in result["results"]}
        for model, result in models.items()
    }
    for i, row in enumerate(first["results"]):
        pairs = [_pair(result["results"][i]) for result in models.values()]
        rows.append([row["data"], row["n_images"], row["n_instances"], *pairs])
    rows.append(["**mean of the datasets**", "", "", *(f"**{_pair(result['mean'])}**" for result in models.values())])
    ends = ["{:.3f} to {:.3f}".format(*interval(sets[model])[:, 0]) for model in models]
    rows.append(["95 % interval (Dice)", "", "", *ends])
    gaps = [with_interval(*difference(sets[name], sets[model]), "+") for model, _ in others]
    rows += [[f"{name} minus this (Dice)", "", "", "", *gaps]] if gaps else []
    points, seed = first["results"][0]["points"], first["results"][0]["seed"]
    mean, count = three_decimals(first["mean"]["dice_instance"]), len(first["results"])
    says = f"{name} reaches a mean Dice of {mean} on {count} datasets."
    conditions = f"Dice / SA. Points of each object, drawn by SBR: {points[0]} inside and {points[1]} outside, seed {seed}."
    table = markdown_table(["dataset", "images", "objects", *models], rows)
    return _section(f"Masks: {title}", says, table, conditions, first)


def _descriptions(results: dict[str, dict | None]) -> str:
    """What the descriptions get right, per dataset; then the means when another image or none is shown."""
    if not (own := results["own image"]):
        return ""
    columns, rows = ("modality", "structure", "count", "hallucinated"), []
    for row in own["results"]:
        rows.append([row["data"], row["n_images"], row["distinct"], *(three_decimals(row[c]) for c in columns)])
    for name, result in results.items():
        means = [three_decimals(mean_of_known(row[c] for row in result["results"])) for c in columns] if result else []
        rows += [[f"**mean, {name}**", "", "", *(mean and f"**{mean}**" for mean in means)]] if result else []
    keys = ("modality", "hallucinated", "count_chance")
    right, wrong, chance = (mean_of_known(row[key] for row in own["results"]) for key in keys)
    return _section(
        "Descriptions",
        f"Shown the own image, {right:.0%} of the texts name the modality rightly, and {wrong:.0%} say something false.",
        markdown_table(
            ["dataset", "images", "distinct texts", "right modality", "structure", "number", "something false"], rows
        ),
        f"A number is right within its band; always saying a set's most frequent band gives {chance:.3f}.",
        own,
    )


def _questions(result: dict) -> str:
    rows, first = result["results"], result["results"][0]
    answers = [[row["image"], with_interval(row["accuracy"], *row["interval"])] for row in rows]
    return _section(
        "Questions",
        f"Shown its own image, the model answers {first['accuracy']:.1%} of {first['n_questions']} questions about "
        f"synthetic images rightly; choosing at random gives {first['chance']:.1%}.",
        markdown_table(["image", "right (95 % interval)"], answers),
        "Each question has several choices.",
        result,
    )


def _claims(measured: dict[str, dict]) -> str:
    """One row for each of the paper's claims, from the first of several budgets that measured it."""
    found, rows = {}, []
    for name, table in TABLES.items():
        for budget, results in measured.items():
            seeds = {row.label: len(results["rows"].get(row.key, {})) for row in table.rows}
            for v in verdicts(table, results):
                if v.asked == "paper":
                    made = f"{budget}, {min(seeds[v.better], seeds[v.worse])}"
                    found.setdefault((name, v.better, v.worse), (table.title.split(":")[0], v, made))
    if not found:
        return ""
    for title, v, made in found.values():
        paper, here = "" if v.paper is None else f"{v.paper:+.3f}", with_interval(v.ours, v.low, v.high, "+")
        rows.append([title, f"{v.better} > {v.worse}", paper, here, v.word, made])
    used = []
    for name, results in measured.items():
        b = results["conditions"]["budget"]
        cost = f"{b['steps']} steps of {b['batch_size']} images, {b['images'] or 'all'} images of each test set"
        used.append(f"{name}: {cost}, [every number](reproduce_{name}/tables.md).")
    return _section(
        "The paper's tables and figures at tiny scale",
        summary([v for _, v, _ in found.values()]),
        markdown_table(["", "claim", "Dice, paper", "Dice, here (95 % interval)", "verdict", "budget, seeds"], rows),
        f"Each arm starts from uSAM-tiny. {' '.join(used)}",
        {"command": "`, `".join(results["command"] for results in measured.values())},
    )


def _reached(result: dict) -> str:
    reached = [x["reached"] for x in result["aims"].values() if "reached" in x]
    return f"{sum(reached)} of {len(reached)} aims are reached."


def _conditions(result: dict) -> str:
    values = result["conditions"] | result["conditions"].get("versions", {})
    return "; ".join(f"{name.replace('_', ' ')}: {x}" for name, x in values.items() if not isinstance(x, dict)) + "."


def _speed(result: dict) -> str:
    """Aims beside what was measured, and how long others take for a plain SAM of the same size (processor time)."""
    work = result["work"]
    notes = [f"A description takes {w['times']['ullsam']['median_s']:.1f} s." for w in work if w["work"] == "caption"]
    if t := result["training"]:
        windows = f"{t['images_per_step']} windows of {t['view_px']} px"
        notes.append(f"Training makes {t['steps_per_s']:.2g} steps per second ({windows}).")
    for other, name in OTHERS.items():
        ratios = []
        for task in ("ready", "point"):  # over the image sizes, for one object
            times = [w["times"] for w in work if w["work"] == task and w["objects"] == 1]
            found = [x[other]["cpu_median_s"] / x["plain_ullsam"]["cpu_median_s"] for x in times]
            ratios.append(f"{min(found):.2g} to {max(found):.2g}")
        notes.append(f"{name} takes {ratios[0]} times as long as ours for an image, {ratios[1]} for a click (plain SAM).")
    text = f"{' '.join(notes)} Conditions: {_conditions(result)}"
    return _section("Speed of tiny on one core", _reached(result), aims_table(result), text, result)


def _clicks(result: dict) -> str:
    row = [result["clicks"], f"{result['median_ms']:.0f} ms", f"{result['p95_ms']:.0f} ms"]
    says = f"Half of the clicks show their mask within {row[1]}."
    table = markdown_table(["clicks", "median", "95 %"], [row])
    return _section("From a click to its mask on the page", says, table, f"Conditions: {_conditions(result)}", result)


def _users(result: dict) -> str:
    """What several people at once in the app wait for, one row for each number of people."""
    rows = []
    for tried in result["tried"]:
        ready, first = (f"{tried['seconds'][part]['largest']:.0f} s" for part in ("ready", "first_mask"))
        median, slow = (f"{tried['click_ms'][key]:.0f} ms" for key in ("median", "p95"))
        memory = max(held["sum_mb"] for held in tried["memory"].values()) / 1000
        rows.append([tried["users"], ready, first, median, slow, f"{memory:.1f} GB"])
    return _section(
        "Several people at once in the app",
        f"With {rows[-1][0]} people the last page is ready after {rows[-1][1]}; half of the clicks take {rows[-1][3]}.",
        markdown_table(["people", "page ready", "first mask", "click, median", "click, 95 %", "memory of all"], rows),
        "All come, upload, and click at the same moments, with a pause after each mask; of pages and uploads the slowest is "
        f"told. Picture, files and masks of each were their own. Conditions: {_conditions(result)}",
        result,
    )


def _paper_size(result: dict) -> str:
    rates = ", ".join(f"{rate:.0f} GFLOP/s in {floats}" for floats, rate in result["gemm_gflops_per_second"].items())
    text = f"Conditions: {result['what']}. {_conditions(result)} Large matrices: {rates}."
    tables = f"{aims_table(result)}\n\n{phases_table(result)}"
    return _section("At the paper's size", _reached(result), tables, text, result)


FILES = {
    "microvqa_tiny.json": _questions,
    "bench_tiny.json": _speed,
    "click_latency.json": _clicks,
    "app_users.json": _users,
    "bench_paper.json": _paper_size,
}


if __name__ == "__main__":
    ROOT = Path(__file__).parents[1]
    for written in write_pages(ROOT / "data/results", ROOT / "README.md", ROOT / "data/weights/README.md"):
        print(f"Updated {written.relative_to(ROOT)}")
