"""Speed and memory at the paper's size: SAM ViT-B/16 at 1024 px and InternLM2.5-1.8B with random weights, on this machine.

Run from the repository's folder: make bench-paper
Each part runs in a process of its own, ours and the others' in turn. What is measured is kept at once in the folder --work,
so that the same command goes on after an interruption; the result appears when all is there.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np

from ullsam.errors import InputError
from ullsam.files import write_json

OURS, THEIRS = "encoder ours", "encoder segment_anything"
SCHEDULE = (
    "gemm",
    f"{THEIRS} fp32",
    f"{OURS} fp32",
    f"{THEIRS} bf16",
    f"{OURS} bf16",
    "official inference",
    "inference",
    "training",
    "click",
    f"{OURS} bf16",
    f"{THEIRS} bf16",
    f"{OURS} fp32",
    f"{THEIRS} fp32",
    "inference",
    "training, least memory",
    "official training",
    "gemm",
)
FIRST_RUN = "official"  # parts whose name starts so are run once and not warmed up


def start_process(name: str, size: str, threads: int, work: Path) -> dict:
    """Runs a part in a fresh process; what it returns, or {"error": sentence}."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_paper", "--part", name, "--size", size]
    command += ["--threads", str(threads), "--work", str(work)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message; was the memory full?"])[-1]
        return {"error": f"ended with {done.returncode}: {last}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(schedule, run, path: Path, conditions: dict) -> list[dict]:
    """Visits the parts in the order of the schedule and keeps each result in a file at once.

    Args:
        schedule: names of parts, repeated ones are measured again; run: name -> result.
        path: results of an earlier, interrupted call under the same conditions are taken from here; failed ones are not.

    Returns:
        One {"part": name, ...} per entry of the schedule.
    """
    visits = [None] * len(schedule)
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["conditions"] == conditions and len(stored["visits"]) == len(schedule):
            visits = [None if v is None or "error" in v else v for v in stored["visits"]]
    for i, name in enumerate(schedule):
        if visits[i] is None:
            visits[i] = {"part": name, "load_before": round(os.getloadavg()[0], 1), **run(name)}
            write_json(path, {"conditions": conditions, "visits": visits})
            print(f"{i + 1}/{len(schedule)} {name}: {describe(visits[i])}", flush=True)
    return visits


def describe(visit: dict) -> str:
    """One line of a visit for the screen."""
    if "error" in visit:
        return visit["error"]
    if "flops_per_second" in visit:
        return ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in visit["flops_per_second"].items())
    return ", ".join(f"{k} {median(v):.2f} s" for k, v in visit["seconds"].items()) + f", peak {visit['peak_gb']:.1f} GB"


def summarise(visits: list[dict]) -> dict:
    """Medians, FLOPs and shares of the machine's rate of each part; parts that failed keep their sentence."""
    good = [v for v in visits if "error" not in v]
    rates = {kind: median(v["flops_per_second"][kind] for v in good if "flops_per_second" in v) for kind in ("fp32", "bf16")}
    parts = {v["part"]: {"error": v["error"]} for v in visits if "error" in v}
    for name in dict.fromkeys(v["part"] for v in good if "seconds" in v):
        same = [v for v in good if v["part"] == name]
        rate = rates["fp32" if name == "click" or name.endswith("fp32") else "bf16"]
        parts[name] = _part(same, rate) | {"warmed_up": not name.startswith(FIRST_RUN)}
    return {"gemm_gflops_per_second": {k: round(v / 1e9, 1) for k, v in rates.items()}, "parts": parts}


def _part(same: list[dict], rate: float) -> dict:
    phases = {}
    for phase in same[0]["seconds"]:
        times = [t for v in same for t in v["seconds"][phase]]
        cpu = [t for v in same for t in v["cpu_seconds"][phase]]
        flops, seconds = same[0]["flops"][phase], median(times)
        phases[phase] = {
            "seconds": round(seconds, 4),
            "all_seconds": [round(t, 4) for t in times],
            "cpu_seconds": round(median(cpu), 4),
            "gflops": round(flops / 1e9, 2),
            "share_of_gemm": round(flops / seconds / rate, 3),
        }
    total = sum(p["seconds"] for p in phases.values())
    return {
        "seconds": round(total, 3),
        "gflops": round(sum(p["gflops"] for p in phases.values()), 1),
        "peak_gb": round(max(v["peak_gb"] for v in same), 2),
        "visits": len(same),
        "phases": phases,
    }


def aims(parts: dict, largest_difference: float | None) -> dict:
    """What was aimed at beside what was reached, and our ratios to the others; absent where a part is absent."""
    seconds = {name: part["seconds"] for name, part in parts.items() if "seconds" in part}
    peaks = {name: part["peak_gb"] for name, part in parts.items() if "peak_gb" in part}
    phases = parts.get("click", {}).get("phases")
    rows = {
        "inference, seconds": (seconds.get("inference"), "<", 15),
        "training step, seconds": (seconds.get("training"), "<", 35),
        "inference, peak GB": (peaks.get("inference"), "<", 9),
        "training, peak GB": (peaks.get("training"), "<", 9),
        "training with everything computed again, seconds": (seconds.get("training, least memory"), "<", 35),
        "training with everything computed again, peak GB": (peaks.get("training, least memory"), "<", 9),
        "encoder fp32, times faster than segment_anything fp32": (
            _ratio(seconds, f"{THEIRS} fp32", f"{OURS} fp32"),
            ">=",
            2,
        ),
        "encoder bf16, times faster than segment_anything fp32": (
            _ratio(seconds, f"{THEIRS} fp32", f"{OURS} bf16"),
            ">=",
            3,
        ),
        "encoder fp32, largest difference from segment_anything": (largest_difference, "<", 1e-4),
        "click, times the bare decoder": (
            phases and phases["click"]["seconds"] / phases["bare decoder"]["seconds"],
            "<=",
            1.2,
        ),
        "encoder bf16, times faster than segment_anything bf16": (
            _ratio(seconds, f"{THEIRS} bf16", f"{OURS} bf16"),
            ">=",
            None,
        ),
        "inference, times faster than the official costs": (_ratio(seconds, "official inference", "inference"), ">=", None),
        "training, times faster than the official costs": (_ratio(seconds, "official training", "training"), ">=", None),
        "inference, share of the official peak": (_ratio(peaks, "inference", "official inference"), "<", None),
        "training, share of the official peak": (_ratio(peaks, "training", "official training"), "<", None),
    }
    return {name: _aim(*row) for name, row in rows.items()}


def _ratio(values: dict, above: str, below: str) -> float | None:
    return values[above] / values[below] if above in values and below in values else None


def _aim(value: float | None, relation: str, aim: float | None) -> dict:
    row = {"measured": None if value is None else float(f"{value:.4g}")}
    if aim is None:
        return row
    met = value is not None and {"<": value < aim, "<=": value <= aim, ">=": value >= aim}[relation]
    return row | {"aim": f"{relation} {aim}", "reached": met}


def difference(work: Path) -> float | None:
    """Largest difference between our encoder's output and segment_anything's, both float32, whose spread is near 1."""
    files = [work / f"encoder_{who}_fp32.npy" for who in ("ours", "theirs")]
    if not all(f.is_file() for f in files):
        return None
    ours, theirs = (np.load(f) for f in files)
    return float(np.abs(ours - theirs).max())


def main() -> None:
    """One part (for the processes that this starts), or all of them and the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="paper", choices=("paper", "small"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("build/bench_paper"), help="what an interrupted run has measured")
    parser.add_argument("--out", type=Path, default=Path("data/results/bench_paper.json"))
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="PART", help="for example 'official training', 18 GB")
    parser.add_argument("--note", default="nothing else ran", help="what else the machine did")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.part:
        from tests.benchmarks.bench_paper_parts import run_part

        print(json.dumps(run_part(args.part, args.size, args.threads, args.work)))
        return
    everything(args)


def everything(args) -> None:
    """Measures, summarises, writes the result and removes what was kept for going on."""
    import torch
    import transformers

    unknown, known = set(args.leave_out) - set(SCHEDULE), dict.fromkeys(SCHEDULE)
    if unknown:
        raise InputError(f"There is no part {', '.join(sorted(unknown))}; the parts are {', '.join(known)}.")
    conditions = {
        "size": args.size,
        "threads": args.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "note": args.note,
    }
    schedule = [name for name in SCHEDULE if name not in args.leave_out]
    visits = measure(
        schedule, lambda name: start_process(name, args.size, args.threads, args.work), args.work / "visits.json", conditions
    )
    summary = summarise(visits)
    result = {
        "what": "random weights, one image of 1024 px; seconds are medians; FLOPs of matrix products, convolutions "
        "and attention; share_of_gemm: of this machine's own rate for large square matrices; bf16: ours in autocast, "
        "the others' weights in bfloat16; official: a re-creation of that code's costs",
        "aims": aims(summary["parts"], difference(args.work)),
        **summary,
        "conditions": conditions,
        "load_before": [v.get("load_before") for v in visits],
        "command": "make bench-paper",
    }
    write_json(args.out, result)
    shutil.rmtree(args.work)
    for name, row in result["aims"].items():
        print(f"{name}: {row['measured']}" + (f" (aim {row['aim']})" if "aim" in row else ""))


if __name__ == "__main__":
    main()
