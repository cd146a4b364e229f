"""Commands that tell what was measured: the paper's tables and figures at tiny scale, and the pages with all results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from ullsam.cli.options import one_of
from ullsam.errors import InputError


@dataclass(frozen=True)
class Replication:
    """How much is measured, from what, and where it goes."""

    budget: str = "smoke"  # smoke: half an hour on two cores, one seed; short: three hours, three seeds; full: a night
    seeds: int | None = None  # train each arm so many times; as the budget says without it
    out: str | None = None  # folder of the trained arms; runs/reproduce_BUDGET without it
    results: str | None = None  # JSON file; data/results/reproduce_BUDGET.json without it
    figures: str | None = None  # folder for tables.md and the PNG files; data/results/reproduce_BUDGET without it
    questions: str | None = None  # folder of the results of microvqa, for table6; data/results without it
    # saved model whose SAM all arms start from, for example one that has not learnt from clicks yet; usam-tiny without it
    sam: str | None = None
    data: str | None = None  # folder of all datasets; ULLSAM_DATA without it
    synthetic: bool = False  # synthetic images instead of datasets


def reproduce(tables: Positional[tuple[str, ...]] = (), options: OmitArgPrefixes[Replication] = Replication()) -> None:
    """Measure the paper's tables and figures at tiny scale; what is measured already is not measured again.

    Args:
        tables: table1 .. table6, fig3 .. fig7; all, the most telling first, without a name
    """
    one_of(data=options.data, synthetic=options.synthetic)
    from ullsam.checkpoints.loading import shipped
    from ullsam.data.corpus import data_root
    from ullsam.files import whole
    from ullsam.lab.arms import TABLES
    from ullsam.lab.figures import write_figures
    from ullsam.lab.replication import Reproduction, budget_of
    from ullsam.lab.reports import reproduced_tables
    from ullsam.lab.verdicts import read_answers

    o, names, answers, problem = options, tables or tuple(TABLES), (), ""
    if "table6" in names:
        try:
            answers = read_answers(o.questions or shipped("results"))
        except InputError as error:
            if tables:  # asked for by name
                raise
            problem = str(error)
    results, folder = (
        o.results or f"data/results/reproduce_{o.budget}.json",
        o.figures or f"data/results/reproduce_{o.budget}",
    )
    words = ["python -m ullsam reproduce", *tables, f"--budget {o.budget}", *["--synthetic"] * o.synthetic]
    words += ([f"--seeds {o.seeds}"] if o.seeds else []) + (["--sam", Path(o.sam).name] if o.sam else [])
    places = (o.out or f"runs/reproduce_{o.budget}", results, None if o.synthetic else data_root(o.data))
    job = Reproduction(budget_of(o.budget, o.seeds), *places, start_model(o.sam), " ".join(words))
    job.run(names)
    write_figures(job, names, Path(folder), answers or None)
    text = reproduced_tables(job.results, names, answers)
    with whole(Path(folder) / "tables.md") as part:
        part.write_text(f"{text}\n", encoding="utf-8")
    print("\n\n".join(filter(None, (text, problem, f"written to {results} and {folder}"))))


def start_model(sam: str | None):
    """What all arms start from, with another SAM if one is named."""
    from ullsam.evaluation.compare import shared_start
    from ullsam.tiny.recipes import load_parts

    start = shared_start()
    if sam:
        load_parts(start, sam)
    return start
