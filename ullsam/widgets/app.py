"""The app: upload an image, click on its objects, watch the result, download it. `make app` serves it to a browser.

Source: paper, appendix C, Figure 9.
"""

from __future__ import annotations

import contextlib
import html
import io
import ipaddress
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import ipywidgets
import numpy as np

from ullsam.data.decode import open_tiff
from ullsam.data.io import IMAGE_SUFFIXES, png
from ullsam.data.synthetic import generate
from ullsam.errors import InputError
from ullsam.widgets.click import ClickToSegment, counted, jpeg
from ullsam.widgets.export import numbered
from ullsam.widgets.files import FileExchange
from ullsam.widgets.live import scaled
from ullsam.widgets.project import locked

MEGABYTES = 50  # of one uploaded file
MEGAPIXELS = 50  # of one page; a small file can hold a large picture
RESULT = 640  # longer side of the result picture, pixels
RESULTS = ("tiff", "roi", "overlay", "csv")  # what the downloaded file holds
NOTEBOOK = "notebooks/app.ipynb"
FILES = "ullsam_app_"  # start of the name of a server's temporary folder
SESSIONS = 8  # pages at once; each has a kernel with the models, about 0.9 GB
IDLE = 30 * 60  # seconds without a gesture after which a page's kernel ends
SWEEP = 10  # seconds between two looks for kernels that can end
CONVERT = "from ullsam.tiny.smollm2 import smollm2_folder; smollm2_folder()"  # takes half a minute where it was never done


