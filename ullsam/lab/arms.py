"""The paper's tables and figures as data: which trainings they need, what is measured, what is claimed, what was printed.

Every arm is a stage 3 that starts from the same trained SAM (the shipped uSAM-tiny), as the paper's start from uSAM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

DOMAINS = ("LM", "EM")  # light and electron microscopy, what is trained on


@dataclass(frozen=True)
class Arm:
    """One training: what differs from the paper's full method."""

    vlsa: str = "paper"  # variant; "none" is uSAM's interactive branch
    options: dict = field(default_factory=dict)  # of the variant
    stages: tuple[int, ...] | None = None  # caption stages from a fresh projection; None takes the shipped model's
    prompts: tuple[int, int] = (1, 3)  # positive and negative points in training
    domain: str | None = None  # only images of this domain, "LM" or "EM"


ARMS = {
    "full": Arm(),
    "usam": Arm(vlsa="none"),
    "1 point": Arm(prompts=(1, 0)),
    "usam 1 point": Arm(vlsa="none", prompts=(1, 0)),
    "fixed scale": Arm(options={"learned_scale_shift": False}),
    "fixed scale, dropout": Arm(options={"learned_scale_shift": False, "dropout": 0.2}),
    "dropout": Arm(options={"dropout": 0.2}),
    "no caption stages": Arm(stages=()),
    "stage 1": Arm(stages=(1,)),
    "stages 1 and 2": Arm(stages=(1, 2)),
    "LM specialist": Arm(domain="LM"),
    "EM specialist": Arm(domain="EM"),
    "uSAM LM specialist": Arm(vlsa="none", domain="LM"),
    "uSAM EM specialist": Arm(vlsa="none", domain="EM"),
}


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
        """What identifies its measurement; rows of several tables may have the same."""
        knowledge = "with VLK" if self.vlk else "without VLK"
        return f"{self.arm} | {self.points[0]}P+{self.points[1]}N | {knowledge} | {self.role}"


@dataclass(frozen=True)
class Claim:
    """One row of a table is better than another, in Dice."""

    better: str  # label of its row
    worse: str
    paper: float | None = None  # difference that the paper's text gives where its rows have no numbers
    asked: str = "paper"  # "paper" claims it; "us" where the paper does not compare the two


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper, and what it claims."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    note: str = ""  # what a reader must know about the paper's numbers


OURS, USAM = (0.875, 0.794), (0.813, 0.710)
PROMPTS = {
    (1, 0): (0.560, 0.461),
    (1, 3): OURS,
    (3, 0): (0.782, 0.683),
    (3, 3): (0.858, 0.772),
    (5, 0): (0.797, 0.701),
    (5, 3): (0.835, 0.743),
}
SBR, ONE = "uSAM trained with SBR points", "uSAM trained with 1 point"
UNKNOWN = (
    "The paper does not say with which points its uSAM (0.813) was trained. Our arms start from the shipped uSAM-tiny, "
    "which has learnt from SBR's points before: arms with 1 point show what is forgotten, unless --sam names another start."
)
SPECIALISTS = (
    "The paper draws bars for each of its datasets. Our arms start from the shipped uSAM-tiny, which has seen both domains: "
    "what is lost in the other domain is what was forgotten."
)
DIFFERENCES = "The paper's text gives differences only."


def _knowledge(images: str) -> tuple[Row, ...]:
    """The three ways to ask that figures 4 to 7 compare."""
    return (
        Row("uSAM", "usam", images=images),
        Row("uLLSAM without VLK", "full", vlk=False, images=images),
        Row("uLLSAM", "full", images=images),
    )


