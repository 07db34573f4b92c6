"""A headless Chromium, driven by its own DevTools protocol over a pipe: no driver, no port and no library."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds for whatever the browser is asked for, on a machine that is busy with other tests
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             "--disable-extensions", "--remote-debugging-pipe")  # fmt: skip


def installed() -> str | None:
    """The path of an installed Chromium."""
    return next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


class Browser:
    """One tab; `events` are all that it reported, in order."""

    def __init__(self, requests: int, answers: int):
        self._requests, self._answers, self._rest, self._count = requests, answers, b"", 0
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol in the tab."""
        return self._call(method, parameters, self._session)

    def open(self, path: Path, place: str = "") -> None:
        """Open a file, at a place if one is given, and wait until it is loaded and all its charts are drawn."""
        self.do("Page.navigate", url="about:blank")
        self.events.clear()
        self.do("Page.navigate", url=path.as_uri() + (f"#{place}" if place else ""))
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        self.wait("[...document.querySelectorAll('.drawing')].every((d) => d.dataset.drawn || !d.checkVisibility())")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f"still not so: {script}"
            time.sleep(0.01)

    def press(self, key: str) -> None:
        """Press and release a key, by the name that KeyboardEvent.code has."""
        codes = {"Enter": 13, "Tab": 9, "Space": 32, "ArrowRight": 39}
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        named = {"key": text if key == "Space" else key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.do("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **named)
        self.do("Input.dispatchKeyEvent", type="keyUp", **named)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, dialogs, and requests for anything but files."""
        self.run("1")  # whatever was reported before is here now
        found = []
        for event in self.events:
            about, kind = event.get("params", {}), event["method"]
            if kind == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(f"console: {[argument.get('value') for argument in about['args']]}")
            elif kind == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {about['entry']['text']}")
            elif kind == "Runtime.exceptionThrown":
                found.append(f"exception: {about['exceptionDetails']['text']}")
            elif kind == "Page.javascriptDialogOpening":
                found.append(f"dialog: {about['message']}")
            elif kind == "Network.requestWillBeSent":
                url = about["request"]["url"]
                found += [] if url.startswith(("file:", "data:", "blob:", "about:")) else [f"request: {url}"]
        return found

    def _call(self, method: str, parameters: dict[str, Any], session: str | None = None) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _next(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            assert ready, f"no answer to {method}"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; it ends with the block."""
    path = installed()
    assert path
    for_browser, requests = os.pipe()
    answers, from_browser = os.pipe()
    command = f'exec "$0" "$@" 3<&{for_browser} 4>&{from_browser}'  # the numbers it expects; sh may know none above 9
    process = subprocess.Popen(
        ["bash", "-c", command, path, *ARGUMENTS, f"--user-data-dir={profile}"],
        pass_fds=(for_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(for_browser)
    os.close(from_browser)
    try:
        yield Browser(requests, answers)
    finally:
        os.close(requests)  # it ends by itself when nobody asks any more
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answers)
