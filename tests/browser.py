"""A headless Chromium, driven over a pipe with the standard library alone; tests skip where there is none."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "chrome-headless-shell", "google-chrome", "google-chrome-stable")
SECONDS = 60


def chromium() -> str:
    """Return the program: DIFFTRAIN_CHROMIUM, or one of the usual names; skip the test without any."""
    named = os.environ.get("DIFFTRAIN_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: install chromium, or set DIFFTRAIN_CHROMIUM to its path")
    return found


class Page:
    """One page of the browser."""

    def __init__(self, send, receive):
        self._send, self._receive, self._number, self._session = send, receive, 0, None
        self.problems = []
        """What the console reported: errors, and what the content security policy refused."""
        self.requests = []
        """Addresses that the page asked for."""

    def attach(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def call(self, method, **parameters):
        self._number += 1
        number = self._number
        session = {"sessionId": self._session} if self._session else {}
        self._send({"id": number, "method": method, "params": parameters, **session})
        while True:
            message = self._receive()
            if message.get("id") == number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message):
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"].get("exception", parameters)))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {parameters['message']}")

    def open(self, address, *, width=1400, height=1000, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression):
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression):
        deadline = time.monotonic() + SECONDS
        while not self.run(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, key, text=None):
        codes = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39, "End": 35, "Home": 36}
        given = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0)} | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path):
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def opened_browser(profile):
    """Give a page of a browser of its own, whose profile is in a folder."""
    program = chromium()
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()

    def place_pipes():  # the browser reads from 3 and writes to 4
        os.dup2(commands, 10)
        os.dup2(answers, 11)
        os.dup2(10, 3)
        os.dup2(11, 4)

    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}",
             "--remote-debugging-pipe", "about:blank")  # fmt: skip
    process = subprocess.Popen(
        [program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=place_pipes, pass_fds=(3, 4),
    )  # fmt: skip
    os.close(commands)
    os.close(answers)
    waiting = bytearray()

    def send(message):
        os.write(to_browser, json.dumps(message).encode() + b"\0")

    def receive():
        deadline = time.monotonic() + SECONDS
        while b"\0" not in waiting:
            ready, _, _ = select.select([from_browser], [], [], max(0, deadline - time.monotonic()))
            part = os.read(from_browser, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            waiting.extend(part)
        message, _, rest = bytes(waiting).partition(b"\0")
        waiting[:] = rest
        return json.loads(message)

    try:
        yield Page(send, receive).attach()
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
