"""A headless Chromium, driven through its DevTools protocol over a pipe: no driver, no websocket, no port."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Chromium refuses to run as root with its sandbox on; a page of our own is safe without.
_OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


class Browser:
    """One page in one browser; what it asked the network for and what it complained about.

    Attributes:
        requests: addresses that pages asked for; data: addresses, which the page itself contains, are left out.
        complaints: console messages, log entries and exceptions.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._loaded = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file at a width in CSS pixels and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        before = self._loaded
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self._loaded == before:
            self._read()

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            received = os.read(self._answers.fileno(), 1 << 16)
            assert received, "the browser ended"
            self._buffer += received
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, found: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Network.requestWillBeSent" and not found["request"]["url"].startswith("data:"):
            self.requests.append(found["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(found))


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile, ended with the block."""
    assert CHROMIUM
    pipes = [*os.pipe(), *os.pipe()]
    # Above 9: bash copies them one after the other, and must not write over the second with the first.
    child_reads, commands, answers, child_writes = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipes)
    for end in pipes:
        os.close(end)
    # The browser reads commands from descriptor 3 and answers on 4; only a shell can put ours there.
    start = f'exec "$@" 3<&{child_reads} 4>&{child_writes}'
    options = [*_OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", CHROMIUM, *options],
        pass_fds=(child_reads, child_writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(child_reads)
    os.close(child_writes)
    try:
        browser = Browser(commands, answers)
        yield browser
        browser._session = None
        browser.call("Browser.close")
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