class App:
    """The app's page; each of its buttons is also a method, so it works without a browser.

    What is uploaded lies in a folder of this object alone, which is removed with it.

    Args:
        models: by the name that is shown; the first is the current one.
        limit: megabytes of one upload.
        alone: the page is only this app, so the browser asks before results that were not downloaded are lost.
    """

    def __init__(self, models: dict, limit: int = MEGABYTES, alone: bool = False):
        self.click: ClickToSegment | None = None  # the image being worked on
        self._models, self._uploads = dict(models), 0
        self._saved: list = []  # instances of the current image when it was last shown
        self._folder = tempfile.TemporaryDirectory(prefix="ullsam_", ignore_cleanup_errors=True)
        self._results = Path(self._folder.name, "results")
        self._results.mkdir()
        self.files = FileExchange(self.open, self.add_labels, self.open_example, self.results, limit, alone=alone)
        self._result = ipywidgets.Image(format="jpeg", layout={"width": "100%", "height": "auto"})
        self._table = ipywidgets.HTML()
        self._left = ipywidgets.VBox(layout={"flex": "3 1 560px", "min_width": "min(100%, 280px)"})
        column = {"flex": "1 1 280px", "min_width": "min(100%, 280px)", "max_width": "640px"}
        result = ipywidgets.VBox([ipywidgets.HTML("<b>Result</b>"), self._result, self._table], layout=column)
        row = {"flex_flow": "row wrap", "grid_gap": "8px 24px", "margin": "8px 0 0", "display": "none"}
        self._work = ipywidgets.HBox([self._left, result], layout=row)
        self.view = ipywidgets.VBox([self.files, self._work], layout={"overflow": "visible"})  # the page
        self.files.tell(f"Or drop it here: png, jpg, tif or bmp, up to {limit} MB.")

    def __repr__(self) -> str:
        return f"App({self.files.told})"

    def _repr_mimebundle_(self, **kwargs) -> dict:
        return dict(self.view._repr_mimebundle_(**kwargs)) | {"text/plain": repr(self)}

    def open(self, name: str, data: bytes) -> None:
        """Takes an upload, the bytes of a file of this name, in place of the current image.

        Raises:
            InputError: it is no image that can be used; the current one stays.
        """
        self._use(name, data, self._show)

    def add_labels(self, name: str, data: bytes) -> None:
        """Takes the objects of an uploaded label image (see `open`) over as saved instances, to correct them.

        Raises:
            InputError: there is no image yet, or the file is no label image of its size.
        """
        if self.click is None:
            raise InputError("There is no image yet; choose it first, then its label image.")
        told = "{}: {} added to the saved instances."
        self._use(name, data, lambda path: told.format(path.name, counted(self.click.import_labels(path), "object")))

    def open_example(self) -> None:
        """Opens a synthetic image of nuclei."""
        self.open("example.png", png(generate("fluorescence_nuclei", seed=3).image))

    def results(self) -> tuple[str, bytes]:
        """Name and bytes of a zip file with a folder for each image that has saved instances.

        A folder holds the label image, ImageJ's ROIs, the picture with numbers and the table of measurements.

        Raises:
            InputError: nothing is saved yet.
        """
        self._keep()
        files = sorted(p for p in self._results.rglob("*") if p.is_file())
        if not files:
            raise InputError("There is nothing to download yet; click on an object and save it first.")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(self._results))
        return "ullsam_results.zip", buffer.getvalue()

    def end(self) -> None:
        """Removes everything that was uploaded."""
        self._folder.cleanup()

    def _use(self, name: str, data: bytes, act: Callable[[Path], str]) -> None:
        """Tells what `act` makes of an uploaded file; what goes wrong is one sentence without a path of this machine.

        The file lies in a folder of its own: two of the same name never meet, and none lies beside another one.
        """
        plain = re.sub(r"[^\w .()+-]", "_", Path(name.replace("\\", "/")).name).lstrip(". ")[-60:]
        if Path(plain).suffix.lower() not in IMAGE_SUFFIXES:
            formats = f"{', '.join(IMAGE_SUFFIXES)}; save it in one of these formats"
            raise InputError(f"{plain or 'The file'} is not one of {formats}.")
        self._uploads += 1
        path = Path(self._folder.name, str(self._uploads), plain)
        try:
            path.parent.mkdir()
            path.write_bytes(data)
        except OSError as error:
            raise InputError(f"{plain} could not be kept here ({error.strerror}); try again later.") from error
        try:
            check_size(path)
            self.files.tell(act(path))
        except InputError as error:
            raise InputError(self._plain(str(error))) from error
        except Exception as error:
            problem = f"{path.name} cannot be used ({type(error).__name__})"
            raise InputError(f"{problem}; open it in Fiji and save it as png or tif.") from error

    def _show(self, path: Path) -> str:
        click = _Click(self._models, path, self._plain, self._refresh)
        self._keep()
        old, self.click, self._saved, self.files.opened = self.click, click, [], True
        self._left.children, self._work.layout.display = [click], "flex"
        if old is not None:
            old.close()
        self._refresh()
        (height, width), count = click.session.size, click.session.pages.count
        pages = f", {count} pages" if count > 1 else ""
        return f"{path.name}: {width} x {height} pixels{pages}. Click on an object below."

    def _keep(self) -> None:
        """Writes the results of the current image, or takes away those it has no more."""
        if self.click is None:
            return
        folder = self._results / self.click.title
        shutil.rmtree(folder, ignore_errors=True)
        if self.click.instances:
            self.click.session.export(folder, RESULTS)

    def _refresh(self) -> None:
        session = self.click.session
        labels, image = with_current(session.labels, session.mask), scaled(session.display_image(), RESULT)
        small = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        self._result.value = jpeg(numbered(image, small, letters=2))  # much quicker than PNG, and this is after every click
        rows = [f"<tr><td>{i.number}</td><td>{html.escape(i.name)}</td><td>{i.area} px</td></tr>" for i in session.instances]
        self._table.value = f"<table style='width:100%'>{''.join(rows)}</table>" if rows else "Nothing is saved yet."
        if session.instances != self._saved:
            self._saved, self.files.unsaved = session.instances, True
        others = [folder for folder in self._results.iterdir() if folder.name != self.click.title]
        self.files.ready = bool(session.instances or others)

    def _plain(self, words: str) -> str:  # without the places where this server keeps things
        return re.sub(re.escape(self._folder.name) + r"/(\d+/)?", "", words)


