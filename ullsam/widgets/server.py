"""Serves the app's notebook with Voila: one kernel for each page, none of this machine's files."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ullsam.errors import InputError

NOTEBOOK = "notebooks/app.ipynb"
SESSIONS = 8  # pages at once; each has a kernel with the models, about 0.9 GB
IDLE = 30 * 60  # seconds without a gesture after which a page's kernel ends
CONVERT = "from ullsam.llm import smollm2_folder; smollm2_folder()"  # takes half a minute where it was never done
FULL = "All places of this server are taken; try again in a few minutes."


def serve(
    notebook: str | Path = NOTEBOOK,
    host: str = "127.0.0.1",
    port: int = 8866,
    sessions: int = SESSIONS,
    browser: bool = False,
) -> None:
    """Serves a notebook until it is interrupted.

    Kernels compute with one thread each, so that eight of them share two cores fairly, and keep their files in a folder
    that is removed when the server ends.

    Args:
        notebook: the file.
        host: where to listen; other machines reach the app only if this is not the default.
        port: where to listen.
        sessions: pages at once.
        browser: opens one.

    Raises:
        InputError: Voila is not installed, or there is no such notebook.
    """
    try:
        from voila.app import Voila
    except ImportError as error:
        raise InputError("Voila is not installed; run: pip install voila") from error
    if not Path(notebook).is_file():
        raise InputError(f"There is no notebook {notebook}; run this in the repository's folder, or name the file.")
    with tempfile.TemporaryDirectory(prefix="ullsam_app_", ignore_cleanup_errors=True) as folder:
        os.environ.update(TMPDIR=folder, OMP_NUM_THREADS="1", OPENCV_FOR_THREADS_NUM="1")  # kernels inherit them
        tempfile.tempdir = folder
        # once for all, not by each of the first pages; if it fails the page says why
        subprocess.run([sys.executable, "-c", CONVERT], stderr=subprocess.DEVNULL, check=False)
        Voila.launch_instance([str(notebook)], config=settings(host, port, sessions, browser))


def settings(host: str, port: int, sessions: int, browser: bool):
    """Voila's settings, a traitlets Config: no file is handed out, no page runs code of its own, idle kernels end."""
    from traitlets.config import Config

    config = Config()
    config.Voila.ip, config.Voila.port, config.Voila.port_retries = host, port, 0
    config.Voila.open_browser = browser
    config.Voila.tornado_settings = {"allow_remote_access": not is_loopback(host)}
    config.VoilaConfiguration.file_allowlist = []
    config.VoilaConfiguration.allow_template_override = "NO"
    config.VoilaConfiguration.allow_theme_override = "NO"
    config.VoilaConfiguration.show_tracebacks = False
    config.VoilaConfiguration.show_margins = False
    config.VoilaConfiguration.prelaunch_hook = lambda request, **_: refuse_when_full(request, sessions)
    config.MappingKernelManager.cull_idle_timeout = IDLE
    config.MappingKernelManager.cull_interval = 60
    config.MappingKernelManager.cull_connected = True
    return config


def refuse_when_full(request, sessions: int) -> None:
    """Answers a new page with one sentence where there are `sessions` of them."""
    from tornado.web import HTTPError

    if len(request.kernel_manager.list_kernel_ids()) >= sessions:
        raise HTTPError(503, FULL, reason=FULL)


def is_loopback(host: str) -> bool:
    """The address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
