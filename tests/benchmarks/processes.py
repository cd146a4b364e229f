"""Memory and start of fresh processes, as Linux counts them."""

import json
import statistics
import subprocess
import sys
import time

PRELUDE = """
import json, sys, torch
import numpy as np
import ullsam

def say(step):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    parts = dict(line.split(":", 1) for line in list(open("/proc/self/smaps_rollup"))[1:])
    mb = lambda text: round(int(text.split()[0]) / 1024)
    names = {"resident_mb": "VmRSS", "peak_mb": "VmHWM"}
    numbers = {k: mb(status[v]) for k, v in names.items()} | {"share_mb": mb(parts["Pss"]), "private_mb": mb(
        parts["Private_Dirty"]) + mb(parts["Private_Clean"])}
    print(json.dumps({step: numbers}), flush=True)

torch.set_num_threads(1)
image = ullsam.generate("fluorescence_nuclei", 0, 512).image
"""
PLAIN = """
predictor = ullsam.Predictor(ullsam.load("usam-tiny"))
predictor.set_image(image)
predictor.predict([[200, 200]], [1])
say("sam_only")
"""
WHOLE = """
predictor = ullsam.Predictor(ullsam.load("tiny"))
say("with_llm")
predictor.set_image(image)
predictor.predict([[200, 200]], [1])
say("after_knowledge")
predictor.describe(max_new_tokens=48)
say("after_describe")
"""
WAIT = """
sys.stdin.readline()
say("both")
sys.stdin.readline()
"""


def start(code):
    """A fresh Python that runs the code; it prints one JSON object per line."""
    return subprocess.Popen([sys.executable, "-c", PRELUDE + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def memory():
    """Resident, peak and proportional memory of a fresh process after each step, MB."""
    steps = {}
    for code in (PLAIN, WHOLE):
        out, _ = start(code).communicate()
        for line in out.splitlines():
            steps |= json.loads(line)
    return steps


def shared_memory():
    """The same of two processes at once: `share_mb` counts a page that both use by half, `private_mb` not at all."""
    pair = [start(WHOLE + WAIT) for _ in range(2)]
    for process in pair:
        for _ in range(3):
            process.stdout.readline()
    results = []
    for process in pair:
        process.stdin.write("\n")
        process.stdin.flush()
        results.append(json.loads(process.stdout.readline())["both"])
    for process in pair:
        process.communicate("\n")
    return results


def import_seconds(repeats=5):
    """Median time of `import ullsam` in a fresh process, interpreter included; and of all that a first mask needs."""
    return {"wall_s": _seconds("import ullsam", repeats), "with_pytorch_s": _seconds("import ullsam; ullsam.load", repeats)}


def _seconds(code, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 3)
