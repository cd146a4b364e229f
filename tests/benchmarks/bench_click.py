"""Time from a click in a real browser to its mask on the screen, in the app as Voila serves it.

Run from the repository's folder: python -m tests.benchmarks.bench_click
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

import cv2
import numpy as np

import ullsam
from tests.browser import driver
from ullsam.files import write_json

WATCH = """canvas => {
  window.times = [];
  let start = null, before = null;
  canvas.addEventListener("pointerup", () => { start = performance.now(); before = canvas.dataset.mask; }, true);
  new MutationObserver(() => {
    if (start === null || canvas.dataset.mask === before) return;
    window.times.push(performance.now() - start);
    start = null;
  }).observe(canvas, { attributeFilter: ["data-mask"] });
}"""


def measure(address, sample, clicks):
    """Milliseconds of each click, always with one point, on objects in turn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=driver.CHROMIUM, args=driver.SWITCHES)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(address, timeout=driver.PATIENCE * 1000)
        page.get_by_role("button", name="Choose an image").wait_for(timeout=driver.PATIENCE * 1000)
        data = cv2.imencode(".png", sample.image[..., ::-1])[1].tobytes()
        page.locator(".ullsam-files input").set_input_files({"name": "cells.png", "mimeType": "image/png", "buffer": data})
        picture = driver.Picture(page.locator(".ullsam"))
        places = [np.argwhere(sample.labels == n).mean(axis=0) for n in range(1, sample.labels.max() + 1)]
        picture.click(*map(int, places[0][::-1]))  # the first one also waits for encoder and knowledge
        picture.press("Escape")
        picture.canvas.evaluate(WATCH)
        for i in range(clicks):
            picture.click(*map(int, places[i % len(places)][::-1]))
            picture.press("Escape")
        version, times = browser.version, page.evaluate("window.times")
        browser.close()
    return times, f"Chromium {version}, headless"


def main():
    """Writes the result as JSON and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument("--note", default="nothing else ran", help="what else the machine did")
    parser.add_argument("--out", default="data/results/click_latency.json")
    args = parser.parse_args()
    sample = ullsam.generate("fluorescence_nuclei", seed=3)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, driver.app(Path(folder)) as address:
        times, browser = measure(address, sample, args.clicks)
    result = {
        "what": "milliseconds from releasing the mouse button to the drawn mask, one point per click",
        "median_ms": round(float(np.median(times)), 1),
        "p95_ms": round(float(np.percentile(times, 95)), 1),
        "clicks": len(times),
        "times_ms": [round(t, 1) for t in times],
        "conditions": {
            "front_end": "app.ipynb in Voila",
            "browser": browser,
            "image": f"{sample.labels.shape[1]} x {sample.labels.shape[0]} pixels",
            "model": "uLLSAM-tiny with knowledge",
            "threads": 1,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "load_before": round(load, 1),
            "note": args.note,
        },
        "command": f"python -m tests.benchmarks.bench_click --clicks {args.clicks}",
    }
    write_json(args.out, result)
    print(f"median {result['median_ms']} ms, 95 % below {result['p95_ms']} ms, {len(times)} clicks; written to {args.out}")


if __name__ == "__main__":
    main()
