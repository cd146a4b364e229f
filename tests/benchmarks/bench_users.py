"""Several people at once in the app as Voila serves it: how long each waits, what it costs, and that nobody meets another.

Each person has a page of their own, uploads their own synthetic image, clicks on its objects with a pause between, saves,
describes the image if asked to, and downloads. Run from the repository's folder: python -m tests.benchmarks.bench_users
"""

import argparse
import asyncio
import io
import itertools
import json
import os
import platform
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import psutil
import tifffile

import ullsam
from tests.benchmarks.bench_click import WATCH
from tests.browser import driver
from ullsam.files import write_json

LIMIT = 10 * 60 * 1000  # ms; many kernels that start together on one core take their time
SAVED = 3  # objects that each person saves
SAME = 12  # mean difference of grey levels up to which a picture on the screen is that image
STEP = 8  # pixels by which the image of each person is narrower than that of the one before
LARGE = 300  # pixels of an object that is worth a click; an image has at least one more of them than are saved
RIM = 13  # pixels around saved objects where outlines and numbers are drawn
IDLE = """() => {
  const w = document.querySelector(".ullsam"), c = w?.querySelector(".ullsam-canvas");
  return w?.getAttribute("aria-busy") === "false" && Boolean(c.dataset.painted);
}"""
PLACE = """c => {
  const box = c.getBoundingClientRect(), view = JSON.parse(c.dataset.view);
  return { view, left: box.left + c.clientLeft, top: box.top + c.clientTop, width: c.clientWidth };
}"""


class Person:
    """One person at a page of their own.

    Args:
        number: from 0; image: uint8 (H, W, 3), truth: int32 (H, W), of this person alone.
    """

    def __init__(self, number, image, truth):
        self.name, self.image, self.truth = f"person{number}.png", image, truth
        self.objects, self.seconds = large_objects(truth), {}

    async def come(self, browser, address):
        """Opens the app and waits for its buttons."""
        start = time.perf_counter()
        context = await browser.new_context(viewport={"width": 1280, "height": 720})
        self.page = await context.new_page()
        await self.page.goto(address, timeout=LIMIT)
        await self.page.get_by_role("button", name="Choose an image").wait_for(timeout=LIMIT)
        self.seconds["ready"] = time.perf_counter() - start

    async def upload(self):
        """Sends the image and makes the first mask, for which the image is encoded."""
        data = cv2.imencode(".png", self.image[..., ::-1])[1].tobytes()
        start = time.perf_counter()
        await self.page.locator(".ullsam-files input").set_input_files(
            {"name": self.name, "mimeType": "image/png", "buffer": data}
        )
        self.canvas = self.page.locator(".ullsam-canvas")
        await self.canvas.wait_for(timeout=LIMIT)
        await self.settle()
        self.seconds["image"] = time.perf_counter() - start
        await self.click(self.objects[0])
        self.seconds["first_mask"] = time.perf_counter() - start
        await self.press("Escape")

    async def work(self, clicks, pause):
        """Clicks on objects in turn; the first ones are saved."""
        await self.canvas.evaluate(WATCH)
        for i in range(clicks):
            await self.click(self.objects[i % len(self.objects)])
            await self.press("s" if i < SAVED else "Escape")
            kept = min(i + 1, SAVED)
            assert await self.page.get_by_text(f"Saved instances ({kept})").count(), f"{self.name}: not {kept} saved"
            await asyncio.sleep(pause)
        self.times = await self.page.evaluate("window.times")

    async def describe(self):
        """Asks the language model."""
        start = time.perf_counter()
        await self.page.get_by_role("button", name="Describe").click()
        await self.settle()
        self.seconds["description"] = time.perf_counter() - start

    async def check(self, persons):
        """The downloaded masks and the picture on the screen are this person's own; mean Dice of what was saved."""
        async with self.page.expect_download(timeout=LIMIT) as started:
            await self.page.get_by_role("button", name="Download results").click()
        file = await (await started.value).path()
        with zipfile.ZipFile(io.BytesIO(Path(file).read_bytes())) as content:
            names = content.namelist()
            assert all(Path(self.name).stem in name for name in names), f"{self.name}: files of another person, {names}"
            labels = tifffile.imread(io.BytesIO(content.read(next(n for n in names if n.endswith("labels.tif")))))
        assert labels.shape == self.truth.shape, f"{self.name}: masks of {labels.shape}"
        assert set(np.unique(labels)) == {*range(SAVED + 1)}, f"{self.name}: objects {np.unique(labels)} were saved"
        self.dice = float(np.mean([dice(labels == i + 1, self.truth == n) for i, n in enumerate(self.objects[:SAVED])]))
        await self.check_picture(labels, persons)

    async def check_picture(self, labels, persons):
        """Where no mask is drawn, the picture on the screen is this person's image and no other one's."""
        place = await self.canvas.evaluate(PLACE)
        drawn = driver.decoded(await self.canvas.evaluate(driver.DRAWN))
        seen = driver.at_pixels(drawn, place["view"], place["width"], labels.shape)
        free = cv2.dilate((labels > 0).astype(np.uint8), np.ones((RIM, RIM))) == 0
        width = min(p.image.shape[1] for p in persons)
        far = {
            p.name: np.abs(seen - p.image[:, : labels.shape[1]])[free].mean()
            if p is self
            else np.abs(seen[:, :width] - p.image[:, :width])[free[:, :width]].mean()
            for p in persons
        }
        assert far[self.name] < SAME, f"{self.name}: another picture is shown, {far}"
        assert min(far, key=far.get) == self.name, f"{self.name}: the picture of another person is shown, {far}"

    async def click(self, number):
        """Clicks on the middle of an object and waits for its mask."""
        x, y = driver.middle(self.truth == number)
        await self.canvas.scroll_into_view_if_needed()
        place = await self.canvas.evaluate(PLACE)
        view = place["view"]
        await self.page.mouse.click(
            place["left"] + view["x"] + (x + 0.5) * view["scale"], place["top"] + view["y"] + (y + 0.5) * view["scale"]
        )
        await self.settle()

    async def press(self, key):
        await self.page.keyboard.press(key)
        await self.settle()

    async def settle(self):
        """Until every gesture is answered and drawn."""
        await self.page.wait_for_timeout(60)
        await self.page.wait_for_function(IDLE, timeout=LIMIT)


