"""The first thing to run: a model segments and describes two real micrographs and a synthetic one."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ullsam.data.io import read_image, write_labels
from ullsam.data.synthetic import generate
from ullsam.errors import InputError
from ullsam.evaluation.metrics import instance_scores, label_map_scores, merge_instances
from ullsam.model import load
from ullsam.predictor import Predictor
from ullsam.sbr import sample_instances

CELL = (slice(110, 660), slice(0, 550))  # rows and columns of cell.png that make it square
TISSUE = (slice(280, 440), slice(240, 400))  # a gland in ihc.png
CELL_CLICKS = ((428, 264),)  # (x, y) in the crop
TISSUE_CLICKS = ((29, 70), (68, 87), (90, 95), (105, 81), (119, 74), (131, 106), (118, 130), (95, 65), (33, 149))
SEED = 11  # of the synthetic image
REPEATS = 5  # clicks that are timed
TITLE, CAPTION, DPI = 0.3, 0.75, 110  # inches above and below each row of panels; dots per inch of the file


@dataclass(frozen=True)
class Scene:
    """One image of the demo with prompts for I objects."""

    name: str
    title: str  # what is shown, and where it comes from
    image: np.ndarray  # (H, W) or (H, W, 3)
    points: np.ndarray  # float32 (I, P, 2), (x, y)
    point_labels: np.ndarray  # (I, P), 1 inside, 0 outside
    truth: np.ndarray | None = None  # int32 (H, W), where it is known
    ids: np.ndarray | None = None  # (I,), the instance of `truth` that each prompt is for


@dataclass(frozen=True)
class Outcome:
    """What the model made of one scene."""

    scene: Scene
    masks: dict[str, np.ndarray]  # "with VLK", "without VLK" -> bool (I, H, W)
    scores: dict[str, str]  # the same keys -> Dice and SA in words; empty without truth
    description: str | None  # the model's own words, unchanged; None without a language model
    click: float  # seconds for the mask of one click, the image being encoded


def run_demo(out: str | Path, model: str = "tiny", say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Segments and describes three images, draws demo.png and writes the label maps.

    Args:
        out: folder of the results, made if absent; model: name or folder for `load`; say: gets each line of the report.

    Returns:
        The files written.

    Raises:
        InputError: the model, its language model or the output folder cannot be used.
    """
    say(f"Loading the model {model} (the first time, its language model is converted: up to half a minute) ...")
    start = time.perf_counter()
    network = load(model)
    say(f"Ready after {time.perf_counter() - start:.1f} s.")
    folder = _make_folder(out)
    predictor, outcomes = Predictor(network), []
    for scene in scenes():
        outcomes.append(examine(predictor, scene))
        for line in report(outcomes[-1]):
            say(line)
    say(f"One click takes {1000 * np.median([o.click for o in outcomes]):.0f} ms.")
    files = _write(folder, outcomes)
    for file in files:
        say(f"Wrote {file}")
    return files


def scenes() -> list[Scene]:
    """A cell and a gland from files of scikit-image, clicked by hand, and synthetic nuclei with SBR points."""
    cell, tissue = (
        _clicked(*row)
        for row in (
            ("cell", "floating cell, quantitative phase (cell.png of scikit-image)", CELL, CELL_CLICKS),
            ("ihc", "stained gland, brightfield (ihc.png of scikit-image)", TISSUE, TISSUE_CLICKS),
        )
    )
    sample = generate("fluorescence_nuclei", seed=SEED)
    ids, points, kinds = sample_instances(sample.labels, np.random.default_rng(0), max_instances=1000)
    title = "synthetic fluorescent nuclei (truth in yellow)"
    return [cell, tissue, Scene("synthetic", title, sample.image, points, kinds, sample.labels, ids)]


def _clicked(name: str, title: str, crop: tuple[slice, slice], clicks: tuple) -> Scene:
    """Part of an image inside the scikit-image package, with one inside point per object."""
    package = Path(find_spec("skimage").origin).parent
    image = read_image(package / "data" / f"{name}.png")[crop]
    points = np.array(clicks, dtype=np.float32)[:, None]  # (I, 2) -> (I, 1, 2)
    return Scene(name, title, image, points, np.ones(points.shape[:2], dtype=np.int64))