class _Click(ClickToSegment):
    """The click widget without its export to folders of the server, which the person at the browser cannot reach."""

    def __init__(self, models: dict, path: Path, plain, changed):
        self._plain, self._changed, self.title = plain, lambda: None, f"{path.parent.name}_{path.stem}"
        super().__init__(models, path, project=False)
        self._changed = changed

    def export(self, folder=None, formats=("tiff",)):
        """Not here: the app has a download."""
        raise InputError("Use Download results above the picture.")

    def _view(self) -> dict:
        return super()._view() | {"exports": [], "folder": ""}

    def _show(self, status: str | None = None, failed: bool = False) -> None:
        super()._show(status and self._plain(status), failed)
        self._changed()


def with_current(labels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Saved instances int32 (H, W), and the mask bool (H, W) of the current object with the next number on what is free."""
    if mask is None:
        return labels
    return np.where(mask & (labels == 0), labels.max() + 1, labels)


def check_size(path: Path, megapixels: int = MEGAPIXELS) -> None:
    """Raises `InputError` for a file that is no image or announces more than `megapixels`, before it is decoded."""
    from PIL import Image, UnidentifiedImageError
    from tifffile import TiffFileError

    try:
        with open_tiff(path) as tif:  # the largest page counts
            sizes = [(series.keyframe.imagewidth, series.keyframe.imagelength) for series in tif.series]
            width, height = max(sizes, key=lambda size: size[0] * size[1])
    except TiffFileError:  # another format
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path} is damaged or not an image; use a complete png, jpg, tif or bmp file.") from error
    if width * height > megapixels * 10**6:
        sizes = f"{width} x {height} pixels and the limit is {megapixels} megapixels"
        raise InputError(f"{path} has {sizes}; crop it or save it smaller.")


def serve(notebook: str | Path = NOTEBOOK, host="127.0.0.1", port=8866, sessions=SESSIONS, browser=False) -> None:
    """Serves a notebook until it is interrupted.

    Kernels compute with one thread each, so that eight of them share two cores fairly, and keep their files in a folder
    that is removed when the server ends.

    Args:
        host, port: where to listen; other machines reach the app only if the host is not the default.
        sessions: pages at once; browser: opens one.

    Raises:
        InputError: Voila is not installed, or there is no such notebook.
    """
    try:
        from voila.app import Voila
    except ImportError as error:
        raise InputError("Voila is not installed; run: pip install voila") from error
    if not Path(notebook).is_file():
        raise InputError(f"There is no notebook {notebook}; run this in the repository's folder, or name the file.")
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=FILES, ignore_cleanup_errors=True) as folder, locked(Path(folder)):
        os.environ.update(TMPDIR=folder, OMP_NUM_THREADS="1", OPENCV_FOR_THREADS_NUM="1")  # kernels inherit them
        tempfile.tempdir = folder
        # once for all, not by each of the first pages; if it fails the page says why
        subprocess.run([sys.executable, "-c", CONVERT], stderr=subprocess.DEVNULL, check=False)
        Voila.launch_instance([str(notebook)], config=settings(host, port, sessions, browser))


def remove_leftovers() -> None:
    """Removes what people uploaded to servers of this machine that were killed; one that runs has locked its folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FILES}*"):
        with contextlib.suppress(ImportError, OSError), locked(folder, wait=False):
            if time.time() - folder.stat().st_mtime > SWEEP:  # a server that just starts has not locked it yet
                shutil.rmtree(folder)


def settings(host: str, port: int, sessions: int, browser: bool):
    """Voila's settings, a traitlets Config: no file is handed out, no page runs code of its own, idle kernels end."""
    from traitlets.config import Config

    remote, kernels = {"allow_remote_access": not is_loopback(host)}, "ullsam.widgets.kernels.PageKernels"
    server = {"ip": host, "port": port, "port_retries": 0, "open_browser": browser, "tornado_settings": remote}
    page = {"file_allowlist": [], "allow_template_override": "NO", "allow_theme_override": "NO", "show_tracebacks": False}
    page |= {"show_margins": False, "multi_kernel_manager_class": kernels}
    idle = {"cull_idle_timeout": IDLE, "cull_interval": SWEEP, "cull_connected": True}
    return Config({"Voila": server, "VoilaConfiguration": page, "PageKernels": {"limit": sessions, **idle}})


def is_loopback(host: str) -> bool:
    """The address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
