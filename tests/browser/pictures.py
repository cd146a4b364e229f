"""Makes the README's pictures: of what the browser tests saw last, and a short film of the app.

Run from the repository's folder: python -m tests.browser.pictures
"""

import argparse
import io
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import ullsam
from tests.browser import driver
from tests.browser.driver import PATIENCE, ROOT, Picture, middle

PICTURES = {"click_lab": "lab_restarted", "click_app": "app_saved", "click_phone": "phone_click"}
COLOURS = 256  # of each picture, so that it stays small
FILM = "click.gif"
SHADES = 128  # of all frames of the film
WINDOW = {"width": 900, "height": 640}  # CSS pixels of the filmed page
WIDTH = 720  # of a frame, pixels
PAUSE = 900  # ms that a frame stays
LONG = 2600  # ms of the frames in which there is something to read
WORDS = 40  # letters by which the description grows from frame to frame
HAND = """([x, y]) => {
  const hand = document.querySelector("#hand") ?? document.body.appendChild(Object.assign(document.createElement("div"),
    { id: "hand", innerHTML: '<svg width="26" height="26"><path d="M2 2v19l5-5 4 8 4-2-4-8h7z" fill="white" ' +
      'stroke="black" stroke-width="1.6"/></svg>' }));
  hand.style.cssText = `position: fixed; left: ${x - 2}px; top: ${y - 2}px; z-index: 9999; pointer-events: none`;
}"""


class Film:
    """Frames of a page, each with the pointer, which browsers leave out of their pictures."""

    def __init__(self, page):
        self.page, self.frames, self.times = page, [], []

    def show(self, place, time=PAUSE):
        """One more frame with the pointer at `place`, CSS pixels of the window."""
        self.page.evaluate(HAND, list(place))
        with Image.open(io.BytesIO(self.page.screenshot())) as shot:
            self.frames.append(shot.convert("RGB").resize((WIDTH, round(WIDTH * shot.height / shot.width)), Image.LANCZOS))
        self.times.append(time)

    def write(self, path):
        """All frames as a GIF that starts again at its end, in the colours that all of them share."""
        size = self.frames[0].size
        tall = Image.new("RGB", (size[0], size[1] * len(self.frames)))
        for i, frame in enumerate(self.frames):
            tall.paste(frame, (0, i * size[1]))
        colours = tall.quantize(SHADES, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        frames = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in self.frames]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=self.times, loop=0, optimize=True)


def act(film, picture, labels):
    """A click inside, one outside, saving, a second object, and the description."""
    first, second = largest(labels, 2)
    film.show((150, 150))
    film.show(picture.place(*middle(first)))
    picture.click(*middle(first))
    film.show(picture.place(*middle(first)), LONG)
    beside = next_to(first, labels)
    picture.click(*beside, button="right")
    film.show(picture.place(*beside), LONG)
    press(film, picture, "Save instance")
    picture.click(*middle(second))
    film.show(picture.place(*middle(second)))
    press(film, picture, "Save instance")
    describe(film, picture)


def press(film, picture, name):
    """Presses a button of the widget and shows what it did."""
    place = centre(picture.widget.get_by_role("button", name=name, exact=True))
    film.show(place)
    picture.button(name)
    film.show(place)


def describe(film, picture):
    """The description while it grows, and when it is whole."""
    button, words = (
        picture.widget.get_by_role("button", name="Describe", exact=True),
        picture.widget.locator(".ullsam-words"),
    )
    place = centre(button)
    button.click()
    grown = "([c, n]) => c.textContent.length > n || !document.querySelector('.ullsam[aria-busy=true]')"
    for step in range(1, 4):
        picture.page.wait_for_function(grown, arg=[words.element_handle(), step * WORDS], timeout=PATIENCE * 1000)
        film.show(place)
    picture.settle()
    film.show(place, 2 * LONG)


def centre(part):
    """Middle of a part of the page, CSS pixels of the window."""
    box = part.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def largest(labels, count):
    """Masks of the largest objects that do not touch the image's edge."""
    edge = np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()])
    masks = [labels == number for number in np.setdiff1d(labels, edge) if number]
    return sorted(masks, key=np.sum, reverse=True)[:count]


def next_to(mask, labels):
    """A pixel (x, y) of the background close to an object, where no other one is near."""
    ring = (cv2.dilate(mask.astype(np.uint8), np.ones((11, 11))) > 0) & (labels == 0)
    room = cv2.distanceTransform((labels == 0).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(np.where(ring, room, -1).argmax(), ring.shape)
    return int(x), int(y)


def film(path):
    """Films the app with its own example."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, driver.app(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=driver.CHROMIUM, args=driver.SWITCHES)
        page = browser.new_page(viewport=WINDOW)
        page.goto(address, timeout=PATIENCE * 1000)
        page.get_by_role("button", name="Try the example").click(timeout=PATIENCE * 1000)
        picture = Picture(page.locator(".ullsam"))
        page.locator(".ullsam-files").evaluate("node => node.scrollIntoView({block: 'start'})")
        picture.settle()
        taken = Film(page)
        act(taken, picture, ullsam.generate("fluorescence_nuclei", seed=3).labels)
        taken.write(path)
        browser.close()


def pictures(folder):
    """Smaller copies of the browser tests' pictures."""
    for name, shot in PICTURES.items():
        with Image.open(Path(__file__).parent / "screenshots" / f"{shot}.png") as picture:
            small = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(Path(folder) / f"{name}.png", optimize=True)


def main():
    """Writes click_*.png and click.gif."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=ROOT / "data" / "results", help="folder of the pictures")
    parser.add_argument("--film", action="store_true", help="only the film")
    args = parser.parse_args()
    if not args.film:
        pictures(args.out)
    film(Path(args.out) / FILM)


if __name__ == "__main__":
    main()
