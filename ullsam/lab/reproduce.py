"""Measures the paper's tables and figures at tiny scale: short trainings that differ in one thing, each done once and kept.

Images are those of ULLSAM_DATA, or synthetic ones where there is none, so that a class can run it anywhere. What is
trained and compared stands in `reproduce_tables.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ullsam.config import TrainConfig
from ullsam.data.corpus import Corpus, Sample, find_corpora
from ullsam.data.mixture import Mixture
from ullsam.data.synthetic import STYLES, generate
from ullsam.errors import InputError
from ullsam.evaluation.compare import UNSEEN, make_variant, shared_start
from ullsam.evaluation.metrics import hit_rate, instance_scores
from ullsam.evaluation.protocol import make_prompts, select_records
from ullsam.files import write_json
from ullsam.lab.reproduce_tables import ARMS, DOMAINS, TABLES, Arm, Row, Table
from ullsam.llm import load_llm
from ullsam.model import ULLSAM, load_parts
from ullsam.predictor import Predictor
from ullsam.sbr import instance_ids
from ullsam.train import fit

SEGMENT = TrainConfig(
    stage=3,
    batch_size=4,
    lr=3e-4,
    slow=0.5,
    view=256,
    instances=8,
    coarse_weight=0.5,
    precision="bf16",
    warmup=20,
    log_every=5,
)
CAPTION = replace(SEGMENT, stage=1, prompts=())


@dataclass(frozen=True)
class Budget:
    """How much an arm may cost."""

    steps: int  # of stage 3
    caption_steps: int  # of stages 1 and 2, where an arm goes through them itself
    batch_size: int
    seeds: tuple[int, ...]
    images: int | None  # per test set; None for all
    objects: int | None = None  # per image, drawn by the image's number; None for all
    synthetic_share: float = 0.25


BUDGETS = {
    "class": Budget(steps=40, caption_steps=20, batch_size=2, seeds=(0,), images=4, objects=8),
    "evening": Budget(steps=150, caption_steps=80, batch_size=2, seeds=(0, 1, 2), images=8, objects=12),
    "full": Budget(steps=300, caption_steps=250, batch_size=4, seeds=(0, 1, 2), images=None),
}


@dataclass(frozen=True)
class TestSet:
    """Images with truth that no arm trains on."""

    name: str
    domain: str  # "LM", "EM", ...
    role: str  # "in-domain" or "out-of-domain"
    count: int
    read: Callable[[], Iterable[Sample]]


@dataclass(frozen=True)
class Case:
    """One test image and the objects of it that are prompted; the same for all arms and seeds."""

    test: TestSet
    number: int  # of the image in its set
    sample: Sample
    ids: np.ndarray  # (I,)

    def prompts(self, points: tuple[int, int]) -> dict[str, np.ndarray]:
        """What `Predictor.predict` takes, with so many positive and negative points for each object."""
        return make_prompts(self.sample.labels, self.ids, points, np.random.default_rng([1, self.number]))


def budget_of(name: str, seeds: int | None = None) -> Budget:
    """The budget of a name of `BUDGETS`, with the seeds 0 to seeds - 1 where a number is given.

    Raises:
        InputError: an unknown budget, or fewer than one seed.
    """
    if name not in BUDGETS:
        raise InputError(f"There is no budget {name!r}; choose one of {', '.join(BUDGETS)}.")
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds {seeds}: give 1 or more.")
    return BUDGETS[name] if seeds is None else replace(BUDGETS[name], seeds=tuple(range(seeds)))


class Reproduction:
    """Trains and measures what the tables need; what is on disk already is not done again.

    Args:
        budget: a name of `BUDGETS`, or a Budget. Seeds may be added to results later, all else must stay.
        folder: of the trained arms; results: the JSON file of the measurements.
        data: folder with corpora (roles in_domain and out_of_domain); None for synthetic images.
        start: the model that all arms start from; None takes the shipped SAM without language model and the shipped
            uLLSAM's projection and language model.
        command: what was typed, for the results.

    Raises:
        InputError: an unknown budget, or results or trained arms that were made under other conditions.
    """

    def __init__(
        self,
        budget: str | Budget,
        folder: str | Path,
        results: str | Path,
        data: str | Path | None = None,
        start: ULLSAM | None = None,
        command: str = "",
    ):
        self.budget = budget if isinstance(budget, Budget) else budget_of(budget)
        self.folder, self.path, self.command = Path(folder), Path(results), command
        self.corpora = {role: find_corpora(Path(data), role) for role in ("in_domain", "out_of_domain")} if data else {}
        self.start = start or shared_start()
        self.conditions = _plain(self._conditions())
        self.results = self._read() or {"images": {}, "rows": {}, "seconds": {}}

    def run(self, tables: Sequence[str], progress: bool = True) -> dict:
        """Measures all rows of the tables, arm by arm in the order in which `TABLES` needs them.

        Returns:
            Everything measured so far: "images", role -> [set, domain, name] each; "rows", key -> seed -> the Dice and
            SA of each image; "seconds", arm -> seed -> wall and processor time of its training and measuring.
        """
        from tqdm.auto import tqdm

        chosen = {name: _table(name) for name in tables}
        rows = {row.key: row for name in TABLES if name in chosen for row in chosen[name].rows}
        arms = dict.fromkeys(row.arm for row in rows.values())
        jobs = [(arm, seed) for arm in arms for seed in self.budget.seeds]
        bar = tqdm(jobs, desc="arms", disable=not progress)
        for arm, seed in bar:
            bar.set_postfix_str(f"{arm}, seed {seed}")
            self._arm(arm, seed, [row for row in rows.values() if row.arm == arm], progress)
        return self.results

    def _arm(self, name: str, seed: int, rows: list[Row], progress: bool) -> None:
        """Trains one arm and measures its rows that are not measured yet."""
        missing = [row for row in rows if str(seed) not in self.results["rows"].get(row.key, {})]
        if not missing:
            return
        clock = _Clock()
        model = self.train(name, seed, progress)
        clock.lap("train")
        for role in dict.fromkeys(row.role for row in missing):
            for key, values in self.measure(model, [row for row in missing if row.role == role]).items():
                self.results["rows"].setdefault(key, {})[str(seed)] = values
            clock.lap(f"measure {role}")
        self.results["seconds"].setdefault(name, {}).setdefault(str(seed), {}).update(clock.laps)
        self._write()

    def train(self, name: str, seed: int, progress: bool = True) -> ULLSAM:
        """The trained model of an arm; an unfinished run on disk is finished, a finished one taken as it is."""
        self._mark_folder()
        arm, folder = ARMS[name], self.folder / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        llm = None if arm.stages is None else load_llm(self.start.config.llm)
        model = make_variant(self.start, arm.vlsa, seed, arm.options, llm)
        if (folder / "stage3" / "config.json").is_file():
            return _reload(model, folder / "stage3")
        mixture, stages = self._mixture(arm), (*(arm.stages or ()), 3)
        for stage in stages:
            fit(model, self._settings(arm, stage, seed), mixture, folder / f"stage{stage}", progress)
        for stage in stages:
            (folder / f"stage{stage}" / "checkpoint.pt").unlink()  # 160 MB that a finished arm needs no more
        return model

    def _settings(self, arm: Arm, stage: int, seed: int) -> TrainConfig:
        view = SEGMENT.view if SEGMENT.view < self.start.config.sam.image_size else 0
        steps = self.budget.steps if stage == 3 else self.budget.caption_steps
        common = {
            "steps": steps,
            "warmup": min(SEGMENT.warmup, steps // 5),
            "batch_size": self.budget.batch_size,
            "seed": seed,
            "view": view,
        }
        if stage == 3:
            return replace(SEGMENT, prompts=(arm.prompts,), **common)
        return replace(CAPTION, stage=stage, lr=1e-3 if stage == 1 else 5e-4, **common)

    @torch.inference_mode()
    def measure(self, model: ULLSAM, rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
        """Mean Dice over objects and share of objects with an IoU of at least 0.5 (SA) of each image, by row key.

        All rows, which have one role, share an image's features and knowledge.
        """
        predictor, images = Predictor(model), []
        found = {row.key: {"dice": [], "sa": []} for row in rows}
        for case in self.cases(rows[0].role):
            images.append([case.test.name, case.test.domain, case.sample.name])
            predictor.set_image(case.sample.image)
            for row in rows:
                masks = predictor.predict(**case.prompts(row.points), use_vlk=row.vlk).masks
                dices, ious = instance_scores(masks, case.sample.labels, case.ids)
                found[row.key]["dice"].append(round(float(dices.mean()), 4))
                found[row.key]["sa"].append(round(hit_rate(ious), 4))
        self.results["images"][rows[0].role] = images
        return found

    def cases(self, role: str) -> Iterator[Case]:
        """The test images of a role that have objects."""
        for test in (t for t in self.tests() if t.role == role):
            for i, sample in enumerate(test.read()):
                ids = chosen_objects(sample.labels, self.budget.objects, np.random.default_rng([0, i]))
                if len(ids):
                    yield Case(test, i, sample, ids)

    def tests(self) -> list[TestSet]:
        """The test split of each in-domain corpus and all of the others; or unseen synthetic images."""
        if not self.corpora:
            return [_synthetic_test(style, self.budget.images or 12) for style in STYLES]
        found = [("in-domain", "test", c) for c in self.corpora["in_domain"]]
        found += [("out-of-domain", None, c) for c in self.corpora["out_of_domain"]]
        return [_real_test(corpus, role, split, self.budget.images) for role, split, corpus in found]

    def _mixture(self, arm: Arm) -> Mixture:
        corpora = [c for c in self.corpora.get("in_domain", []) if arm.domain in (None, c.meta.get("domain"))]
        wanted = (arm.domain,) if arm.domain else DOMAINS  # what is out of domain stays so
        styles = [s for s in STYLES if style_domain(s) in wanted]
        return Mixture([(c, "train") for c in corpora], styles, self.budget.synthetic_share if corpora else 1.0)

    def _conditions(self) -> dict:
        sets = {role: {t.name: t.count for t in self.tests() if t.role == role} for role in ("in-domain", "out-of-domain")}
        start = {"name": self.start.config.name, "sha256": fingerprint(self.start)}
        return {
            "budget": asdict(self.budget),
            "start": start,
            "images": "corpora" if self.corpora else "synthetic",
            "test images": sets,
            "stage 3": asdict(SEGMENT),
        }

    def _read(self) -> dict | None:
        if not self.path.is_file():
            return None
        found = json.loads(self.path.read_text())
        if _same(found["conditions"]) != _same(self.conditions):
            raise InputError(f"{self.path} was measured under other conditions; name another file or remove it.")
        return {key: found[key] for key in ("images", "rows", "seconds")}

    def _mark_folder(self) -> None:
        """Writes down under which conditions the arms of the folder are trained, or checks that they are these."""
        path = self.folder / "conditions.json"
        if path.is_file() and _same(json.loads(path.read_text())) != _same(self.conditions):
            raise InputError(f"{self.folder} holds arms that were trained under other conditions; name another folder.")
        write_json(path, self.conditions)

    def _write(self) -> None:
        machine = {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processor": platform.machine(),
            "torch": torch.__version__,
        }
        head = {"command": self.command, "machine": machine, "conditions": self.conditions}
        write_json(self.path, head | self.results)


class _Clock:
    """Seconds of consecutive parts: on the wall, and of all processor cores."""

    def __init__(self):
        self.laps: dict[str, dict[str, float]] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        wall, processor = (round(b - a, 1) for a, b in zip(self._last, now, strict=True))
        self.laps[name], self._last = {"wall": wall, "processor": processor}, now


def chosen_objects(labels: np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
    """Ids (I,) of at most `count` objects of a label map, drawn without replacement, ascending; all of them for None."""
    ids = instance_ids(labels)
    return ids if count is None or len(ids) <= count else np.sort(rng.choice(ids, count, replace=False))


def fingerprint(model: ULLSAM) -> str:
    """sha256 of a model's own weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.own_state().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def style_domain(style: str) -> str:
    """The domain of a synthetic style: "LM", "EM", "histopathology" or "medical"."""
    return STYLES[style].meta["domain"]


