"""Makes the README's pictures of what the browser tests saw last: python -m tests.browser.pictures"""

from pathlib import Path

from PIL import Image

from tests.browser.driver import ROOT

PICTURES = {"click_lab": "lab_restarted", "click_app": "app_saved", "click_phone": "phone_click"}
COLOURS = 256  # of each picture, so that it stays small


def main():
    """Writes data/results/click_*.png."""
    for name, shot in PICTURES.items():
        with Image.open(Path(__file__).parent / "screenshots" / f"{shot}.png") as picture:
            small = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(ROOT / "data" / "results" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
