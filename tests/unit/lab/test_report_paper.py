"""The tables of the benchmark at the paper's size, from its results file."""

from ullsam.lab.report_paper import aims, paper_tables, parts

RESULT = {
    "what": "random weights",
    "command": "make bench-paper",
    "gemm_gflops_per_second": {"fp32": 190.2, "bf16": 400.0},
    "aims": {
        "inference, seconds": {"measured": 12.345, "aim": "< 15", "reached": True},
        "training step, seconds": {"measured": None, "aim": "< 35", "reached": False},
        "share of the peak": {"measured": 0.5},
    },
    "parts": {
        "inference": {
            "peak_gb": 5.3,
            "phases": {
                "encoder": {"seconds": 4.0, "gflops": 970.0, "share_of_gemm": 0.606},
                "mask": {"seconds": 0.0512, "gflops": 4.0, "share_of_gemm": 0.2},
            },
        },
        "training": {"error": "ended with -9: no message; was the memory full?"},
    },
    "conditions": {"threads": 2, "cores": 2, "machine": "x86_64", "torch": "2.14", "transformers": "5.23", "note": "idle"},
}


def test_aims_say_what_was_reached():
    assert aims(RESULT)[2:] == [
        "| inference, seconds | 12.3 | < 15 | yes |",
        "| training step, seconds | not measured | < 35 | no |",
        "| share of the peak | 0.5 |  |  |",
    ]


def test_parts_are_told_phase_by_phase():
    rows = parts(RESULT)[2:]
    assert rows == ["| inference | encoder | 4 | 0.97 | 61% | 5.3 |", "| inference | mask | 0.0512 | 0.00 | 20% | 5.3 |"]


def test_conditions_stand_below():
    text = paper_tables(RESULT)
    assert "2 threads on 2 cores (x86_64), PyTorch 2.14, transformers 5.23; idle" in text
    assert "190 GFLOP/s in fp32, 400 GFLOP/s in bf16. `make bench-paper`." in text
