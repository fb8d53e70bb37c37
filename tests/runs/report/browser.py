"""A headless Chromium that a test controls by DevTools messages over a pair of pipes, without a package."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Starts a program with the given descriptors as its descriptors 3 and 4.
WITH_PIPES = """
import os, sys
for given, target in zip(sys.argv[1:3], (3, 4)):
    os.dup2(int(given), target)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page in a browser, its errors and its requests.

    Attributes:
        problems: exceptions and errors of the page's console.
        requests: addresses that the page requests, its own first.
    """

    def __init__(self, profile, seconds=300):
        self.deadline = time.monotonic() + seconds
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # High numbers, so that 3 and 4, where the browser looks for its pipes, are neither of them.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (theirs_in, theirs_out)]
        arguments = [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments += ["--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", WITH_PIPES, *map(str, ends), *arguments],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._read, self._last, self._session, self._loaded = b"", 0, None, False
        self.problems, self.requests = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **settings):
        """The result of one DevTools command."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": settings}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._last:
            self._notice(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, address, *, width, height=900, dark=False):
        """Load a page on a screen of this width, in the light or the dark colour scheme."""
        self.problems, self.requests, self._loaded = [], [], False
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=address)
        while not self._loaded:
            self._notice(self._next())

    def run(self, script):
        """The value of an expression of JavaScript."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        """Press and release a key."""
        code = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def close(self):
        """End the browser."""
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _next(self):
        while b"\0" not in self._read:
            left = self.deadline - time.monotonic()
            assert left > 0, "the browser does not answer"
            if select.select([self._in], [], [], left)[0]:
                more = os.read(self._in, 1 << 20)
                assert more, "the browser has ended"
                self._read += more
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)

    def _notice(self, event):
        method, details = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(details["exceptionDetails"]["text"])
        elif (method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning")) or (
            method == "Log.entryAdded" and details["entry"]["level"] == "error"
        ):
            self.problems.append(json.dumps(details))
