"""Firefox without a driver of its own: a page that is steered by WebDriver BiDi, which Firefox itself speaks."""

import itertools
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from tests.browser.driver import PATIENCE, free_port

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
SETTINGS = {
    "browser.download.folderList": 2,
    "browser.download.useDownloadDir": True,
    "browser.aboutConfig.showWarning": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.auto": False,
    "toolkit.telemetry.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
}


class Page:
    """The one page of a Firefox.

    Args:
        socket: an open WebSocket to Firefox's BiDi session.
    """

    def __init__(self, socket):
        self._socket, self._numbers = socket, itertools.count(1)
        self.browser = self.ask("session.new", capabilities={})["capabilities"]
        self._context = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method, **params):
        """Sends a command and returns its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert answer["type"] == "success", answer
                return answer["result"]

    def goto(self, address):
        """Opens an address."""
        self.ask("browsingContext.navigate", context=self._context, url=address, wait="interactive")

    def size(self, width, height):
        """Size of the window's inside, CSS pixels."""
        self.ask("browsingContext.setViewport", context=self._context, viewport={"width": width, "height": height})

    def evaluate(self, expression):
        """The value of a JavaScript expression, through JSON."""
        result = self.ask(
            "script.evaluate",
            expression=f"JSON.stringify({expression} ?? null)",
            awaitPromise=True,
            target={"context": self._context},
        )
        assert result["type"] == "success", result
        return json.loads(result["result"]["value"])

    def wait(self, expression, seconds=PATIENCE):
        """Waits until a JavaScript expression is true."""
        for _ in range(seconds * 5):
            if self.evaluate(f"Boolean({expression})"):
                return
            time.sleep(0.2)
        raise AssertionError(f"never true: {expression}")

    def click(self, x, y, button=0):
        """A click of the mouse at a CSS pixel of the window."""
        acts = [
            {"type": "pointerMove", "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": button},
            {"type": "pointerUp", "button": button},
        ]
        self._act({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": acts})

    def press(self, key):
        """A key, pressed and let go."""
        self._act({"type": "key", "id": "keys", "actions": [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]})

    def _act(self, source):
        self.ask("input.performActions", context=self._context, actions=[source])

    def screenshot(self):
        """What is seen, base64 of a PNG."""
        return self.ask("browsingContext.captureScreenshot", context=self._context)["data"]


@contextmanager
def firefox(folder):
    """A page of a new Firefox whose profile and downloads lie in `folder`."""
    from websocket import create_connection

    folder, port = Path(folder), free_port()
    chosen = SETTINGS | {"browser.download.dir": str(folder)}
    (folder / "user.js").write_text("".join(f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in chosen.items()))
    with (folder / "firefox.log").open("w") as log:
        process = subprocess.Popen(
            [FIREFOX, "--headless", "--no-remote", "--profile", folder, "--remote-debugging-port", str(port)],
            stdout=log,
            stderr=log,
        )
    try:
        _wait(folder / "firefox.log", process)
        socket = create_connection(f"ws://127.0.0.1:{port}/session", timeout=PATIENCE, suppress_origin=True)
        yield Page(socket)
        socket.close()
    finally:
        process.terminate()
        process.wait(30)


def _wait(log, process):
    for _ in range(PATIENCE * 4):
        if "WebDriver BiDi listening" in log.read_text():
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.25)
    raise AssertionError(f"Firefox does not listen\n{log.read_text()}")
