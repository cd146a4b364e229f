"""Draws the reproduced tables and figures from their results, one PNG each, the paper's value beside ours."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ullsam.data.io import write_atomic
from ullsam.errors import InputError
from ullsam.lab.reproduce_questions import KINDS, PAPER, Answers, verdict
from ullsam.lab.reproduce_report import Sets, Verdict, interval, mean_score, origin, scores, summary, verdicts
from ullsam.lab.reproduce_tables import DOMAINS, TABLES, Table
from ullsam.plots.charts import Picture

DPI, FONT, LIMIT = 90, 8, 300_000  # bytes of a PNG
BLUE, ORANGE, GREY, GREEN = "#0072b2", "#d55e00", "#888888", "#009e73"
COLOURS = {"agrees": GREEN, "disagrees": ORANGE, "cannot tell": GREY}
QUESTION_KINDS = ("all", "V: what is seen", "H: hypotheses", "E: experiments")
STYLES = {"uSAM": (GREY, "s"), "uLLSAM without VLK": (ORANGE, "^"), "uLLSAM": (BLUE, "o")}


def write_png(figure: Picture, path: Path, limit: int = LIMIT) -> Path:
    """Writes a figure with as many colours, and then as many pixels, as fit the limit in bytes."""
    for dpi in (DPI, 80, 70, 60, 50, 40):
        raw = io.BytesIO()
        figure.savefig(raw, format="png", dpi=dpi)
        picture = Image.open(raw).convert("RGB")
        for colours in (256, 96, 48):
            content = io.BytesIO()
            _few_colours(picture, colours).save(content, "PNG", optimize=True)
            if content.tell() < limit:
                write_atomic(path, content.getvalue())
                return path
    raise InputError(f"{path} does not fit {limit} bytes; draw fewer panels.")


def _few_colours(picture: Image.Image, count: int) -> Image.Image:
    """A palette image: the commonest shades and, so that marks and outlines are kept, as many of the rarer colours."""
    methods, palette = (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE), Image.new("P", (1, 1))
    shades, marks = (picture.quantize(count // 2, method).getpalette() for method in methods)
    palette.putpalette(shades[: 3 * (count // 2)] + marks[: 3 * (count // 2)])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def chart(name: str, results: dict) -> Picture | None:
    """Dice, SA and differences of a table's rows with 95 % intervals over images; figures 3, 5 and 6 also by dataset.

    None where no claim of the table was measured.
    """
    table = TABLES[name]
    rows = [(row, sets) for row in table.rows if (sets := scores(row, results))]
    claims = verdicts(table, results)
    if not claims:
        return None
    by_set = name in ("fig3", "fig5", "fig6")
    high = 0.3 * max(len(rows), 1.6 * len(claims)) + 0.9
    text = _caption(name, table, results, claims)
    figure = Picture(figsize=(10, high + 2.6 * by_set + 0.16 * text.count("\n") + 0.5), dpi=DPI, layout="constrained")
    parts = figure.subfigures(1 + by_set, 1, squeeze=False, height_ratios=[high, 2.6][: 1 + by_set])[:, 0]
    axes = parts[0].subplots(1, 3, width_ratios=(1.0, 1.0, 1.2))
    for k, metric in enumerate(("Dice", "SA")):
        _values(axes[k], rows, k, metric)
    _labels(axes[0], [row.label for row, _ in rows])
    axes[1].set_yticks([])
    _differences(axes[2], claims)
    if by_set:
        _by_dataset(parts[1], name, results)
    figure.suptitle(table.title, fontsize=FONT + 2, x=0.01, ha="left", weight="bold")
    figure.supxlabel(text, fontsize=FONT, x=0.01, ha="left")
    return figure


def _caption(name: str, table: Table, results: dict, claims: list[Verdict]) -> str:
    said = " ".join(x for x in (summary(table, results), origin(results) if name == "table3" else "", table.note) if x)
    seeds = max(len(found) for row in table.rows if (found := results["rows"].get(row.key)))
    lines = f"Bars: 95 % intervals over images; diamonds: the paper. Seeds: {seeds}."
    return "\n".join([*textwrap.wrap(said, 150), lines])


def _values(ax: Axes, rows: list, column: int, title: str) -> None:
    """One point with its interval per row, and the paper's value as a diamond."""
    for y, (row, sets) in enumerate(rows):
        mean, ends = mean_score(sets)[column], interval(sets)[:, column]
        ax.plot(ends, [y, y], color=BLUE, linewidth=2)
        ax.scatter(mean, y, 34, BLUE, zorder=3)
        ax.annotate(f"{mean:.3f}", (mean, y), (0, 5), textcoords="offset points", ha="center", fontsize=FONT - 1)
        if row.paper:
            ax.scatter(row.paper[column], y, 34, "white", marker="D", edgecolors="black", zorder=2)
    _frame(ax, len(rows), title)


