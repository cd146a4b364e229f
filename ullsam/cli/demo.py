"""The first thing to run: a model segments and describes two real micrographs and a synthetic one."""

from __future__ import annotations

import textwrap
import time
import timeit
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ullsam.errors import InputError

CELL, TISSUE = np.s_[110:660, :550], np.s_[280:440, 240:400]  # rows and columns of the files; of the tissue a gland
CLICKS = ((29, 70), (68, 87), (90, 95), (105, 81), (119, 74), (131, 106), (118, 130), (95, 65), (33, 149))  # (x, y)
FILES = {  # of scikit-image: name -> what it is, the square that is cut out, clicks in it
    "cell": ("floating cell, quantitative phase", CELL, ((428, 264),)),
    "ihc": ("stained gland, brightfield", TISSUE, CLICKS),
}
SEED = 11  # of the synthetic image
REPEATS = 5  # clicks that are timed
TITLE, CAPTION, DPI = 0.3, 0.75, 110  # inches above and below each row of panels; dots per inch of the file


@dataclass(frozen=True)
class Scene:
    """One image of the demo with prompts for I objects, and what the model makes of it."""

    name: str
    title: str  # what the image is, and where it comes from
    image: np.ndarray  # (H, W) or (H, W, 3)
    points: np.ndarray  # float32 (I, P, 2), (x, y)
    point_labels: np.ndarray  # (I, P), 1 inside, 0 outside
    truth: np.ndarray | None = None  # int32 (H, W), if it is known
    ids: np.ndarray | None = None  # (I,), the instance of `truth` that each prompt is for
    masks: dict[str, np.ndarray] = field(default_factory=dict)  # "with VLK", "without VLK" -> bool (I, H, W)
    scores: dict[str, str] = field(default_factory=dict)  # the same keys -> Dice and SA in words; empty without truth
    description: str | None = None  # the model's own words, unchanged; None without a language model
    click: float = 0.0  # seconds for the mask of one click, the image being encoded


def demo(out: str = "demo_output", model: str = "tiny") -> None:
    """Segment and describe three images, in a minute; draws demo.png and writes the label maps.

    Args:
        out: folder for the results
        model: tiny, usam-tiny, or a folder of a saved model
    """
    from ullsam.checkpoints.loading import load
    from ullsam.data.io import write_labels
    from ullsam.evaluation.metrics import merge_instances
    from ullsam.predictor import Predictor

    note = "the first time, its language model is converted: up to half a minute"
    print(f"Loading the model {model} ({note}) ...", flush=True)
    start, found = time.perf_counter(), []
    predictor = Predictor(load(model))
    print(f"Ready after {time.perf_counter() - start:.1f} s.", flush=True)
    folder = Path(out).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder ({error.strerror}); name another with --out.") from error
    for scene in scenes():
        found.append(examine(predictor, scene))
        print("\n".join(report(found[-1])), flush=True)
    print(f"One click takes {1000 * np.median([scene.click for scene in found]):.0f} ms.")
    draw(found).savefig(folder / "demo.png", dpi=DPI)
    print(f"Wrote {folder / 'demo.png'}")
    for scene in found:
        file = folder / f"{scene.name}_labels.tif"
        write_labels(file, merge_instances(next(iter(scene.masks.values()))))  # of the first way, with knowledge
        print(f"Wrote {file}")


def scenes() -> list[Scene]:
    """A cell and a gland from files of scikit-image, clicked by hand, and synthetic nuclei with SBR points."""
    from ullsam.data.io import read_image
    from ullsam.data.synthetic import generate
    from ullsam.sbr import sample_instances

    found, package = [], Path(find_spec("skimage").origin).parent
    for name, (title, crop, clicks) in FILES.items():
        points = np.array(clicks, dtype=np.float32)[:, None]  # one inside point per object: (I, 2) -> (I, 1, 2)
        image = read_image(package / "data" / f"{name}.png")[crop]
        title = f"{title} ({name}.png of scikit-image)"
        found.append(Scene(name, title, image, points, np.ones(points.shape[:2], dtype=np.int64)))
    sample = generate("fluorescence_nuclei", seed=SEED)
    ids, points, point_labels = sample_instances(sample.labels, np.random.default_rng(0), max_instances=1000)
    title = "synthetic fluorescent nuclei (truth in yellow)"
    return [*found, Scene("synthetic", title, sample.image, points, point_labels, sample.labels, ids)]


def examine(predictor, scene: Scene) -> Scene:
    """The scene with all objects segmented with and without vision-language knowledge, and described."""
    from ullsam.evaluation.metrics import instance_scores, label_map_scores, merge_instances

    model = predictor.model
    predictor.set_image(scene.image)
    ways = {"with VLK": True, "without VLK": False} if model.vlsa is not None else {"plain SAM": False}
    masks = {way: predictor.predict(scene.points, scene.point_labels, use_vlk=vlk).masks for way, vlk in ways.items()}
    scores = {}
    for way, found in masks.items() if scene.truth is not None else ():
        dice = instance_scores(found, scene.truth, scene.ids)[0].mean()
        accuracy = label_map_scores(merge_instances(found), scene.truth)["sa50"]
        scores[way] = f"Dice {dice:.2f}, SA(0.5) {accuracy:.2f}"
    description = predictor.describe() if model.llm is not None else None
    click = (scene.points[0], scene.point_labels[0])
    times = timeit.repeat(lambda: predictor.predict(*click), number=1, repeat=REPEATS)  # everything else is at hand
    return replace(scene, masks=masks, scores=scores, description=description, click=float(np.median(times)))


def report(scene: Scene) -> list[str]:
    """Lines about one scene: what it is, how good the masks are if truth is known, and the description."""
    lines = [f"{scene.title}: {len(scene.points)} object{'s' if len(scene.points) > 1 else ''} prompted"]
    lines += [f"  {way}: {text}" for way, text in scene.scores.items()]
    return lines + ([f'  description: "{scene.description}"'] if scene.description is not None else [])


def draw(scenes: list[Scene]):
    """A row for each scene: the image with its clicks, then the masks; the description stands below."""
    from ullsam.plots.charts import FONT, PANEL, Picture
    from ullsam.plots.images import show_masks

    rows, columns = len(scenes), 1 + len(scenes[0].masks)
    height = rows * (TITLE + PANEL + CAPTION)  # inches
    figure = Picture(figsize=(PANEL * columns, height), dpi=DPI)
    sides = {"left": 0.02 / columns, "right": 1 - 0.02 / columns, "wspace": 0.04 / 0.96}
    heights = {"bottom": CAPTION / height, "top": 1 - TITLE / height, "hspace": (TITLE + CAPTION) / PANEL}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=sides | heights)
    for scene, (first, *panels) in zip(scenes, axes, strict=True):
        clicks = {"points": scene.points, "point_labels": scene.point_labels, "title": "image and clicks"}
        show_masks(scene.image, **clicks, ax=first, truth=scene.truth)
        for ax, (way, masks) in zip(panels, scene.masks.items(), strict=True):
            title = f"{way}: {scene.scores[way]}" if scene.scores else way
            show_masks(scene.image, masks, title=title, ax=ax, truth=scene.truth)
        words = "" if scene.description is None else " ".join(f"model: {scene.description}".split())
        known = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in words)  # what the font has
        text = textwrap.fill(known, 43 * columns, max_lines=3)
        y = first.get_position(original=True).y0 - 0.08 / height
        figure.text(0.01, y, f"{scene.title}\n{text}", fontsize=FONT, va="top", parse_math=False)
    return figure
