"""The real browser of the end-to-end tests: which one, and how it starts.

Owns finding and launching Chromium for playwright. Downloads nothing: the browser comes from the
system's packages. Knows nothing of the page under test.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")

# No sandbox: tests run as root in containers. The rest keeps the browser quiet and off the network.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A camera that shows a moving pattern; a page still has to be given it.
    "--use-fake-device-for-media-stream",
)


def find_chromium() -> str | None:
    """Path of the system's Chromium, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def launched(executable_path: str) -> Iterator[Browser]:
    """A headless browser with a new, empty profile, closed at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable_path, headless=True, args=list(FLAGS)
        )
        try:
            yield browser
        finally:
            browser.close()