def examine(predictor: Predictor, scene: Scene) -> Outcome:
    """Segments all objects of a scene with and without vision-language knowledge, and describes it."""
    model = predictor.model
    predictor.set_image(scene.image)
    ways = {"with VLK": True, "without VLK": False} if model.vlsa is not None else {"plain SAM": False}
    masks = {way: predictor.predict(scene.points, scene.point_labels, use_vlk=vlk).masks for way, vlk in ways.items()}
    scores = {way: _scores(scene, found) for way, found in masks.items()} if scene.truth is not None else {}
    description = predictor.describe() if model.llm is not None else None
    return Outcome(scene, masks, scores, description, _click_seconds(predictor, scene))


def _scores(scene: Scene, masks: np.ndarray) -> str:
    dice = instance_scores(masks, scene.truth, scene.ids)[0].mean()
    accuracy = label_map_scores(merge_instances(masks), scene.truth)["sa50"]
    return f"Dice {dice:.2f}, SA(0.5) {accuracy:.2f}"


def _click_seconds(predictor: Predictor, scene: Scene) -> float:
    """Median time of one object's mask with everything about the image at hand."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        predictor.predict(scene.points[0], scene.point_labels[0])
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def report(outcome: Outcome) -> list[str]:
    """Lines about one scene: what it is, how good the masks are where truth is known, and the description."""
    scene = outcome.scene
    lines = [f"{scene.title}: {len(scene.points)} object{'s' if len(scene.points) > 1 else ''} prompted"]
    lines += [f"  {way}: {words}" for way, words in outcome.scores.items()]
    return lines + ([f'  description: "{outcome.description}"'] if outcome.description is not None else [])


def draw(outcomes: list[Outcome]):
    """A row for each scene: the image with its clicks, then the masks; the description stands below."""
    from ullsam.plots.charts import FONT, PANEL, Picture

    columns, height = 1 + len(outcomes[0].masks), TITLE + PANEL + CAPTION
    width, total = PANEL * columns, height * len(outcomes)
    figure = Picture(figsize=(width, total), dpi=DPI)
    for row, outcome in enumerate(outcomes):
        bottom = total - (row + 1) * height + CAPTION  # inches
        axes = [
            figure.add_axes(((c + 0.02) * PANEL / width, bottom / total, 0.96 * PANEL / width, PANEL / total))
            for c in range(columns)
        ]
        _draw_scene(axes, outcome)
        words = "" if outcome.description is None else _drawable(f"model: {outcome.description}", 43 * columns)
        caption = f"{outcome.scene.title}\n{words}"
        figure.text(0.01, (bottom - 0.08) / total, caption, fontsize=FONT, va="top", parse_math=False)
    return figure


def _drawable(text: str, width: int) -> str:
    """At most three lines of text, with a question mark for what the figure's font may lack."""
    known = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in " ".join(text.split()))
    return textwrap.fill(known, width, max_lines=3)


def _draw_scene(axes: list, outcome: Outcome) -> None:
    from ullsam.plots.images import show_masks

    scene = outcome.scene
    points, title = (scene.points, scene.point_labels), "image and clicks"
    show_masks(scene.image, None, *points, title=title, ax=axes[0], truth=scene.truth)
    for ax, (way, masks) in zip(axes[1:], outcome.masks.items(), strict=True):
        title = f"{way}: {outcome.scores[way]}" if outcome.scores else way
        show_masks(scene.image, masks, title=title, ax=ax, truth=scene.truth)


def _write(folder: Path, outcomes: list[Outcome]) -> list[Path]:
    """demo.png, and a label map of the first way's masks for each scene."""
    files = [folder / "demo.png", *(folder / f"{o.scene.name}_labels.tif" for o in outcomes)]
    draw(outcomes).savefig(files[0], dpi=DPI)
    for file, outcome in zip(files[1:], outcomes, strict=True):
        write_labels(file, merge_instances(next(iter(outcome.masks.values()))))
    return files


def _make_folder(out: str | Path) -> Path:
    folder = Path(out).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder ({error.strerror}); name another with --out.") from error
    return folder
