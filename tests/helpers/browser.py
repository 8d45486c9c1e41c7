"""Headless Chromium for tests of HTML pages: console messages, and what does not fit on the page."""

import json
import re
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"),
)
MEASURE = """
addEventListener("load", () => {
  const page = document.getElementById("page").contentWindow, root = page.document.documentElement;
  const outside = [...page.document.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && (box.left < -0.5 || box.right > page.innerWidth + 0.5);
  }).map(e => e.outerHTML.slice(0, 200));
  const cut = [...page.document.querySelectorAll("svg text")].filter(e => {
    const box = e.getBBox(), view = e.ownerSVGElement.viewBox.baseVal;
    return box.x < view.x || box.y < view.y || box.x + box.width > view.width || box.y + box.height > view.height;
  }).map(e => e.textContent);
  const broken = [...page.document.images].filter(i => !i.complete || !i.naturalWidth).length;
  const places = [...page.document.images].map(i => i.getBoundingClientRect())
    .map(b => [b.left, b.top, b.right, b.bottom]);
  const measured = {inner: page.innerWidth, scroll: root.scrollWidth, outside, cut, broken, places,
    images: page.document.images.length, background: page.getComputedStyle(page.document.body).backgroundColor};
  document.body.dataset.measured = JSON.stringify(measured);
});
"""


class PageMetrics(NamedTuple):
    """How a browser rendered a page; `places` are the boxes of all images: left, top, right, bottom."""

    inner: int
    scroll: int
    outside: list[str]
    cut: list[str]
    broken: int
    places: list[list[float]]
    images: int
    background: str
    console: list[str]


class Browser:
    """Opens pages at any width, in a frame: the window itself cannot be as narrow as a phone."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def measure(self, page: str, width: int, dark: bool = False) -> PageMetrics:
        """Render a page `width` px wide and measure it."""
        frame = f'<iframe id="page" srcdoc="{escape(page)}" style="border:0;width:{width}px;height:30000px"></iframe>'
        file = self._folder / "frame.html"
        file.write_text(f"<!DOCTYPE html><script>{MEASURE}</script><body>{frame}</body>", encoding="utf-8")
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        options = [*FLAGS, f"--user-data-dir={self._folder / 'profile'}", "--window-size=1600,900", *scheme]
        done = subprocess.run(
            [self._program, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, check=True
        )
        found = re.search(r'data-measured="([^"]*)"', done.stdout)
        assert found, done.stderr[-2000:]
        measured: dict[str, Any] = json.loads(unescape(found[1]))
        return PageMetrics(**measured, console=[line for line in done.stderr.splitlines() if "CONSOLE" in line])