# the most telling first: that is the order in which `Reproduction.run` measures
TABLES = {
    "table3": Table(
        "Table 3: baseline",
        (Row(ONE, "usam 1 point"), Row(SBR, "usam", paper=USAM), Row("uLLSAM", "full", paper=OURS)),
        (Claim("uLLSAM", SBR), Claim(SBR, ONE, asked="us"), Claim("uLLSAM", ONE, asked="us")),
        UNKNOWN,
    ),
    "fig5": Table(
        "Figure 5: knowledge at inference",
        _knowledge("in-domain"),
        (Claim("uLLSAM", "uLLSAM without VLK", 0.0288), Claim("uLLSAM without VLK", "uSAM", 0.0394)),
        DIFFERENCES,
    ),
    "fig6": Table(
        "Figure 6: out of domain",
        _knowledge("out-of-domain"),
        (Claim("uLLSAM", "uSAM", 0.0679), Claim("uLLSAM without VLK", "uSAM", 0.0298)),
        DIFFERENCES,
    ),
    "table4": Table(
        "Table 4: points in training",
        (
            Row("uSAM, 1 positive", "usam 1 point"),
            Row("uSAM, 1 positive and 3 negative", "usam"),
            Row("uLLSAM, 1 positive", "1 point", paper=(0.808, 0.712)),
            Row("uLLSAM, 1 positive and 3 negative", "full", paper=OURS),
        ),
        (
            Claim("uLLSAM, 1 positive and 3 negative", "uLLSAM, 1 positive"),
            Claim("uSAM, 1 positive and 3 negative", "uSAM, 1 positive", asked="us"),
            Claim("uLLSAM, 1 positive", "uSAM, 1 positive", asked="us"),
        ),
        UNKNOWN,
    ),
    "table5": Table(
        "Table 5: points at inference",
        tuple(Row(f"{p} positive, {n} negative", "full", points=(p, n), paper=paper) for (p, n), paper in PROMPTS.items()),
        tuple(Claim("1 positive, 3 negative", f"{p} positive, {n} negative") for p, n in PROMPTS if (p, n) != (1, 3)),
    ),
    "fig4": Table("Figure 4: examples of the domains that were trained on", _knowledge("in-domain")),
    "fig7": Table("Figure 7: examples of other domains", _knowledge("out-of-domain")),
    "table1": Table(
        "Table 1: scale and shift, dropout",
        (
            Row("fixed scale", "fixed scale", paper=(0.864, 0.781)),
            Row("fixed scale, dropout", "fixed scale, dropout", paper=(0.867, 0.785)),
            Row("learned scale", "full", paper=OURS),
            Row("learned scale, dropout", "dropout", paper=(0.869, 0.787)),
        ),
        (Claim("learned scale", "fixed scale"), Claim("learned scale", "learned scale, dropout")),
    ),
    "table2": Table(
        "Table 2: training stages",
        (
            Row("stage 3 only", "no caption stages", paper=(0.871, 0.790)),
            Row("stages 1 and 3", "stage 1", paper=(0.864, 0.781)),
            Row("stages 1, 2 and 3", "stages 1 and 2", paper=OURS),
        ),
        (Claim("stages 1, 2 and 3", "stage 3 only"), Claim("stages 1, 2 and 3", "stages 1 and 3")),
    ),
    "fig3": Table(
        "Figure 3: specialists in their own and in the other domain",
        tuple(
            Row(f"{model} {home} specialist on {away}", f"{prefix}{home} specialist", images=away)
            for model, prefix in (("uLLSAM", ""), ("uSAM", "uSAM "))
            for home, away in product(DOMAINS, repeat=2)
        ),
        tuple(
            Claim(f"uLLSAM {home} specialist on {away}", f"uSAM {home} specialist on {away}")
            for home, away in product(DOMAINS, repeat=2)
        ),
        SPECIALISTS,
    ),
    "table6": Table("Table 6: questions about images", ()),  # of `python -m ullsam microvqa`, see QUESTIONS
}
GRIDS = ("fig4", "fig7")  # pictures, not numbers

# Table 6: fractions of right answers; V perception, H hypotheses, E proposals of experiments
QUESTION_TYPES = ("all", "V", "H", "E")
QUESTIONS = {
    "random choice": (0.220, 0.219, 0.218, 0.219),
    "InternVL2.5-2B": (0.356, 0.351, 0.336, 0.400),
    "uLLSAM": (0.390, 0.392, 0.361, 0.438),
}
QUESTIONS_NOTE = (
    "Ours are made-up questions about synthetic images, a stand-in for MicroVQA: only the direction can be compared. The "
    "paper compares uLLSAM with its base model (+0.034), which tiny cannot: its language model alone sees no image."
)
