#!/usr/bin/env python3
"""Opens HTML reports in headless Chromium and checks that they work: python3 tests/html_page.py FOLDER PAGE...

Speaks the DevTools protocol over the pipe of --remote-debugging-pipe, with Python's own library only. Each page is
opened 400 and 1400 px wide, in light and dark. Every plot must have been drawn, every table must fill, nothing may
reach the console or the network, and nothing may be wider than the window. Screenshots go to FOLDER.
"""

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")
TIMEOUT_SECONDS = 60

# Counts the pixels of each canvas that were painted, and the colours among them: axes alone have two or three.
INSPECT = """(() => {
  const wide = [...document.querySelectorAll("body *")]
    .filter((element) => !element.closest(".scroll") && element.getBoundingClientRect().right > innerWidth + 1);
  for (const details of document.querySelectorAll("details")) details.open = true;
  const canvases = [...document.querySelectorAll("canvas")].map((canvas) => {
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const colors = new Map();
    let painted = 0;
    for (let at = 0; at < data.length; at += 4) {
      if (data[at + 3] === 0) continue;
      painted += 1;
      const color = (data[at] >> 4) * 256 + (data[at + 1] >> 4) * 16 + (data[at + 2] >> 4);
      colors.set(color, (colors.get(color) || 0) + 1);
    }
    const colorful = [...colors].filter(([color]) => {
      const parts = [color >> 8, (color >> 4) & 15, color & 15];
      return Math.max(...parts) - Math.min(...parts) >= 2;
    }).reduce((sum, [, count]) => sum + count, 0);
    return { plot: canvas.dataset.plot, label: canvas.getAttribute("aria-label"), width, height, painted, colorful };
  });
  return {
    canvases,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    wide: wide.slice(0, 5).map((element) => element.outerHTML.slice(0, 120)),
    title: document.title,
    scripts: document.querySelectorAll("script").length,
    injected: Boolean(window.injected),
  };
})()"""

# Opened details fill their tables in an event of their own.
TABLES = """[...document.querySelectorAll("details[data-table]")]
  .map((details) => [details.dataset.table, details.querySelectorAll("tbody tr").length])"""


class Browser:
    """A headless Chromium at the other end of two pipes."""

    def __init__(self, profile):
        self.ours_in, theirs_out = os.pipe()
        theirs_in, self.ours_out = os.pipe()
        arguments = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads descriptor 3 and writes 4.
        moved = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(["bash", "-c", moved, "bash", *arguments], pass_fds=(theirs_in, theirs_out),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer = b""
        self.last_id = 0
        self.events = []

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=TIMEOUT_SECONDS)

    def call(self, method, session=None, **parameters):
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.ours_out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self.receive())

    def receive(self):
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while b"\0" not in self.buffer:
            readable, _, _ = select.select([self.ours_in], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self.ours_in, 1 << 20) if readable else b""
            if not chunk:
                raise RuntimeError("chromium does not answer")
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)


def check(browser, page, width, scheme, folder):
    """Gives what is wrong with a page at one width in one scheme."""
    browser.events.clear()
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.call(f"{domain}.enable", session)
    browser.call("Emulation.setDeviceMetricsOverride", session, width=width, height=900, deviceScaleFactor=1,
                 mobile=False)
    browser.call("Emulation.setEmulatedMedia", session,
                 features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    browser.call("Page.navigate", session, url=page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    # Two frames later the plots have their last size.
    evaluate(browser, session, "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    screenshot = browser.call("Page.captureScreenshot", session, captureBeyondViewport=True)
    (folder / f"{page.stem}-{width}-{scheme}.png").write_bytes(base64.b64decode(screenshot["data"]))
    seen = evaluate(browser, session, INSPECT)
    evaluate(browser, session, "new Promise((done) => setTimeout(done, 200))")
    tables = evaluate(browser, session, TABLES)

    wrong = []
    if not seen["canvases"]:
        wrong.append("it has no plots")
    for canvas in seen["canvases"]:
        if canvas["colorful"] < 150 or canvas["painted"] < 1000:
            wrong.append(f"{canvas['plot']} was not drawn: {canvas}")
        if not canvas["label"]:
            wrong.append(f"{canvas['plot']} has no label for those who cannot see it")
    wrong += [f"table {name} stays empty" for name, rows in tables if rows == 0]
    if seen["overflow"] > 0 or seen["wide"]:
        wrong.append(f"wider than the window by {seen['overflow']} px: {seen['wide']}")
    if seen["injected"] or seen["scripts"] != 4:
        wrong.append(f"{seen['scripts']} scripts instead of 4")
    for event in browser.events:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Log.entryAdded":
                wrong.append(f"log: {parameters['entry']['text']}")
            case "Runtime.consoleAPICalled":
                wrong.append(f"console: {parameters['args']}")
            case "Runtime.exceptionThrown":
                wrong.append(f"exception: {parameters['exceptionDetails']}")
            case "Network.requestWillBeSent" if not parameters["request"]["url"].startswith(("file:", "data:")):
                wrong.append(f"request to {parameters['request']['url']}")
            case "Network.requestWillBeSent" if parameters["type"] != "Document" and parameters["request"]["url"].startswith("file:"):
                wrong.append(f"request for {parameters['request']['url']}")
    browser.call("Target.closeTarget", targetId=target)
    print(f"{page.name} at {width} px, {scheme}: {len(seen['canvases'])} plots, {len(tables)} tables"
          + (", wrong" if wrong else ", fine"))
    return [f"{page.name} at {width} px, {scheme}: {what}" for what in wrong]


def evaluate(browser, session, expression):
    answer = browser.call("Runtime.evaluate", session, expression=expression, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in answer:
        raise RuntimeError(str(answer["exceptionDetails"]))
    return answer["result"].get("value")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folder, pages = Path(sys.argv[1]), [Path(page) for page in sys.argv[2:]]
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            for page in pages:
                for width in WIDTHS:
                    for scheme in SCHEMES:
                        wrong += check(browser, page, width, scheme, folder)
        finally:
            browser.close()
    if wrong:
        sys.exit("\n".join(wrong))


main()