def _differences(ax: Axes, claims: list[Verdict]) -> None:
    for y, claim in enumerate(claims):
        colour = COLOURS[claim.word]
        ax.plot([claim.low, claim.high], [y, y], color=colour, linewidth=2)
        ax.scatter(claim.ours, y, 34, colour, zorder=3)
        if claim.paper is not None:
            ax.scatter(claim.paper, y, 34, "white", marker="D", edgecolors="black", zorder=2)
        words = f"{claim.better}\nminus {claim.worse}:\n{claim.ours:+.3f}, {claim.paper_words}: {claim.outcome}"
        ax.annotate(words, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=FONT - 1, color=colour)
    ax.axvline(0, color="black", linewidth=0.8)
    _frame(ax, len(claims), "difference in Dice")
    ax.set_yticks([])


def _labels(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), ["\n".join(textwrap.wrap(name, 28)) for name in names])


def _frame(ax: Axes, count: int, title: str) -> None:
    ax.set_ylim(count - 0.4, -0.6)
    ax.set_title(title, fontsize=FONT)
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _by_dataset(part, name: str, results: dict) -> None:
    if name == "fig3":
        _by_specialist(part, results)
    else:
        ax = part.subplots()
        _dots(ax, {row.label: scores(row, results) for row in TABLES[name].rows}, "Dice by dataset")
        part.legend(*ax.get_legend_handles_labels(), fontsize=FONT - 1, frameon=False, loc="outside right upper")


def _by_specialist(part, results: dict) -> None:
    own, other = ({model: _specialist(model, home, results) for model in ("uSAM", "uLLSAM")} for home in (True, False))
    drop = {m: {s: own[m][s] - other[m][s] for s in own[m] if s in other[m]} for m in own}
    titles = ("(a) own domain", "(b) other domain", "(c) drop, (a) - (b)")
    axes = part.subplots(1, 3)
    for ax, rows, title in zip(axes, (own, other, drop), titles, strict=True):
        _dots(ax, rows, f"Dice, {title}")
    axes[2].axhline(0, color="black", linewidth=0.6, alpha=0.4)
    part.legend(*axes[0].get_legend_handles_labels(), fontsize=FONT - 1, frameon=False, loc="outside right upper")


def _specialist(model: str, home: bool, results: dict) -> Sets:
    """Scores of a model's two specialists, each on the datasets of its own domain or of the other one."""
    pairs = [(a, b) for a in DOMAINS for b in DOMAINS if (a == b) == home]
    wanted = {f"{model} {a} specialist on {b}" for a, b in pairs}
    return {k: v for row in TABLES["fig3"].rows if row.label in wanted for k, v in scores(row, results).items()}


def _dots(ax: Axes, rows: dict[str, Sets], title: str) -> None:
    """Mean Dice of each dataset with its interval, models side by side."""
    names = sorted({name for sets in rows.values() for name in sets})
    for k, (label, sets) in enumerate((label, sets) for label, sets in rows.items() if sets):
        colour, marker = STYLES[label]
        x = [names.index(name) + 0.2 * (k - 1) for name in sets]
        single = [{name: values} for name, values in sets.items()]
        ends = np.array([interval(s)[:, 0] for s in single])  # (sets, 2)
        ax.vlines(x, ends[:, 0], ends[:, 1], colour, linewidth=1.5)
        ax.scatter(x, [mean_score(s)[0] for s in single], 24, colour, marker=marker, zorder=3, label=label)
    ax.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=25, ha="right")
    ax.set_title(title, fontsize=FONT)
    ax.tick_params(labelsize=FONT - 2)
    ax.spines[["top", "right"]].set_visible(False)


def questions_chart(answers: list[Answers]) -> Picture:
    """Shares of right answers by kind of question: ours with intervals on the left, the paper's beside them."""
    figure = Picture(figsize=(10, 3.4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for k, a in enumerate(answers):
        _share_bars(left, k, len(answers), a.label, a.values)
        left.plot([0.8 * (k + 0.5) / len(answers) - 0.4] * 2, a.interval, color="black", linewidth=1.2)
    for k, (label, values) in enumerate(PAPER.items()):
        _share_bars(right, k, len(PAPER), label, values)
    for ax, title in ((left, "here: made-up questions (interval: all)"), (right, "paper: MicroVQA")):
        ax.set_xticks(range(len(KINDS)), QUESTION_KINDS)
        ax.set_title(title, fontsize=FONT)
        ax.set_ylim(0, 0.6)
        ax.tick_params(labelsize=FONT - 1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=FONT - 1, frameon=False, ncols=2, loc="upper left")
    figure.suptitle(TABLES["table6"].title, fontsize=FONT + 2, x=0.01, ha="left", weight="bold")
    figure.supxlabel(verdict(answers), fontsize=FONT, x=0.01, ha="left")
    return figure


def _share_bars(ax: Axes, k: int, count: int, label: str, values: tuple[float, ...]) -> None:
    colour = {"random choice": GREY, "uLLSAM": BLUE, "uLLSAM, its image": BLUE, "uLLSAM, no image": ORANGE}.get(label, GREEN)
    x = np.arange(len(values)) + 0.8 * (k + 0.5) / count - 0.4
    ax.bar(x, values, 0.76 / count, color=colour, label=label)
