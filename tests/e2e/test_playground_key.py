"""The page of a service that asks for API keys: a field where one is needed, and the key's ways."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from keys_fixtures import bearer, make_key, write_keys
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route, WebSocket, expect
from service_process import ServiceProcess, running_service

from tests.e2e.conftest import refuse
from tests.e2e.playground_page import PROMPTS, REALTIME, SAME, difference, drawn, wait_for_picture

pytestmark = pytest.mark.e2e

REVOKED = "This API key was revoked: ask the operator for another."


@dataclass
class Locked:
    """A service with keys, and the way to take the one that is good away."""

    service: ServiceProcess
    keys_file: Path
    key: str
    revoked_key: str

    def revoke(self) -> None:
        """As `onestep keys revoke` would."""
        key_id = self.key.removeprefix("os_").split(".")[0]
        command = [sys.executable, "-m", "service", "keys", "revoke", key_id]
        root = Path(__file__).resolve().parents[2]
        environment = os.environ | {"ONESTEP_KEYS_FILE": str(self.keys_file)}
        subprocess.run(command, cwd=root, env=environment, check=True, timeout=60)
        self.wait_for_answer(401)

    def wait_for_answer(self, status: int) -> None:
        """Until the service has seen what its file says of the key."""
        until_s = time.monotonic() + 20
        url = f"{self.service.url}/v1/models"
        while httpx.get(url, headers=bearer(self.key)).status_code != status:
            assert time.monotonic() < until_s, "the service does not follow its keys file"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def locked_service(
    repo_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServiceProcess, Path]]:
    folder = tmp_path_factory.mktemp("locked")
    keys_file = write_keys(folder / "keys.json", make_key()[0])
    bundle = repo_root / "models" / "emoji"
    with running_service(bundle, folder, keys_file=keys_file) as service:
        yield service, keys_file


@pytest.fixture
def locked(locked_service: tuple[ServiceProcess, Path]) -> Locked:
    """Keys of this test's own: the service follows its file within a second."""
    service, keys_file = locked_service
    (good, key), (bad, revoked_key) = make_key(), make_key(is_revoked=True)
    write_keys(keys_file, good, bad)
    locked = Locked(service, keys_file, key, revoked_key)
    locked.wait_for_answer(200)
    return locked


@pytest.fixture
def context(browser: Browser, locked: Locked) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    origin = locked.service.url
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, locked: Locked) -> Iterator[Page]:
    """The page before it has a key; it must end without an error of its own."""
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    open_page(page, locked)
    yield page
    # Chromium itself logs each refused request.
    assert [text for text in errors if "Failed to load resource" not in text] == []


def open_page(page: Page, locked: Locked) -> None:
    page.goto(f"{locked.service.url}/#prompt={PROMPTS[0]}&seed=7")
    expect(page.locator("#gate")).to_be_visible()


def enter(page: Page, key: str) -> None:
    page.locator("#api-key").fill(key)
    page.locator("#api-key").press("Enter")


def come_in(page: Page, locked: Locked) -> None:
    enter(page, locked.key)
    expect(page.locator("#channel")).to_have_text("Live")
    wait_for_picture(page, PROMPTS[0])


def stored(page: Page) -> str | None:
    value: str | None = page.evaluate("sessionStorage.getItem('onestep.key')")
    return value


def test_a_key_opens_the_page_and_its_connection(page: Page, locked: Locked) -> None:
    field = page.get_by_label("This service asks for an API key")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("type", "password")
    expect(page.locator("#gate-message")).to_be_empty()
    expect(page.locator("#message")).to_be_empty()
    expect(page.locator("#key-row")).to_be_hidden()
    come_in(page, locked)
    expect(page.locator("#gate")).to_be_hidden()
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#key-row")).to_be_visible()
    page.locator("#prompt").fill(PROMPTS[1])
    wait_for_picture(page, PROMPTS[1])
    page.locator("#prompt").press("Escape")
    page.keyboard.press("4")
    expect(page.locator("#grid button")).to_have_count(4)


def test_it_also_draws_where_no_websocket_comes_through(page: Page, locked: Locked) -> None:
    page.route_web_socket(REALTIME, refuse)
    page.reload()
    enter(page, locked.key)
    wait_for_picture(page, PROMPTS[0])
    expect(page.locator("#channel")).to_have_text("HTTP")


def test_without_a_key_nothing_but_the_model_is_asked_for(page: Page, locked: Locked) -> None:
    asked: list[str] = []
    sockets: list[WebSocket] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: sockets.append(socket))
    page.reload()
    expect(page.locator("#gate")).to_be_visible()
    expect(page.locator("#prompt")).to_have_value(PROMPTS[0])
    page.locator("#prompt").press("End")
    page.locator("#prompt").press_sequentially(" 3d", delay=20)
    page.wait_for_timeout(1000)
    assert [url for url in asked if "/v1/" in url] == [f"{locked.service.url}/v1/models"]
    assert sockets == []
    expect(page.locator("#copy-python")).to_be_visible()
    assert page.locator(".tune").evaluate("element => element.inert")
    enter(page, locked.key)
    wait_for_picture(page, f"{PROMPTS[0]} 3d")
    assert not page.locator(".tune").evaluate("element => element.inert")


