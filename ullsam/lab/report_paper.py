"""The benchmark at the paper's size (`make bench-paper`) as Markdown: aims beside what was measured, and part by part."""

from __future__ import annotations

from ullsam.lab.markdown import table_head, table_row

REACHED = {True: "yes", False: "no", None: ""}


def paper_tables(result: dict) -> str:
    """Both tables and the conditions.

    Args:
        result: what bench_paper wrote, see data/results/bench_paper.json.
    """
    c = result["conditions"]
    note = (
        f"{result['what']}. {c['threads']} threads on {c['cores']} cores ({c['machine']}), PyTorch {c['torch']}, "
        f"transformers {c['transformers']}; {c['note']}. Large matrices: {_rates(result)}. `{result['command']}`."
    )
    return "\n".join(["**At the paper's size**:\n", *aims(result), "", *parts(result), f"\n{note}\n"])


def aims(result: dict) -> list[str]:
    """Rows of what was aimed at and what was reached."""
    rows = table_head(["", "measured", "aim", "reached"])
    for name, aim in result["aims"].items():
        measured = "not measured" if aim["measured"] is None else f"{aim['measured']:.3g}"
        rows.append(table_row([name, measured, aim.get("aim", ""), REACHED[aim.get("reached")]]))
    return rows


def parts(result: dict) -> list[str]:
    """Rows of all phases of all parts: where the time goes, and how far each is from what the machine can do."""
    rows = table_head(["part", "phase", "seconds", "TFLOP", "share of the machine's rate", "peak GB"])
    for name, part in result["parts"].items():
        for phase, x in part.get("phases", {}).items():
            flops, share = f"{x['gflops'] / 1000:.2f}", f"{x['share_of_gemm']:.0%}"
            rows.append(table_row([name, phase, f"{x['seconds']:.3g}", flops, share, part["peak_gb"]]))
    return rows


def _rates(result: dict) -> str:
    return ", ".join(f"{rate:.0f} GFLOP/s in {kind}" for kind, rate in result["gemm_gflops_per_second"].items())
