"""A real Chromium without a window, driven over its DevTools protocol."""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import websocket

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def program(failure):
    """Where Chromium is."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        raise failure(f"none of {', '.join(NAMES)} is installed: interop/run does that")
    return found


class Browser:
    """One page."""

    def __init__(self, suite, failure, *more):
        self.failure = failure
        profile = tempfile.mkdtemp(prefix="browser", dir=suite.folder)
        command = [program(failure), "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        command += ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", *more]
        if os.geteuid() == 0:
            # Its sandbox is not for root.
            command.append("--no-sandbox")
        self.process = subprocess.Popen(
            [*command, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        suite.stack.callback(self.end)
        said = []
        for line in self.process.stderr:
            said.append(line.strip())
            if "DevTools listening on " in line:
                break
        else:
            raise failure(f"Chromium ended: {said[-3:]}")
        address = said[-1].split("DevTools listening on ", 1)[1]
        self.socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        self.number, self.session, self.events = 0, None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        # Its helpers write to the profile until they are gone, too: then nobody has its stderr any more.
        self.process.communicate(timeout=10)

    def ask(self, method, **params):
        """One command, and its answer; what else comes meanwhile is kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise self.failure(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def go(self, url):
        self.ask("Page.navigate", url=url)

    def size(self, width, height, dark=False):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression):
        """What an expression comes to in the page."""
        told = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise self.failure(f"{expression}: {told['exceptionDetails'].get('exception', told['exceptionDetails'])}")
        return told["result"].get("value")

    def until(self, what, expression, patience=20.0):
        """Waits until an expression is true, and gives it; what the page says is told where it is not."""
        end = time.monotonic() + patience
        while True:
            if told := self.value(expression):
                return told
            if time.monotonic() > end:
                raise self.failure(f"not {what}: {self.value('document.body.innerText')[:1500]!r}; {self.faults()}")
            time.sleep(0.1)

    def faults(self):
        """What the page did wrong: errors of its scripts, and what its policy kept from being done."""
        self.value("1")
        bad = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                bad.append(params["exceptionDetails"])
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                bad.append(params["entry"]["text"])
        return bad

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))