def test_what_is_wrong_with_a_key_is_said_by_the_field(page: Page, locked: Locked) -> None:
    field, message = page.locator("#api-key"), page.locator("#gate-message")
    expect(message).to_have_attribute("role", "alert")
    for text, words in (
        ("", "Type or paste a key first."),
        ("ключ", "No API key has such characters."),
        ("os_wrong", "This API key is not known here."),
        (locked.revoked_key, REVOKED),
    ):
        enter(page, text)
        expect(message).to_have_text(words)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_be_focused()
        assert stored(page) is None
    field.press_sequentially("x")
    expect(message).to_be_empty()
    expect(field).to_have_attribute("aria-invalid", "false")
    enter(page, f"  {locked.key}\n")
    wait_for_picture(page, PROMPTS[0])


def test_a_key_is_stored_once_the_service_has_taken_it(page: Page, locked: Locked) -> None:
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    with page.expect_request("**/v1/models") as asking:
        enter(page, locked.key)
    assert asking.value.headers["authorization"] == f"Bearer {locked.key}"
    assert stored(page) is None
    held[0].continue_()
    wait_for_picture(page, PROMPTS[0])
    assert stored(page) == locked.key


def test_a_reload_keeps_the_key_and_another_tab_has_none(
    page: Page, context: BrowserContext, locked: Locked
) -> None:
    come_in(page, locked)
    page.reload()
    wait_for_picture(page, PROMPTS[0])
    expect(page.locator("#gate")).to_be_hidden()
    expect(page.locator("#key-row")).to_be_visible()
    other = context.new_page()
    open_page(other, locked)
    other.close()


def test_a_forgotten_key_is_gone(page: Page, locked: Locked) -> None:
    come_in(page, locked)
    with page.expect_websocket() as opening:
        page.reload()
    wait_for_picture(page, PROMPTS[0])
    connection = opening.value
    page.locator("#forget-key").click()
    expect(page.locator("#gate")).to_be_visible()
    expect(page.locator("#gate-message")).to_be_empty()
    expect(page.locator("#api-key")).to_be_focused()
    expect(page.locator("#api-key")).to_have_value("")
    expect(page.locator("#key-row")).to_be_hidden()
    assert stored(page) is None
    if not connection.is_closed():
        connection.wait_for_event("close")
    page.reload()
    expect(page.locator("#gate")).to_be_visible()


@pytest.mark.parametrize("is_live", [True, False])
def test_a_key_that_is_revoked_meanwhile_is_asked_for_again(
    page: Page, locked: Locked, is_live: bool
) -> None:
    if not is_live:
        page.route_web_socket(REALTIME, refuse)
        page.reload()
    enter(page, locked.key)
    wait_for_picture(page, PROMPTS[0])
    locked.revoke()
    page.locator("#prompt").fill(PROMPTS[1])
    if is_live:
        # A connection that is open stays so; what needs a new request does not.
        wait_for_picture(page, PROMPTS[1])
        page.locator("input[name=view][value='4']").check(force=True)
    expect(page.locator("#gate-message")).to_have_text(REVOKED)
    assert page.locator("#gate").evaluate("form => !form.contains(document.activeElement)")
    assert stored(page) is None
    expect(page.locator("#picture")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#prompt").fill(PROMPTS[2])
    page.wait_for_timeout(500)
    assert asked == [], "the service is asked nothing until there is another key"


def test_the_key_never_shows(page: Page, context: BrowserContext, locked: Locked) -> None:
    urls: list[str] = []
    context.on("request", lambda request: urls.append(request.url))
    page.on("websocket", lambda socket: urls.append(socket.url))
    come_in(page, locked)
    for button in ("#copy-link", "#copy-curl", "#copy-python"):
        page.locator(button).click()
        expect(page.locator(button)).to_have_text("Copied")
        urls.append(page.evaluate("navigator.clipboard.readText()"))
    urls.append(page.url)
    secret = locked.key.split(".")[1]
    assert len(urls) > 5
    assert [text for text in urls if secret in text or "os_" in text] == []
    assert secret not in page.content()
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"


def test_what_is_copied_draws_with_the_variables_key(
    page: Page, locked: Locked, tmp_path: Path
) -> None:
    come_in(page, locked)
    environment = os.environ | {"ONESTEP_API_KEY": locked.key}
    for button, shell in (
        ("#copy-curl", ["sh", "-c"]),
        ("#copy-python", [sys.executable, "-c"]),
    ):
        page.locator(button).click()
        expect(page.locator(button)).to_have_text("Copied")
        text = page.evaluate("navigator.clipboard.readText()")
        command = [*shell, text]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
        with Image.open(tmp_path / "picture.png") as image:
            copied = np.asarray(image.convert("RGB"), np.float32)
        assert difference(copied, drawn(page)) <= SAME
        (tmp_path / "picture.png").unlink()


@pytest.mark.parametrize("width_px", [320, 390])
def test_a_phone_has_the_field_in_sight(page: Page, width_px: int) -> None:
    page.set_viewport_size({"width": width_px, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    for control in page.locator("#gate input, #gate button").all():
        size = control.bounding_box()
        assert size is not None
        assert size["height"] >= 40
        assert size["x"] + size["width"] <= width_px
        assert size["y"] + size["height"] < 500


def test_an_open_service_shows_nothing_of_keys(browser: Browser, service_url: str) -> None:
    page = browser.new_page()
    page.goto(f"{service_url}/#prompt={PROMPTS[0]}&seed=7")
    wait_for_picture(page, PROMPTS[0])
    expect(page.locator("#gate")).to_be_hidden()
    expect(page.locator("#key-row")).to_be_hidden()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    for button in ("#copy-curl", "#copy-python"):
        page.locator(button).click()
        assert not re.search("ONESTEP_API_KEY|uthorization", page.evaluate("window.copied"))
    page.close()
