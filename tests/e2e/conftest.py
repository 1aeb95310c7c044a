"""Real processes for the end-to-end tests: the service with the bundled model, the browser.

TEST_BUNDLE names another bundle to try, for instance one that is still in training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect
from service_process import running_service

from tests.e2e.chromium import find_chromium, launched
from tests.e2e.playground_page import PROMPTS, REALTIME, wait_for_picture


@pytest.fixture(scope="session")
def service_url(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of one `onestep serve` that all end-to-end tests share."""
    bundle = Path(os.environ.get("TEST_BUNDLE") or repo_root / "models" / "emoji")
    with running_service(bundle, tmp_path_factory.mktemp("service")) as service:
        yield service.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the whole module; every test gets its own page."""
    executable_path = find_chromium()
    if executable_path is None:
        pytest.skip("no chromium on this machine")
    with launched(executable_path) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, service_url: str) -> Iterator[Page]:
    """The page with a picture of the first prompt, over the realtime connection."""
    with opened(browser, service_url) as page:
        expect(page.locator("#channel")).to_have_text("Live")
        yield page


@pytest.fixture
def http_page(browser: Browser, service_url: str) -> Iterator[Page]:
    """The same behind something that lets no WebSocket through."""
    with opened(browser, service_url, lambda page: page.route_web_socket(REALTIME, refuse)) as page:
        expect(page.locator("#channel")).to_have_text("HTTP")
        yield page


@pytest.fixture(params=["page", "http_page"])
def any_page(request: pytest.FixtureRequest) -> Page:
    """Both of them in turn."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@contextmanager
def opened(
    browser: Browser, service_url: str, prepare: Callable[[Page], object] = lambda page: None
) -> Iterator[Page]:
    """A page of its own; it must end without an error of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write", "camera"], origin=service_url)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    prepare(page)
    page.goto(f"{service_url}/#prompt={PROMPTS[0]}&seed=7")
    wait_for_picture(page, PROMPTS[0])
    yield page
    context.close()
    # Chromium itself logs each refused or unanswered request.
    assert [text for text in errors if "Failed to load resource" not in text] == []


def refuse(socket: WebSocketRoute) -> None:
    socket.close(code=1011)