def large_objects(truth):
    """Numbers of the objects that are worth a click, the largest first."""
    sizes = np.bincount(truth.ravel())
    return [int(n) for n in np.argsort(-sizes) if n and sizes[n] >= LARGE]


def images(users):
    """(image, truth) for each person: synthetic nuclei, each image of another width and with enough objects."""
    found, seeds = [], itertools.count(3)
    while len(found) < users:
        sample = ullsam.generate("fluorescence_nuclei", seed=next(seeds))
        width = sample.labels.shape[1] - STEP * len(found)
        if len(large_objects(sample.labels[:, :width])) > SAVED:
            found.append((sample.image[:, :width], sample.labels[:, :width]))
    return found


def dice(a, b):
    """Overlap of two masks, 0..1."""
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def memory():
    """Proportional memory (PSS) of each kernel and of the server, MB: what several share is counted once in their sum."""
    kernels, servers = [], []
    for process in psutil.Process().children(recursive=True):
        try:
            words, size = " ".join(process.cmdline()), process.memory_full_info().pss / 1e6
        except psutil.Error:
            continue  # it has ended
        if "ipykernel_launcher" in words:
            kernels.append(size)
        elif "ullsam" in words:
            servers.append(size)
    return {
        "kernels_mb": [round(k) for k in sorted(kernels)],
        "server_mb": round(sum(servers)),
        "sum_mb": round(sum(kernels) + sum(servers)),
        "machine_free_mb": round(psutil.virtual_memory().available / 1e6),
    }


async def together(persons, act):
    """All persons at the same time."""
    await asyncio.gather(*(act(person) for person in persons))


async def visit(address, users, clicks, pause, words):
    """Lets all of them come, work and leave; returns them, and the memory after each part."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=driver.CHROMIUM, args=driver.SWITCHES)
        persons, held = [Person(number, *own) for number, own in enumerate(images(users))], {}
        parts = {
            "ready": lambda p: p.come(browser, address),
            "first_mask": Person.upload,
            "worked": lambda p: p.work(clicks, pause),
        }
        parts |= {"described": Person.describe} if words else {}
        for name, act in parts.items():
            await together(persons, act)
            held[name] = memory()
            print(name, json.dumps(held[name]), flush=True)
        await together(persons, lambda p: p.check(persons))
        await browser.close()
    return persons, held


def middle_and_worst(values, digits=1):
    """Median and largest of some numbers."""
    return {"median": round(float(np.median(values)), digits), "largest": round(float(max(values)), digits)}


def summary(persons):
    """What all persons together waited for."""
    times = [t for person in persons for t in person.times]
    return {
        "click_ms": {
            "median": round(float(np.median(times)), 1),
            "p95": round(float(np.percentile(times, 95)), 1),
            "clicks": len(times),
        },
        "seconds": {name: middle_and_worst([p.seconds[name] for p in persons]) for name in persons[0].seconds},
        "dice_of_saved": middle_and_worst([p.dice for p in persons], 3)["median"],
        "separate": True,  # Person.check has compared every picture, file name and mask
    }


def main():
    """Writes the result as JSON and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 2, 4, 8], help="each number is tried on a new server")
    parser.add_argument("--clicks", type=int, default=12, help="of each person")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between a mask and the next click")
    parser.add_argument("--describe", action="store_true", help="everyone asks the language model too")
    parser.add_argument("--note", default="nothing else ran", help="what else the machine did")
    parser.add_argument("--out", default="data/results/app_users.json")
    args = parser.parse_args()
    tried = []
    for users in args.users:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder, driver.app(Path(folder)) as address:
            persons, held = asyncio.run(visit(address, users, args.clicks, args.pause, args.describe))
        tried.append({"users": users, **summary(persons), "memory": held, "load_before": round(load, 1)})
        print(json.dumps(tried[-1]), flush=True)
    cores = len(os.sched_getaffinity(0))
    conditions = {
        "cores": cores,
        "threads_of_a_kernel": 1,
        "machine": platform.machine(),
        "pause_s": args.pause,
        "browser": "Chromium, headless, on the same cores",
        "note": args.note,
    }
    write_json(
        args.out,
        {
            "what": "several people at once in the app",
            "tried": tried,
            "conditions": conditions,
            "command": f"python -m tests.benchmarks.bench_users --users {' '.join(map(str, args.users))} "
            f"--clicks {args.clicks} --pause {args.pause}{' --describe' * args.describe}",
        },
    )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
