"""Draws the reproduced tables and figures from their results, one PNG each, and the images where a model fails most."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ullsam.data.corpus import Corpus, Sample
from ullsam.errors import InputError, reason
from ullsam.evaluation.metrics import instance_scores
from ullsam.evaluation.protocol import folder_name, make_prompts, select_records
from ullsam.files import whole
from ullsam.lab.arms import GRIDS, QUESTIONS, TABLES, Row
from ullsam.lab.replication import Reproduction
from ullsam.lab.verdicts import Answers, Sets, better_than_chance, interval, mean_score, scores, summary, verdicts
from ullsam.plots.charts import DPI, FONT, Picture, plain_axes, show_scores
from ullsam.plots.images import draw_points, square_around
from ullsam.plots.overlays import DARK, outline, overlay
from ullsam.predictor import Predictor
from ullsam.sbr import instance_ids

LIMIT = 300_000  # bytes of a PNG
SMALL = FONT - 1  # points
PANEL = 1.5  # inches: these grids have many panels
(BLUE, ORANGE, GREEN), GREY = DARK[:3], "#888888"
COLOURS = {"agrees": GREEN, "disagrees": ORANGE, "cannot tell": GREY}
MODELS = {"uSAM": (GREY, "s"), "uLLSAM without VLK": (ORANGE, "^"), "uLLSAM": (BLUE, "o")}
TYPE_LABELS = ("all", "V: what is seen", "H: hypotheses", "E: experiments")
TITLE = {"fontsize": FONT + 1, "x": 0.01, "ha": "left", "weight": "bold"}
BELOW = {"fontsize": SMALL, "x": 0.01, "ha": "left"}
RULES = {
    "median": "of each dataset the image, and of it the object, whose Dice is uLLSAM's median",
    "worst": "of each dataset the image, and of it the object, where uLLSAM's Dice is lowest",
}


def write_figures(job: Reproduction, names: Sequence[str], folder: Path, answers: Sequence[Answers] | None = None) -> None:
    """Writes one PNG per table and figure of which a claim was measured, two for grids: median and worst case.

    Args:
        job: its rows are measured; names: of TABLES; folder: made if absent.
        answers: of `read_answers`, for table6.
    """
    for name in names:
        if name in GRIDS:
            figures = {f"{name}_{rule}": grid(job, name, rule) for rule in RULES}
        else:
            figures = {name: questions_chart(answers) if name == "table6" else chart(name, job.results)}
        for file, figure in figures.items():
            if figure is not None:
                write_png(figure, folder / f"{file}.png")


def write_png(figure: Picture, path: Path, limit: int = LIMIT) -> Path:
    """Writes a figure with as many colours, and then as many pixels, as fit the limit in bytes.

    Raises:
        InputError: it does not fit.
    """
    for dpi in (90, 80, 70, 60, 50, 40):
        raw, palette = io.BytesIO(), Image.new("P", (1, 1))
        figure.savefig(raw, format="png", dpi=dpi)
        picture = Image.open(raw).convert("RGB")
        for half in (128, 48, 24):  # the commonest shades and, so that outlines are kept, as many of the rarer colours
            shades = picture.quantize(half, Image.Quantize.MEDIANCUT).getpalette()[: 3 * half]
            palette.putpalette(shades + picture.quantize(half, Image.Quantize.MAXCOVERAGE).getpalette()[: 3 * half])
            content = io.BytesIO()
            picture.quantize(palette=palette, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
            if content.tell() < limit:
                with whole(path) as part:
                    part.write_bytes(content.getvalue())
                return path
    raise InputError(f"{path} does not fit {limit} bytes; draw fewer panels.")


def chart(name: str, results: dict) -> Picture | None:
    """Dice, SA and differences of a table's rows with 95 % intervals over images; figures 3, 5 and 6 also by dataset.

    None where no claim of the table was measured.
    """
    table, by_dataset = TABLES[name], name in ("fig3", "fig5", "fig6")
    if not (claims := verdicts(table, results)):
        return None
    rows = [(row, sets) for row in table.rows if (sets := scores(row, results))]
    seeds = max(len(results["rows"][row.key]) for row, _ in rows)
    lines = textwrap.wrap(f"{summary(claims)} {table.note}".strip(), 150)
    lines.append(f"Bars: 95 % intervals over images; diamonds: the paper. Seeds: {seeds}.")
    heights = [0.3 * max(len(rows), 1.6 * len(claims)) + 0.9, *[2.6] * by_dataset]  # inches
    figure = Picture(figsize=(10, sum(heights) + 0.16 * len(lines) + 0.3), dpi=DPI, layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = parts[0].subplots(1, 3, width_ratios=(1.0, 1.0, 1.2))
    for k, metric in enumerate(("Dice", "SA")):
        points = [(mean_score(s)[k], interval(s)[:, k], row.paper and row.paper[k], BLUE) for row, s in rows]
        _intervals(axes[k], points, [f"{mean:.3f}" for mean, *_ in points], metric)
    axes[0].set_yticks(range(len(rows)), [textwrap.fill(row.label, 28) for row, _ in rows])
    points = [(c.ours, (c.low, c.high), c.paper, COLOURS[c.word]) for c in claims]
    texts = [f"{c.better}\nminus {c.worse}:\n{c.ours:+.3f}, {c.finding}" for c in claims]
    _intervals(axes[2], points, texts, "difference in Dice", beside=True)
    axes[2].axvline(0, color="black", linewidth=0.8)
    if by_dataset:
        by_model = {row.label: sets for row, sets in rows}
        columns = _specialists(results) if name == "fig3" else {"Dice by dataset": by_model}
        panels = parts[1].subplots(1, len(columns), squeeze=False)[0]
        for ax, (title, models) in zip(panels, columns.items(), strict=True):
            _dots(ax, models, title)
        parts[1].legend(*panels[0].get_legend_handles_labels(), fontsize=SMALL, frameon=False, loc="outside right upper")
    figure.suptitle(table.title, **TITLE)
    figure.supxlabel("\n".join(lines), **BELOW)
    return figure


def _intervals(ax: Axes, points: list[tuple], texts: list[str], title: str, beside: bool = False) -> None:
    """One (value, ends of its interval, the paper's value, colour) per line, with a text above it or beside the axes."""
    for y, ((value, ends, paper, colour), text) in enumerate(zip(points, texts, strict=True)):
        ax.plot(ends, [y, y], color=colour, linewidth=2)
        ax.scatter(value, y, 34, colour, zorder=3)
        if paper is not None:
            ax.scatter(paper, y, 34, "white", marker="D", edgecolors="black", zorder=2)
        if beside:
            place = {"xy": (1.02, y), "xycoords": ("axes fraction", "data"), "va": "center", "color": colour}
        else:
            place = {"xy": (value, y), "xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
        ax.annotate(text, fontsize=SMALL, **place)
    ax.set(ylim=(len(points) - 0.4, -0.6), yticks=[])
    plain_axes(ax, title=title, title_size=SMALL)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _specialists(results: dict) -> dict[str, dict[str, Sets]]:
    """Figure 3's panels: each model's two specialists in their own domain, in the other one, and the difference."""
    own, other = ({"uSAM": {}, "uLLSAM": {}} for _ in range(2))
    for row in TABLES["fig3"].rows:
        model, home, *_, away = row.label.split()
        (own if home == away else other)[model].update(scores(row, results))
    drop = {m: {s: own[m][s] - other[m][s] for s in own[m] if s in other[m]} for m in own}
    return {"Dice, (a) own domain": own, "Dice, (b) other domain": other, "Dice, (c) drop, (a) - (b)": drop}


def _dots(ax: Axes, models: dict[str, Sets], title: str) -> None:
    """Mean Dice of each dataset with its interval, models side by side."""
    names = sorted({name for sets in models.values() for name in sets})
    for k, (label, sets) in enumerate((label, sets) for label, sets in models.items() if sets):
        colour, marker = MODELS[label]
        x = [names.index(name) + 0.2 * (k - 1) for name in sets]
        single = [{name: values} for name, values in sets.items()]
        ax.vlines(x, *np.array([interval(s)[:, 0] for s in single]).T, colour, linewidth=1.5)
        ax.scatter(x, [mean_score(s)[0] for s in single], 24, colour, marker=marker, zorder=3, label=label)
    if "drop" in title:
        ax.axhline(0, color="black", linewidth=0.6, alpha=0.4)
    ax.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=25, ha="right")
    plain_axes(ax, title=title, title_size=SMALL)


def questions_chart(answers: Sequence[Answers] | None) -> Picture | None:
    """Fractions of right answers by type of question, ours and the paper's; None where nothing was answered."""
    if not answers:
        return None
    bars = {a.label: a.values for a in answers} | {f"paper: {name}": values for name, values in QUESTIONS.items()}
    scores = {label: {name: values[k] for name, values in bars.items()} for k, label in enumerate(TYPE_LABELS)}
    figure = show_scores(scores, "fraction of right answers", title=TABLES["table6"].title)
    figure.supxlabel(better_than_chance(answers), **BELOW)
    return figure


@dataclass(frozen=True)
class Example:
    """One line of a grid: an image, the masks of one or several models, and the object that it is about."""

    name: str  # of the dataset
    sample: Sample
    ids: np.ndarray  # (I,) objects
    prompts: dict[str, np.ndarray]  # of all objects
    masks: tuple[np.ndarray, ...] = ()  # of each model, bool (I, H, W)
    dices: tuple[np.ndarray, ...] = ()  # of each model, (I,)
    index: int = 0  # of the object

    def segmented(self, predictor: Predictor, vlk: bool) -> Example:
        """The example with the masks of one more model."""
        predictor.set_image(self.sample.image)
        masks = predictor.predict(**self.prompts, use_vlk=vlk).masks
        dices = instance_scores(masks, self.sample.labels, self.ids)[0]
        return replace(self, masks=(*self.masks, masks), dices=(*self.dices, dices))

    def chosen(self, rule: str) -> Example:
        """The example about the object with the last model's "median" or "worst" Dice."""
        return replace(self, index=_pick(sorted(zip(self.dices[-1], range(len(self.ids)), strict=True)), rule)[1])

    def draw(self, panels: Sequence[Axes]) -> None:
        """The object in its surroundings: image, truth with the points, then the mask of each model with its Dice."""
        i, labels = self.index, self.sample.labels
        rows, columns = np.nonzero(labels == self.ids[i])
        window = square_around(labels == self.ids[i], max(64, 3 * max(np.ptp(rows), np.ptp(columns))))
        image, truth = self.sample.image[window], (labels[window] == self.ids[i]).astype(np.int32)
        masks = [outline(overlay(image, masks[i][window].astype(np.int32)), truth) for masks in self.masks]
        for ax, picture in zip(panels, [image, outline(image, truth), *masks], strict=True):
            ax.imshow(picture)
            ax.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        panels[0].set_ylabel("\n".join(self.name.split("_", 1)), fontsize=SMALL)
        corner = window[1].start, window[0].start
        draw_points(panels[1], self.prompts["points"][i] - corner, self.prompts["labels"][i], size=22)
        for ax, dices in zip(panels[2:], self.dices, strict=True):
            ax.set_title(f"{dices[i]:.2f} ({dices.mean():.2f})", fontsize=SMALL, pad=2)


def _pick(ordered: list, rule: str):
    return ordered[0 if rule == "worst" else (len(ordered) - 1) // 2]


def _draw_grid(examples: list[Example], models: int) -> tuple[Picture, np.ndarray]:
    size = ((2 + models) * PANEL + 0.5, len(examples) * (PANEL + 0.2) + 0.6)
    figure = Picture(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(len(examples), 2 + models, squeeze=False)
    for example, panels in zip(examples, axes, strict=True):
        example.draw(panels)
    return figure, axes


def choose(results: dict, row: Row, rule: str) -> dict[str, str]:
    """Image of each dataset by "median" or "worst" Dice of a row, mean over seeds.

    Raises:
        InputError: the row was not measured.
    """
    if row.key not in results["rows"]:
        raise InputError(f"{row.label} was not measured; run `python -m ullsam reproduce` for this figure first.")
    dice = np.mean([seed["dice"] for seed in results["rows"][row.key].values()], axis=0)
    by_set: dict[str, list] = {}
    for (name, _, image), value in zip(results["images"][row.role], dice, strict=True):
        by_set.setdefault(name, []).append((value, image))
    return {name: _pick(sorted(found), rule)[1] for name, found in by_set.items()}


def grid(job: Reproduction, name: str, rule: str = "median") -> Picture:
    """One line per dataset: image, truth with the object's points, and the three models' masks, of the first seed's arms.

    Args:
        job: whose rows of the figure were measured; an arm that is no longer on disk is trained again.
        name: "fig4" or "fig7"; rule: of RULES.
    """
    rows = TABLES[name].rows
    images = choose(job.results, rows[-1], rule)
    cases = [case for case in job.cases(rows[0].role) if images.get(case.test.name) == case.sample.name]
    examples = [Example(case.test.name, case.sample, case.ids, case.prompts((1, 3))) for case in cases]
    for arm in dict.fromkeys(row.arm for row in rows):  # one model in memory at a time
        predictor = Predictor(job.train(arm, job.budget.seeds[0]))
        for row in (row for row in rows if row.arm == arm):
            examples = [example.segmented(predictor, row.vlk) for example in examples]
    figure, axes = _draw_grid([example.chosen(rule) for example in examples], len(rows))
    for ax, title in zip(axes[0], ("image", "truth and points", *(row.label for row in rows)), strict=True):
        ax.set_title(f"{title}\n{ax.get_title()}".strip(), fontsize=SMALL)
    figure.suptitle(f"{TABLES[name].title}, {rule} case", **TITLE)
    words = f"Chosen by rule: {RULES[rule]}.\nNumbers: Dice of the object (mean over the image's objects). Yellow: truth."
    figure.supxlabel(words, **BELOW)
    return figure


def worst_cases(predictor: Predictor, corpora: Sequence[Corpus], measured: dict) -> Picture:
    """One line per dataset: the image, the truth with the points, and the mask, where the Dice is lowest.

    Args:
        predictor: of the model that was measured.
        corpora: folders of the datasets.
        measured: what `python -m ullsam evaluate` wrote about that model and these folders, with points.

    Raises:
        InputError: a folder was not measured, or not with points, or has changed since.
    """
    results = measured.get("results", [measured])
    results = [result for result in results if isinstance(result, dict)] if isinstance(results, list) else []
    names, examples = [folder_name(corpus) for corpus in corpora], []
    for k, (name, corpus) in enumerate(zip(names, corpora, strict=True)):
        own = [result for result in results if result.get("data") == name]
        if len(own) != names.count(name):
            remedy = "give the folders that were measured, those of one name in the same order"
            raise InputError(f"The results tell of {len(own)} folders called {name}, not of {names.count(name)}; {remedy}.")
        examples.append(worst_case(predictor, corpus, own[names[:k].count(name)]))
    figure = _draw_grid(examples, 1)[0]
    figure.supxlabel("Number: Dice of the object (mean over the image's objects). Yellow: truth.", fontsize=SMALL)
    return figure


def worst_case(predictor: Predictor, corpus: Corpus, result: dict) -> Example:
    """The worst object of the worst image, with the points of its measurement, segmented again."""
    try:
        file = min(result["per_image"], key=lambda row: float(row["dice_instance"]))["file"]
        points, seed, vlk = tuple(map(int, result["points"])), int(result["seed"]), bool(result["vlk"])
    except (KeyError, TypeError, ValueError) as error:  # boxes are no numbers
        problem = f"The results of {corpus.folder} are not what `python -m ullsam evaluate` writes with points"
        raise InputError(f"{problem} ({reason(error)}); evaluate the model again.") from error
    found = [(i, r) for i, r in select_records(corpus, None, seed, None) if r.file == file]
    if not found:
        raise InputError(f"{corpus.folder} has no image {file}, which the results tell of; evaluate the model again.")
    index, record = found[0]
    sample = corpus.read(record)
    ids = instance_ids(sample.labels)
    prompts = make_prompts(sample.labels, ids, points, np.random.default_rng([seed, index]))  # as in `evaluate`
    return Example(folder_name(corpus), sample, ids, prompts).segmented(predictor, vlk).chosen("worst")
