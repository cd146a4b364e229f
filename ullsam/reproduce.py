"""The paper's tables and figures at tiny scale: short trainings that differ in one thing, each measured once and kept.

Every arm is a stage 3 that starts from the same trained SAM (the shipped uSAM-tiny), as the paper's start from uSAM. Images
are those of ULLSAM_DATA, or synthetic ones where there is none, so that a class can run it anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from ullsam.compare import UNSEEN, make_variant, shared_start
from ullsam.config import TrainConfig
from ullsam.data.corpus import Corpus, Sample, find_corpora
from ullsam.data.mixture import Mixture
from ullsam.data.synthetic import STYLES, generate
from ullsam.errors import InputError
from ullsam.evaluate import score_image, select_records, write_json
from ullsam.llm import load_llm
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor
from ullsam.train import fit

SEGMENT = TrainConfig(stage=3, batch_size=4, lr=3e-4, view=256, instances=8, precision="bf16", warmup=20, log_every=5)
CAPTION = replace(SEGMENT, stage=1, prompts=())
DOMAINS = ("LM", "EM")  # light and electron microscopy, what is trained on


@dataclass(frozen=True)
class Budget:
    """How much an arm may cost."""

    steps: int  # of stage 3
    caption_steps: int  # of stages 1 and 2, where an arm goes through them itself
    batch_size: int
    seeds: tuple[int, ...]
    images: int | None  # per test set; None for all
    synthetic_share: float = 0.25


BUDGETS = {
    "class": Budget(steps=12, caption_steps=8, batch_size=2, seeds=(0,), images=2),
    "full": Budget(steps=300, caption_steps=250, batch_size=4, seeds=(0, 1, 2), images=None),
}


@dataclass(frozen=True)
class Arm:
    """One training: what differs from the paper's full method."""

    vlsa: str = "paper"  # variant; "none" is uSAM's interactive branch
    options: dict = field(default_factory=dict)  # of the variant
    stages: tuple[int, ...] | None = None  # caption stages from a fresh projection; None takes the shipped model's
    prompts: tuple[int, int] = (1, 3)  # positive and negative points in training
    domain: str | None = None  # only images of this domain, "LM" or "EM"


