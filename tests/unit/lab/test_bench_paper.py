"""The benchmark of the paper's size: its parts at a small size, going on after an interruption, its summary."""

import json

import pytest
import torch

from tests.benchmarks import bench_paper, bench_paper_models
from tests.benchmarks.bench_paper_parts import PARTS, run_part
from ullsam import encode_image

SMALL = bench_paper_models.SIZES["small"]
GEMM = {"flops_per_second": {"fp32": 1e9, "bf16": 2e9}, "peak_gb": 0.1}


def timed(seconds, flops=10**9, peak=1.0, phase="all"):
    return {"seconds": {phase: seconds}, "cpu_seconds": {phase: seconds}, "flops": {phase: flops}, "peak_gb": peak}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_runs_at_a_small_size(name, tmp_path):
    threads = torch.get_num_threads()
    result = run_part(name, "small", threads, tmp_path)
    assert result["peak_gb"] > 0
    if name != "gemm":
        assert sum(result["flops"].values()) > 0
        assert result["seconds"].keys() == result["flops"].keys() == result["cpu_seconds"].keys()


@torch.no_grad()
def test_both_encoders_have_the_same_weights_and_output():
    ours, theirs = bench_paper_models.our_encoder(SMALL), bench_paper_models.their_encoder(SMALL)
    assert type(ours.blocks[0].attn) is not type(theirs.blocks[0].attn)
    pixels = torch.randn(1, 3, SMALL.sam.image_size, SMALL.sam.image_size)
    torch.testing.assert_close(encode_image(ours, pixels).embedding, theirs(pixels), rtol=1e-5, atol=1e-5)


def test_flops_of_products_and_attention_are_counted():
    counts, q = {}, torch.randn(1, 2, 8, 4, requires_grad=True)
    with bench_paper_models.counting(counts):
        torch.randn(3, 4) @ torch.randn(4, 5)
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counts["flops"] == 2 * 3 * 4 * 5 + 7 * (2 * 2 * 8 * 8 * 4)  # 2 products forward, 5 backward


def test_goes_on_after_an_interruption(tmp_path):
    path, seen = tmp_path / "visits.json", []

    def run(name):
        seen.append(name)
        if seen == ["a", "b", "c"]:
            raise KeyboardInterrupt
        return {"error": "full"} if seen == ["a"] else timed([1.0])

    with pytest.raises(KeyboardInterrupt):
        bench_paper.measure("abc", run, path, {"threads": 1})
    visits = bench_paper.measure("abc", run, path, {"threads": 1})
    assert seen == ["a", "b", "c", "a", "c"]  # a failed, c was interrupted, b is kept
    assert [v["part"] for v in visits] == ["a", "b", "c"]
    bench_paper.measure("abc", run, path, {"threads": 2})
    assert seen[5:] == ["a", "b", "c"]  # other conditions: all anew


def test_summary_has_medians_shares_and_failures():
    visits = [
        {"part": "gemm", **GEMM},
        {"part": "inference", **timed([1.0, 2.0])},
        {"part": "inference", **timed([4.0], peak=3.0)},
        {"part": "official training", "error": "ended with -9"},
    ]
    summary = bench_paper.summarise(visits)
    part = summary["parts"]["inference"]
    assert part["seconds"] == 2.0 and part["peak_gb"] == 3.0 and part["visits"] == 2
    assert part["phases"]["all"]["share_of_gemm"] == 0.25  # 1 GFLOP in 2 s of 2 GFLOP/s
    assert summary["parts"]["official training"] == {"error": "ended with -9"}


def test_aims_say_what_was_reached():
    parts = {
        "encoder ours fp32": {"seconds": 2.0},
        "encoder segment_anything fp32": {"seconds": 3.0},
        "training": {"seconds": 30.0, "peak_gb": 9.5},
        "click": {"phases": {"click": {"seconds": 1.1}, "bare decoder": {"seconds": 1.0}}},
    }
    rows = bench_paper.aims(parts, 1e-5)
    encoder = rows["encoder fp32, times faster than segment_anything fp32"]
    assert encoder == {"measured": 1.5, "aim": ">= 2", "reached": False}
    assert rows["training step, seconds"]["reached"] and not rows["training, peak GB"]["reached"]
    assert rows["click, times the bare decoder"]["reached"]
    assert rows["inference, seconds"] == {"measured": None, "aim": "< 15", "reached": False}
    json.dumps(rows, allow_nan=False)