def _reload(model: ULLSAM, folder: Path) -> ULLSAM:
    load_parts(model, folder)
    if model.llm is not None:
        model.llm.merge_lora()
    return model.eval()


def _plain(values: dict) -> dict:
    return json.loads(json.dumps(values))  # as they are read back: lists, not tuples


def _same(conditions: dict) -> dict:
    """What must be equal for measurements to stand in one table; seeds are added one by one."""
    return conditions | {"budget": {k: v for k, v in conditions["budget"].items() if k != "seeds"}}


def _table(name: str) -> Table:
    if name not in TABLES:
        raise InputError(f"There is no table {name!r}; choose one of {', '.join(TABLES)}.")
    return TABLES[name]


def _synthetic_test(style: str, count: int) -> TestSet:
    """Styles of the two microscopy domains count as in-domain, the others as out of domain."""
    domain = style_domain(style)
    role = "in-domain" if domain in DOMAINS else "out-of-domain"
    return TestSet(style, domain, role, count, lambda: (generate(style, UNSEEN + i, 256) for i in range(count)))


def _real_test(corpus: Corpus, role: str, split: str | None, count: int | None) -> TestSet:
    """At most `count` images, evenly spaced."""
    records = [record for _, record in select_records(corpus, split, 0, count)]
    domain = corpus.meta.get("domain", "")
    return TestSet(corpus.name, domain, role, len(records), lambda: (corpus.read(r) for r in records))
