"""Measures the paper's tables and figures at tiny scale: short trainings that differ in one thing, each done once and kept.

Images are those of ULLSAM_DATA, or synthetic ones where there is none, so that a class can run it anywhere. What is
trained and compared stands in `arms.py`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ullsam.data.corpus import Sample, find_corpora
from ullsam.data.mixture import Mixture
from ullsam.data.synthetic import STYLES, generate
from ullsam.errors import InputError
from ullsam.evaluation.compare import TRAIN, UNSEEN, make_variant, shared_start
from ullsam.evaluation.metrics import hit_rate, instance_scores
from ullsam.evaluation.protocol import make_prompts, select_records
from ullsam.evaluation.statistics import report
from ullsam.files import write_json
from ullsam.lab.arms import ARMS, DOMAINS, TABLES, Arm, Row
from ullsam.llm import load_llm
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor
from ullsam.sbr import instance_ids
from ullsam.tiny.config import TinyTrainConfig
from ullsam.tiny.recipes import load_parts
from ullsam.train import fit

SEGMENT = replace(TRAIN, instances=8, precision="bf16", warmup=20, log_every=5)


@dataclass(frozen=True)
class Budget:
    """How much an arm may cost."""

    steps: int  # of stage 3
    caption_steps: int  # of stages 1 and 2, where an arm goes through them itself
    batch_size: int
    seeds: tuple[int, ...]
    images: int | None  # per test set; None for all
    objects: int | None = None  # per image, drawn by the image's number; None for all
    synthetic_fraction: float = 0.25


BUDGETS = {
    "smoke": Budget(steps=40, caption_steps=20, batch_size=2, seeds=(0,), images=4, objects=8),
    "short": Budget(steps=150, caption_steps=80, batch_size=2, seeds=(0, 1, 2), images=8, objects=12),
    "full": Budget(steps=300, caption_steps=250, batch_size=4, seeds=(0, 1, 2), images=None),
}


@dataclass(frozen=True)
class TestSet:
    """Images with truth that no arm trains on."""

    name: str
    domain: str  # "LM", "EM", ...
    role: str  # "in-domain" or "out-of-domain"
    images: list[Callable[[], Sample]]  # each reads one


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


@dataclass(eq=False)
class Reproduction:
    """Trains and measures what the tables need; what is on disk already is not done again.

    Raises:
        InputError: the measurements were made under other conditions.
    """

    budget: Budget  # seeds may be added to results later, all else must stay
    folder: Path  # of the trained arms
    path: Path  # of the measurements, a JSON file
    data: Path | None = None  # folder with corpora (roles in_domain and out_of_domain); None for synthetic images
    # the model that all arms start from; None takes the shipped SAM without language model and the shipped uLLSAM's
    # projection and language model
    start: ULLSAM | None = None
    command: str = ""  # what was typed, for the results

    def __post_init__(self):
        self.folder, self.path = Path(self.folder), Path(self.path)
        roles = ("in_domain", "out_of_domain") if self.data else ()
        self.corpora = {role: find_corpora(Path(self.data), role) for role in roles}
        self.start = self.start or shared_start()
        self.conditions = self._conditions()
        self.results = {"images": {}, "rows": {}, "seconds": {}}
        if self.path.is_file():
            found = json.loads(self.path.read_text())
            if _comparable(found["conditions"]) != _comparable(self.conditions):
                raise InputError(f"{self.path} was measured under other conditions; name another file or remove it.")
            self.results = {key: found[key] for key in self.results}

    def run(self, tables: Sequence[str], progress: bool = True) -> dict:
        """Measures all rows of the tables, arm by arm in the order in which `TABLES` needs them.

        Returns:
            Everything measured so far: "images", role -> [set, domain, name] each; "rows", key -> seed -> the Dice and
            SA of each image; "seconds", arm -> seed -> wall and processor time of its training and measuring.

        Raises:
            InputError: an unknown table, or a folder of arms that were trained under other conditions.
        """
        from tqdm.auto import tqdm

        if unknown := [name for name in tables if name not in TABLES]:
            raise InputError(f"There is no table {unknown[0]!r}; choose one of {', '.join(TABLES)}.")
        rows = {row.key: row for name, table in TABLES.items() if name in tables for row in table.rows}
        arms = dict.fromkeys(row.arm for row in rows.values())
        bar = tqdm([(arm, seed) for arm in arms for seed in self.budget.seeds], desc="arms", disable=not progress)
        for arm, seed in bar:
            bar.set_postfix_str(f"{arm}, seed {seed}")
            self._arm(arm, seed, [row for row in rows.values() if row.arm == arm], progress)
        return self.results

    def _arm(self, name: str, seed: int, rows: list[Row], progress: bool) -> None:
        """Trains one arm and measures its rows that are not measured yet."""
        missing = [row for row in rows if str(seed) not in self.results["rows"].get(row.key, {})]
        if not missing:
            return
        seconds = self.results["seconds"].setdefault(name, {}).setdefault(str(seed), {})
        with _timed(seconds, "train"):
            model = self.train(name, seed, progress)
        for role in dict.fromkeys(row.role for row in missing):
            with _timed(seconds, f"measure {role}"):
                measured = self.measure(model, [row for row in missing if row.role == role])
            for key, values in measured.items():
                self.results["rows"].setdefault(key, {})[str(seed)] = values
        write_json(self.path, report([{"conditions": self.conditions} | self.results], self.command))

    def train(self, name: str, seed: int, progress: bool = True) -> ULLSAM:
        """The trained model of an arm; an unfinished run on disk is finished, a finished one taken as it is."""
        path = self.folder / "conditions.json"
        if path.is_file() and _comparable(json.loads(path.read_text())) != _comparable(self.conditions):
            raise InputError(f"{self.folder} holds arms that were trained under other conditions; name another folder.")
        write_json(path, self.conditions)
        arm, folder = ARMS[name], self.folder / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # fresh adapters are random, and must be the same when a run goes on
            llm = None if arm.stages is None else load_llm(self.start.config.llm)
        model = make_variant(self.start, arm.vlsa, seed, arm.options, llm)
        if (folder / "stage3" / "config.json").is_file():
            load_parts(model, folder / "stage3")
            if model.llm is not None:
                model.llm.merge_lora()
            return model.eval()
        mixture, stages = self._mixture(arm), (*(arm.stages or ()), 3)
        for stage in stages:
            fit(model, self._settings(arm, stage, seed), mixture, folder / f"stage{stage}", progress)
        for stage in stages:
            (folder / f"stage{stage}" / "checkpoint.pt").unlink()  # 160 MB that a finished arm needs no more
        return model

    def _settings(self, arm: Arm, stage: int, seed: int) -> TinyTrainConfig:
        b, view = self.budget, SEGMENT.view if SEGMENT.view < self.start.config.sam.image_size else 0
        steps = b.steps if stage == 3 else b.caption_steps
        warmup = min(SEGMENT.warmup, steps // 5)
        common = replace(SEGMENT, steps=steps, warmup=warmup, batch_size=b.batch_size, seed=seed, view=view)
        if stage == 3:
            return replace(common, prompts=(arm.prompts,))
        return replace(common, stage=stage, lr=1e-3 if stage == 1 else 5e-4)

    @torch.inference_mode()
    def measure(self, model: ULLSAM, rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
        """Mean Dice over objects and fraction of objects with an IoU of at least 0.5 (SA) of each image, by row key.

        All rows must have one role; they use the same features and knowledge of an image.
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
            for i, read in enumerate(test.images):
                sample = read()
                ids = chosen_objects(sample.labels, self.budget.objects, np.random.default_rng([0, i]))
                if len(ids):
                    yield Case(test, i, sample, ids)

    def tests(self) -> list[TestSet]:
        """The test split of each in-domain corpus and all of the others; or unseen synthetic images.

        Of synthetic styles those of the two microscopy domains count as in-domain, the others as out of domain.
        """
        found, seeds = [], range(UNSEEN, UNSEEN + (self.budget.images or 12))
        for role, split in (("in-domain", "test"), ("out-of-domain", None)):
            for corpus in self.corpora.get(role.replace("-", "_"), ()):  # at most so many images, evenly spaced
                chosen = select_records(corpus, split, 0, self.budget.images)
                images = [partial(corpus.read, record) for _, record in chosen]
                found.append(TestSet(corpus.name, corpus.meta.get("domain", ""), role, images))
        for style, spec in STYLES.items() if not self.corpora else ():
            role = "in-domain" if spec.meta["domain"] in DOMAINS else "out-of-domain"
            images = [partial(generate, style, seed, 256) for seed in seeds]
            found.append(TestSet(style, spec.meta["domain"], role, images))
        return found

    def _mixture(self, arm: Arm) -> Mixture:
        corpora = [c for c in self.corpora.get("in_domain", []) if arm.domain in (None, c.meta.get("domain"))]
        wanted = (arm.domain,) if arm.domain else DOMAINS  # what is out of domain stays so
        styles = [style for style, spec in STYLES.items() if spec.meta["domain"] in wanted]
        return Mixture([(c, "train") for c in corpora], styles, self.budget.synthetic_fraction if corpora else 1.0)

    def _conditions(self) -> dict:
        """What the numbers depend on, as JSON gives it back: lists, not tuples."""
        tests, usual = self.tests(), asdict(TinyTrainConfig())
        conditions = {
            "budget": asdict(self.budget),
            "start": {"name": self.start.config.name, "sha256": fingerprint(self.start)},
            "images": "corpora" if self.corpora else "synthetic",
            "test images": {
                r: {t.name: len(t.images) for t in tests if t.role == r} for r in ("in-domain", "out-of-domain")
            },
            "stage 3": {name: value for name, value in asdict(SEGMENT).items() if value != usual[name]},
        }
        return json.loads(json.dumps(conditions))


@contextmanager
def _timed(seconds: dict, name: str) -> Iterator[None]:
    """Notes how long a block takes: on the wall, and of all processor cores."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    spent = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    seconds[name] = {clock: round(value, 1) for clock, value in spent.items()}


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


def _comparable(conditions: dict) -> dict:
    """What must be equal for measurements to stand in one table; seeds are added one by one."""
    return conditions | {"budget": {k: v for k, v in conditions["budget"].items() if k != "seeds"}}