ARMS = {
    "full": Arm(), "usam": Arm(vlsa="none"),
    "fixed scale": Arm(options={"learned_scale_shift": False}),
    "fixed scale, dropout": Arm(options={"learned_scale_shift": False, "dropout": 0.2}),
    "dropout": Arm(options={"dropout": 0.2}),
    "no caption stages": Arm(stages=()), "stage 1": Arm(stages=(1,)), "stages 1 and 2": Arm(stages=(1, 2)),
    "1 point": Arm(prompts=(1, 0)),
    "LM specialist": Arm(domain="LM"), "EM specialist": Arm(domain="EM"),
    "uSAM LM specialist": Arm(vlsa="none", domain="LM"), "uSAM EM specialist": Arm(vlsa="none", domain="EM"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of a table: an arm, how it is asked, on which images, and what the paper measured there."""

    label: str
    arm: str
    points: tuple[int, int] = (1, 3)
    vlk: bool = True
    images: str = "in-domain"  # "in-domain", "out-of-domain", or the domain "LM" or "EM" of the in-domain sets
    paper: tuple[float, float] | None = None  # Dice and SA, where the paper gives numbers

    @property
    def role(self) -> str:
        """Which test sets are measured: "in-domain" or "out-of-domain"."""
        return "out-of-domain" if self.images == "out-of-domain" else "in-domain"

    @property
    def key(self) -> str:
        """What identifies its measurement; rows of several tables share one."""
        return json.dumps([self.arm, self.points, self.vlk, self.role])


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper, and what it claims: this row is better than that one."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[tuple[str, str], ...]  # (label of the better, label of the worse)


OURS = (0.875, 0.794)
PROMPTS = {(1, 0): (0.560, 0.461), (1, 3): OURS, (3, 0): (0.782, 0.683), (3, 3): (0.858, 0.772), (5, 0): (0.797, 0.701),
           (5, 3): (0.835, 0.743)}  # fmt: skip


def _specialists() -> tuple[Row, ...]:
    return tuple(
        Row(f"{name}{home} specialist on {away}", f"{prefix}{home} specialist", images=away)
        for name, prefix in (("uLLSAM ", ""), ("uSAM ", "uSAM ")) for home, away in product(DOMAINS, repeat=2)
    )  # fmt: skip


TABLES = {
    "table1": Table("Table 1: scale and shift, dropout", (
        Row("fixed scale", "fixed scale", paper=(0.864, 0.781)),
        Row("fixed scale, dropout", "fixed scale, dropout", paper=(0.867, 0.785)),
        Row("learned scale", "full", paper=OURS), Row("learned scale, dropout", "dropout", paper=(0.869, 0.787)),
    ), (("learned scale", "fixed scale"), ("learned scale", "learned scale, dropout"))),
    "table2": Table("Table 2: training stages", (
        Row("stage 3 only", "no caption stages", paper=(0.871, 0.790)),
        Row("stages 1 and 3", "stage 1", paper=(0.864, 0.781)), Row("stages 1, 2 and 3", "stages 1 and 2", paper=OURS),
    ), (("stages 1, 2 and 3", "stage 3 only"), ("stages 1, 2 and 3", "stages 1 and 3"))),
    "table3": Table("Table 3: baseline", (
        Row("uSAM", "usam", paper=(0.813, 0.710)), Row("uLLSAM", "full", paper=OURS),
    ), (("uLLSAM", "uSAM"),)),
    "table4": Table("Table 4: points in training", (
        Row("trained with 1 positive", "1 point", paper=(0.808, 0.712)),
        Row("trained with 1 positive, 3 negative", "full", paper=OURS),
    ), (("trained with 1 positive, 3 negative", "trained with 1 positive"),)),
    "table5": Table("Table 5: points at inference", tuple(
        Row(f"{p} positive, {n} negative", "full", points=(p, n), paper=paper) for (p, n), paper in PROMPTS.items()
    ), tuple(("1 positive, 3 negative", f"{p} positive, {n} negative") for p, n in PROMPTS if (p, n) != (1, 3))),
    "fig3": Table("Figure 3: specialists in their own and in the other domain", _specialists(), tuple(
        (f"uLLSAM {home} specialist on {away}", f"uSAM {home} specialist on {away}")
        for home, away in product(DOMAINS, repeat=2))),
    "fig5": Table("Figure 5: knowledge at inference", (
        Row("uSAM", "usam"), Row("uLLSAM without VLK", "full", vlk=False), Row("uLLSAM", "full"),
    ), (("uLLSAM", "uLLSAM without VLK"), ("uLLSAM without VLK", "uSAM"))),
    "fig6": Table("Figure 6: out of domain", (
        Row("uSAM", "usam", images="out-of-domain"), Row("uLLSAM without VLK", "full", vlk=False, images="out-of-domain"),
        Row("uLLSAM", "full", images="out-of-domain"),
    ), (("uLLSAM", "uSAM"), ("uLLSAM without VLK", "uSAM"))),
}  # fmt: skip


@dataclass(frozen=True)
class TestSet:
    """Images with truth that no arm trains on."""

    name: str
    domain: str  # "LM", "EM", ...
    role: str  # "in-domain" or "out-of-domain"
    read: Callable[[], Iterable[Sample]]


class Reproduction:
    """Trains and measures what the tables need; what is on disk already is not done again.

    Args:
        budget: a name of `BUDGETS`, or a Budget.
        folder: of the training runs, which go on where they stopped; results: the JSON file of the measurements.
        data: folder with corpora (roles in_domain and out_of_domain); None for synthetic images.
        start: the model that all arms start from; None takes the shipped SAM without language model and the shipped
            uLLSAM's projection and language model.

    Raises:
        InputError: an unknown budget, or results that were made under other conditions.
    """

    def __init__(self, budget: str | Budget, folder: str | Path, results: str | Path, data: str | Path | None = None,
                 start: ULLSAM | None = None):
        self.budget = budget if isinstance(budget, Budget) else _budget(budget)
        self.folder, self.path = Path(folder), Path(results)
        self.corpora = {role: find_corpora(Path(data), role) for role in ("in_domain", "out_of_domain")} if data else {}
        self.start = start or shared_start()
        self.conditions = {"budget": asdict(self.budget), "start": self.start.config.name, "images": "corpora" if data else
                           "synthetic", "stage 3": asdict(SEGMENT)}  # fmt: skip
        self.measured: dict[str, dict[str, list]] = self._read()

    def run(self, tables: Sequence[str], progress: bool = True) -> dict:
        """Measures all rows of the tables; returns everything measured so far: {row key: {seed: per-image rows}}."""
        from tqdm.auto import tqdm

        rows = {row.key: row for name in tables for row in _table(name).rows}
        jobs = [(row, seed) for seed in self.budget.seeds for row in sorted(rows.values(), key=lambda r: r.arm)]
        model, current = None, None
        for row, seed in tqdm(jobs, desc="rows", disable=not progress):
            if str(seed) in self.measured.get(row.key, {}):
                continue
            if current != (row.arm, seed):
                model, current = self.train(row.arm, seed, progress), (row.arm, seed)
            self.measured.setdefault(row.key, {})[str(seed)] = self.measure(model, row)
            self._write()
        return self.measured

    def train(self, name: str, seed: int, progress: bool = True) -> ULLSAM:
        """The trained model of an arm; a run on disk is finished or taken as it is."""
        arm, folder = ARMS[name], self.folder / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        mixture = self._mixture(arm)
        llm = None if arm.stages is None else load_llm(self.start.config.llm)
        model = make_variant(self.start, arm.vlsa, seed, arm.options, llm)
        view = SEGMENT.view if SEGMENT.view < model.config.sam.image_size else 0
        for stage in (*(arm.stages or ()), 3):
            base = SEGMENT if stage == 3 else replace(CAPTION, stage=stage, lr=1e-3 if stage == 1 else 5e-4)
            steps = self.budget.steps if stage == 3 else self.budget.caption_steps
            prompts = (arm.prompts,) if stage == 3 else ()
            config = replace(base, steps=steps, batch_size=self.budget.batch_size, seed=seed, prompts=prompts, view=view)
            fit(model, config, mixture, folder / f"stage{stage}", progress)
        return model

    def measure(self, model: ULLSAM, row: Row) -> list[dict]:
        """Per image: set, domain, Dice and SA per object; the points are the same for all arms and seeds."""
        predictor, rows = Predictor(model), []
        for test in (t for t in self.tests() if t.role == row.role):
            for i, sample in enumerate(test.read()):
                scores = score_image(predictor, sample, np.random.default_rng([0, i]), row.points, row.vlk)
                rows += [_short(test, sample, scores)] if scores else []
        return rows

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

    def _read(self) -> dict:
        if not self.path.is_file():
            return {}
        found = json.loads(self.path.read_text())
        if found["conditions"] != json.loads(json.dumps(self.conditions)):
            raise InputError(f"{self.path} was measured under other conditions; name another file or remove it.")
        return found["rows"]

    def _write(self) -> None:
        write_json(self.path, {"conditions": self.conditions, "rows": self.measured})


def style_domain(style: str) -> str:
    """The domain of a synthetic style: "LM", "EM", "histopathology" or "medical"."""
    return STYLES[style].meta["domain"]


def _budget(name: str) -> Budget:
    if name not in BUDGETS:
        raise InputError(f"There is no budget {name!r}; choose one of {', '.join(BUDGETS)}.")
    return BUDGETS[name]


def _table(name: str) -> Table:
    if name not in TABLES:
        raise InputError(f"There is no table {name!r}; choose one of {', '.join(TABLES)}.")
    return TABLES[name]


def _synthetic_test(style: str, count: int) -> TestSet:
    """Styles of the two microscopy domains count as in-domain, the others as out of domain."""
    domain = style_domain(style)
    role = "in-domain" if domain in DOMAINS else "out-of-domain"
    return TestSet(style, domain, role, lambda: (generate(style, UNSEEN + i, 256) for i in range(count)))


def _real_test(corpus: Corpus, role: str, split: str | None, count: int | None) -> TestSet:
    """At most `count` images, evenly spaced."""
    records = [record for _, record in select_records(corpus, split, 0, count)]
    return TestSet(corpus.name, corpus.meta.get("domain", ""), role, lambda: (corpus.read(r) for r in records))


def _short(test: TestSet, sample: Sample, scores: dict) -> dict:
    kept = {"dice": scores["dice_instance"], "sa": scores["sa50_instance"]}
    return {"set": test.name, "domain": test.domain, "image": sample.name, **{k: round(v, 4) for k, v in kept.items()}}
