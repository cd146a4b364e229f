"""Servers and a browser for tests and benchmarks: both run on this machine alone and end with the `with` block."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--mute-audio",
]
PATIENCE = 240  # seconds for a server or a kernel to start on a busy machine
SLOWEST = 60  # seconds for the answer to a gesture, a description included
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}
DRAWN = "c => c.toDataURL('image/png')"
TINT = 60  # red minus blue of a grey pixel under the mask's yellow; without a mask it is near 0


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(words, port, log, cwd=ROOT):
    """Runs a server until the block ends; yields its address once it answers."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        server = subprocess.Popen([sys.executable, "-m", *words], cwd=cwd, env=environment, stdout=output, stderr=output)
    try:
        _wait(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait(address, server, log):
    for _ in range(PATIENCE * 4):
        try:
            return urlopen(f"{address}/voila/files/x", timeout=5).close()
        except HTTPError:
            return None  # it answers
        except (URLError, OSError):
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(f"no answer\n{log.read_text()}")


def app(folder, *words):
    """The app's server."""
    port = free_port()
    return served(["ullsam", "app", "--port", str(port), *words], port, Path(folder) / "app.log")


def lab(folder, program="lab", windowing="none"):
    """JupyterLab or Notebook in a folder.

    Args:
        program: "lab" or "notebook".
        windowing: "none" keeps all cells in the page, "full" only those that are seen, as people have it.
    """
    port, own = free_port(), Path(folder) / f".{program}_{windowing}"
    chosen = {"apputils-extension/notification": NO_NEWS, "notebook-extension/tracker": {"windowingMode": windowing}}
    for name, values in chosen.items():
        file = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    kind = {"lab": "LabApp", "notebook": "JupyterNotebookApp"}[program]
    words = [
        "jupyter",
        program,
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--port={port}",
        "--port-retries=0",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        f"--{kind}.user_settings_dir={own / 'settings'}",
        f"--{kind}.workspaces_dir={own / 'workspaces'}",
    ]
    return served(words, port, own / "server.log", cwd=folder)


def open_notebook(browser, address, name, last):
    """A page with a notebook, all of it run until `last`, a selector, is there."""
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb", timeout=PATIENCE * 1000)  # no tabs of other tests
    wait_for_kernel(page)
    command(page, "notebook:run-all-cells")
    page.locator(last).wait_for(state="attached", timeout=PATIENCE * 1000)
    return page


def wait_for_kernel(page):
    """Before that JupyterLab may forget what it is told to run."""
    context = "window.jupyterapp?.shell.currentWidget?.context"
    page.wait_for_function(f"() => {context}?.sessionContext?.session?.kernel?.status === 'idle'", timeout=PATIENCE * 1000)
    page.evaluate(f"() => Promise.all([jupyterapp.restored, {context}.ready, {context}.sessionContext.ready])")


def command(page, name):
    """Starts one of JupyterLab's commands, which its menus and keys start too."""
    page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)


def told(page, name):
    """What Python says about a widget."""
    page.wait_for_timeout(200)
    return json.loads(page.locator(f".told-{name}").text_content())


def decoded(address):
    """A picture, uint8 RGB, from the data address that a canvas gives."""
    data = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def at_pixels(drawn, view, width, size):
    """Colour drawn at the centre of each image pixel, (H, W, 3), by a canvas of `width` CSS pixels; `size` (H, W)."""
    ratio = drawn.shape[1] / width
    rows, columns = (
        ((view[a] + (np.arange(n) + 0.5) * view["scale"]) * ratio).astype(int) for a, n in (("y", size[0]), ("x", size[1]))
    )
    return drawn[np.ix_(rows, columns)]


class Picture:
    """The canvas of one click widget in a page, and what surrounds it."""

    def __init__(self, widget):
        self.widget, self.page = widget, widget.page
        self.canvas = widget.locator(".ullsam-canvas")
        self.canvas.wait_for(timeout=PATIENCE * 1000)
        self.canvas.scroll_into_view_if_needed()
        self.settle()

    def settle(self):
        """Waits until every gesture is answered and drawn."""
        idle = "w => w.getAttribute('aria-busy') === 'false' && w.querySelector('.ullsam-canvas').dataset.painted"
        self.page.wait_for_timeout(60)
        for _ in range(SLOWEST * 10):
            if self.widget.evaluate(idle):
                return self.page.wait_for_timeout(250)
            self.page.wait_for_timeout(100)
        raise AssertionError(f"no answer to a gesture: {self.status}")

    @property
    def view(self):
        """scale, x and y of the image on the canvas, CSS pixels."""
        return json.loads(self.canvas.get_attribute("data-view"))

    @property
    def status(self):
        """The sentence below the picture."""
        return self.widget.locator(".ullsam-status").inner_text()

    def place(self, x, y):
        """CSS pixel in the window of the centre of image pixel (x, y)."""
        self.canvas.scroll_into_view_if_needed()
        box, view = self.canvas.bounding_box(), self.view
        inner = self.canvas.evaluate("c => [c.clientLeft, c.clientTop]")
        return [box[a] + inner[i] + view[a] + (p + 0.5) * view["scale"] for i, (a, p) in enumerate((("x", x), ("y", y)))]

    def click(self, x, y, **options):
        """Clicks on an image pixel and waits for the mask."""
        self.page.mouse.click(*self.place(x, y), **options)
        self.settle()

    def drag(self, start, end):
        """Drags a box between two image pixels."""
        places = self.place(*start), self.place(*end)
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        self.page.mouse.move(*places[1], steps=4)
        self.page.mouse.up()
        self.settle()

    def press(self, *keys):
        """Presses keys, one after the other answered."""
        for key in keys:
            self.page.keyboard.press(key)
            self.settle()

    def button(self, name):
        """Presses a button of the widget."""
        self.widget.get_by_role("button", name=name, exact=True).click()
        self.settle()

    def zoom_to(self, scale):
        """Zooms to `scale` CSS pixels per image pixel with Ctrl and the wheel."""
        self.canvas.scroll_into_view_if_needed()
        self.canvas.hover()
        self.page.keyboard.down("Control")
        for _ in range(10):  # a turn of the wheel counts less where the device pixel ratio is set
            missing = float(np.log(scale / self.view["scale"]))
            if abs(missing) < 1e-4:
                break
            self.page.mouse.wheel(0, -400 * missing)
            self.page.wait_for_timeout(100)
        self.page.keyboard.up("Control")
        self.settle()

    def drawn(self):
        """What is drawn, uint8 RGB on the canvas's own pixels."""
        return decoded(self.canvas.evaluate(DRAWN))

    def sampled(self, size):
        """Colour drawn at the centre of each image pixel, (H, W, 3); `size` (H, W)."""
        return at_pixels(self.drawn(), self.view, self.canvas.evaluate("c => c.clientWidth"), size)

    def mask(self, size):
        """The current mask as it is seen on a grey image, bool (H, W)."""
        colour = self.sampled(size)
        return colour[..., 0] - colour[..., 2] > TINT


def iou(a, b):
    """Intersection over union of two masks."""
    return (a & b).sum() / max(1, (a | b).sum())


def middle(mask):
    """The pixel (x, y) of an object that is farthest from its border."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)
