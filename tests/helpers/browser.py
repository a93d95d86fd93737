"""A headless Chromium, driven through a pipe by the DevTools protocol: for tests of pages."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 60  # seconds that the browser gets for an answer


class Tab:
    """A page in a browser: what it did, asked for and complained of is in `events`."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self.process, self.to, self.back = process, to, back
        self.number, self.rest, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command, and wait for its answer; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0.0, until - time.monotonic()))
            received = os.read(self.back, 1 << 16) if ready else b""
            assert received, "the browser does not answer"
            self.rest += received
        message, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path | str, width: int = 1200, height: int = 900) -> None:
        """Load a file or an address in a window of that size, and wait until all of it is there."""
        url = page.as_uri() if isinstance(page, Path) else page
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Page.navigate", url=url)
        self.wait(
            lambda: (
                self.run("document.readyState") == "complete"
                and self.run("location.protocol") == url.partition("/")[0]
            )
        )

    def wait(self, condition: Callable[[], bool]) -> None:
        """Ask until it holds."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.02)

    def run(self, expression: str) -> Any:
        """Evaluate a script's expression in the page."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            what = {
                "key": key,
                "code": key,
                "windowsVirtualKeyCode": code,
                "text": text if kind == "keyDown" else "",
            }
            self.send("Input.dispatchKeyEvent", type=kind, **what)

    def printed(self) -> bytes:
        """Give the page as it is printed, as PDF."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"])

    def complaints(self) -> list[dict[str, Any]]:
        """What went to the console, and exceptions."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        sent = [
            event["params"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [params["request"]["url"] for params in sent]


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """Run a browser that finds no other machine, and give its page."""
    assert PROGRAM is not None
    command = [
        PROGRAM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]
    command += [
        "--remote-debugging-pipe",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
    ]
    (commands, to), (back, answers) = os.pipe(), os.pipe()

    def at_its_places() -> None:  # the protocol's: commands at 3, answers at 4
        ours = [os.dup2(file, place) for file, place in ((commands, 13), (answers, 14))]
        for file, place in zip(ours, (3, 4), strict=True):
            os.dup2(file, place)

    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, preexec_fn=at_its_places, pass_fds=(3, 4), stdin=quiet, stdout=quiet, stderr=quiet
    )
    os.close(commands)
    os.close(answers)
    try:
        yield Tab(process, to, back)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(to)
        os.close(back)
