"""The tables of the tiny model's speed and of the paper's claims, from their results files."""

from ullsam.lab.report_tiny import claims_table, speed_table
from ullsam.lab.reproduce_tables import TABLES

TIMES = {"ullsam": 1.5, "plain_ullsam": 0.2, "segment_anything": 0.3, "transformers": 0.8}
SPEED = {
    "aims": {
        "click_ms": {"measured": 21.5, "aim": 25, "reached": True},
        "import_s": {"measured": 1.9, "aim": 1.5, "reached": False},
    },
    "work": [
        {
            "work": work,
            "image": size,
            "objects": 1,
            "times": {who: {"cpu_median_s": x * scale, "median_s": x} for who, x in TIMES.items()},
        }
        for work in ("ready", "point")
        for size, scale in (("a", 1), ("b", 2))
    ]
    + [{"work": "caption", "image": "a", "objects": 1, "times": {"ullsam": {"median_s": 4.25}}}],
    "training": {"steps_per_s": 0.123, "images_per_step": 8, "view_px": 256},
    "conditions": {"threads": 1, "versions": {"torch": "2.14"}, "note": "idle"},
    "command": "make bench",
}


def claims(budget, seeds, gap):
    """Results of table 3 and figure 5, 4 images of one set, in which uLLSAM is `gap` better than everything else."""
    rows = {}
    for table in ("table3", "fig5"):
        for row in TABLES[table].rows:
            dice = [0.5 + gap if row.arm == "full" and row.vlk else 0.5] * 4
            rows[row.key] = {str(seed): {"dice": dice, "sa": dice} for seed in range(seeds)}
    conditions = {"budget": {"steps": 40, "batch_size": 2, "images": 4}}
    return {
        "images": {"in-domain": [["a", "LM", str(i)] for i in range(4)]},
        "rows": rows,
        "conditions": conditions,
        "command": f"python -m ullsam reproduce --budget {budget}",
    }


def test_aims_and_rivals_are_told():
    text = speed_table(SPEED)
    assert "| one click, any image size, ms | 21.5 | < 25 | yes |" in text
    assert "| import of ullsam, s | 1.9 | < 1.5 | no |" in text
    assert "A description takes 4.2 s. Training makes 0.12 steps per second (8 windows of 256 px)." in text
    assert "segment_anything's predictor takes 1.5 to 1.5 times as long as ours for an image and 1.5 to 1.5" in text
    assert "transformers' SamModel takes 4 to 4 times as long as ours for an image and 4 to 4 times for a click." in text
    assert "1 thread, PyTorch 2.14; idle. `make bench`." in text
    assert "Training" not in speed_table(SPEED | {"training": None})


def test_the_largest_budget_speaks_for_each_table():
    small, large = claims("class", 1, 0.1), claims("evening", 3, 0.2)
    large["rows"] = {key: v for key, v in large["rows"].items() if key in {r.key for r in TABLES["table3"].rows}}
    large["rows"].pop("full | 1P+3N | without VLK | in-domain", None)
    text = claims_table({"evening": large, "class": small})
    assert "| Table 3 | uLLSAM > uSAM trained with SBR points | +0.062 | +0.200 (+0.200 to +0.200) | agrees |" in text
    assert "| Figure 5 | uLLSAM > uLLSAM without VLK | +0.029 | +0.100 (+0.100 to +0.100) | agrees | class, 1 |" in text
    assert "| Figure 5 | uLLSAM without VLK > uSAM | +0.039 | +0.000 (+0.000 to +0.000) | cannot tell | class, 1 |" in text
    assert "Table 1" not in text and "[class](data/results/reproduce_class/tables.md)" in text
    assert "evening: 40 steps of 2 images, 4 images of each test set, `python -m ullsam reproduce --budget evening`." in text
