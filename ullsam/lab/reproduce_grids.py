"""Figures 4 and 7: images, chosen by rule and not by hand, as uSAM, uLLSAM without knowledge, and uLLSAM segment them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from ullsam.data.corpus import Sample
from ullsam.errors import InputError
from ullsam.evaluation.metrics import instance_scores
from ullsam.lab.reproduce import Case, Reproduction
from ullsam.lab.reproduce_tables import TABLES, Row
from ullsam.plots.charts import Picture
from ullsam.plots.images import INSIDE, OUTSIDE
from ullsam.plots.overlays import outline, overlay
from ullsam.predictor import Predictor

FONT, PANEL, DPI = 7, 1.5, 90  # points, inches, pixels per inch
RULES = {
    "median": "of each dataset the image, and of it the object, whose Dice is uLLSAM's median",
    "worst": "of each dataset the image, and of it the object, where uLLSAM's Dice is lowest",
}


@dataclass(frozen=True)
class Shown:
    """One line of a grid: an image, the mask of each row, and the object that it is about."""

    name: str  # of the dataset
    sample: Sample
    ids: np.ndarray  # (I,) objects
    prompts: dict[str, np.ndarray]  # of all objects
    masks: tuple[np.ndarray, ...]  # of each row, bool (I, H, W)
    dices: tuple[np.ndarray, ...]  # of each row, (I,)
    index: int  # of the object

    @property
    def window(self) -> tuple[slice, slice]:
        """A square about three times as large as the object, within the image."""
        labels = self.sample.labels
        ys, xs = np.nonzero(labels == self.ids[self.index])
        side = min(max(64, 3 * max(np.ptp(ys), np.ptp(xs))), *labels.shape)
        middles = ((v.min() + v.max()) / 2 for v in (ys, xs))
        starts = (np.clip(m - side / 2, 0, n - side) for m, n in zip(middles, labels.shape, strict=True))
        return tuple(slice(int(start), int(start) + int(side)) for start in starts)


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


def _pick(ordered: list, rule: str):
    return ordered[0 if rule == "worst" else (len(ordered) - 1) // 2]


def grid(job: Reproduction, name: str, rule: str = "median") -> Picture:
    """One line per dataset: image, truth with the object's points, and the three models' masks, of the first seed's arms.

    Args:
        job: whose rows of the figure were measured; an arm that is no longer on disk is trained again.
        name: "fig4" or "fig7"; rule: of RULES.
    """
    rows = TABLES[name].rows
    lines = _lines(job, rows, choose(job.results, rows[-1], rule), rule)
    height = len(lines) * (PANEL + 0.2) + 0.6
    figure = Picture(figsize=(5 * PANEL + 0.5, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(lines), 5, squeeze=False)
    for line, panels in zip(lines, axes, strict=True):
        draw_line(line, panels)
    for ax, title in zip(axes[0], ("image", "truth and points", *(row.label for row in rows)), strict=True):
        ax.set_title(f"{title}\n{ax.get_title()}".strip(), fontsize=FONT)
    figure.suptitle(f"{TABLES[name].title}, {rule} case", fontsize=FONT + 2, x=0.01, ha="left", weight="bold")
    words = f"Chosen by rule: {RULES[rule]}.\nNumbers: Dice of the object (mean over the image's objects). Yellow: truth."
    figure.supxlabel(words, fontsize=FONT, x=0.01, ha="left")
    return figure


def _lines(job: Reproduction, rows: tuple[Row, ...], images: dict[str, str], rule: str) -> list[Shown]:
    """The chosen images segmented by every row's model, one model in memory at a time."""
    cases = [c for c in job.cases(rows[0].role) if images.get(c.test.name) == c.sample.name]
    lines, last, model = [_shown(case) for case in cases], None, None
    for row in rows:
        model = model if row.arm == last else job.train(row.arm, job.budget.seeds[0])
        last, predictor = row.arm, Predictor(model)
        lines = [_add(line, predictor, row) for line in lines]
    return [replace(line, index=_object(line, rule)) for line in lines]


def _shown(case: Case) -> Shown:
    return Shown(case.test.name, case.sample, case.ids, case.prompts((1, 3)), (), (), 0)


def _add(line: Shown, predictor: Predictor, row: Row) -> Shown:
    predictor.set_image(line.sample.image)
    masks = predictor.predict(**line.prompts, use_vlk=row.vlk).masks
    dices = instance_scores(masks, line.sample.labels, line.ids)[0]
    return replace(line, masks=(*line.masks, masks), dices=(*line.dices, dices))


def _object(line: Shown, rule: str) -> int:
    return _pick(sorted((value, i) for i, value in enumerate(line.dices[-1])), rule)[1]


def draw_line(line: Shown, panels: np.ndarray) -> None:
    """The object in its surroundings: the image, the truth with the points, then the mask of each row with its Dice."""
    window, i, prompts = line.window, line.index, line.prompts
    image, truth = line.sample.image[window], (line.sample.labels[window] == line.ids[i]).astype(np.int32)
    corner = window[1].start, window[0].start
    _show(panels[0], image)
    panels[0].set_ylabel("\n".join(line.name.split("_", 1)), fontsize=FONT)
    _show(panels[1], outline(image, truth))
    _points(panels[1], prompts["points"][i] - corner, prompts["labels"][i])
    for ax, masks, dices in zip(panels[2:], line.masks, line.dices, strict=True):
        _show(ax, outline(overlay(image, masks[i][window].astype(np.int32)), truth))
        ax.set_title(f"{dices[i]:.2f} ({dices.mean():.2f})", fontsize=FONT, pad=2)


def _show(ax: Axes, image: np.ndarray) -> None:
    ax.imshow(image)
    ax.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def _points(ax: Axes, points: np.ndarray, kinds: np.ndarray) -> None:
    for kind, marker, colour in ((0, "X", OUTSIDE), (1, "o", INSIDE)):
        ax.scatter(*points[kinds == kind].T, 22, colour, marker=marker, edgecolors="white", linewidths=0.6)
