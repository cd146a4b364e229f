"""The replication's tables hold what was measured."""

from ullsam.lab.arms import OURS, TABLES
from ullsam.lab.reports import markdown_table, reproduced_tables, three_decimals, with_interval
from ullsam.lab.verdicts import Answers


def claims(budget, seeds, gap):
    """Results of table 3 and figure 5, 4 images of one set, in which uLLSAM is `gap` better than everything else."""
    rows = {}
    for table in ("table3", "fig5"):
        for row in TABLES[table].rows:
            dice = [0.5 + gap if row.arm == "full" and row.vlk else 0.5] * 4
            rows[row.key] = {str(seed): {"dice": dice, "sa": dice} for seed in range(seeds)}
    conditions = {"budget": {"steps": 40, "batch_size": 2, "images": 4}}
    images = {"in-domain": [["a", "LM", str(i)] for i in range(4)]}
    return {"images": images, "rows": rows, "conditions": conditions, "command": f"reproduce --budget {budget}"}


def cells(text, *first):
    """The cells of the first row whose first cells are these."""
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return next(row for row in rows if tuple(row[: len(first)]) == first)


def test_reproduced_tables_hold_what_was_measured():
    answers = [Answers("uLLSAM, its image", (0.4, 0.41, 0.42, 0.43), (0.3, 0.5), 0.25)]
    text = reproduced_tables(claims("short", 2, 0.1), tuple(TABLES), answers)
    assert cells(text, "uLLSAM") == ["uLLSAM", "0.600 ± 0.000", "0.600 ± 0.000", *(f"{x:.3f}" for x in OURS)]
    assert cells(text, "uLLSAM, its image (here)")[1:] == ["0.400", "0.410", "0.420", "0.430"]
    assert cells(text, "uLLSAM (paper)")[1:] == ["0.390", "0.392", "0.361", "0.438"]
    titles = {name for name, table in TABLES.items() if table.title in text}
    assert titles == {"table3", "table4", "fig5", "table6"}
    assert "±" not in reproduced_tables(claims("smoke", 1, 0.1), ["table3"])
    assert reproduced_tables({"rows": {}, "images": {}}, ["table3"]) == ""


def test_cells_by_hand():
    assert markdown_table(["a", 2], [["x", 0.5]]) == "| a | 2 |\n| --- | --- |\n| x | 0.5 |"
    assert three_decimals(None) == "" and three_decimals(0.12349) == "0.123"
    assert with_interval(0.1, -0.05, 0.25, "+") == "+0.100 (-0.050 to +0.250)"
