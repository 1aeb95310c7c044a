"""The page at `/` in a real browser, against the real service with the bundled model."""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from tests.e2e.chromium import find_chromium, launched

pytestmark = pytest.mark.e2e

PROMPTS = ("red apple", "cat face", "rocket")
GENERATE = "**/v1/generate"
# Mean difference of 8-bit pixels: the same picture, apart from rounding, and another one.
SAME, OTHER = 1.0, 2.0

expect.set_options(timeout=20_000)


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
    """The page with a picture of the first prompt; it must end without an error of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=service_url)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(f"{service_url}/#prompt={PROMPTS[0]}&seed=7")
    wait_for_picture(page, PROMPTS[0])
    yield page
    context.close()
    # Chromium itself logs each refused or unanswered request.
    assert [text for text in errors if "Failed to load resource" not in text] == []


def wait_for_picture(page: Page, prompt: str) -> None:
    expect(page.locator("#picture")).to_have_attribute("alt", prompt)
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")


def seen(page: Page) -> np.ndarray:
    """What a person sees on the stage."""
    shot = page.locator("#picture").screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), np.float32)


def drawn(page: Page) -> np.ndarray:
    """The picture's own pixels, out of the browser."""
    side, rgba = page.evaluate(
        """() => {
            const picture = document.getElementById("picture");
            const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
            const context = canvas.getContext("2d");
            context.drawImage(picture, 0, 0);
            const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.width, Array.from(data)];
        }"""
    )
    return np.asarray(rgba, np.float32).reshape(-1, side, 4)[..., :3]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).mean())


def asked_prompt(request: Request) -> str:
    return str(json.loads(request.post_data or "{}").get("prompt"))


def record_alts(page: Page) -> None:
    """Let the page note every picture it shows, by its prompt."""
    page.evaluate(
        """() => {
            const picture = document.getElementById("picture");
            window.shownPrompts = [];
            new MutationObserver(() => window.shownPrompts.push(picture.alt))
                .observe(picture, { attributeFilter: ["alt"] });
        }"""
    )


def test_three_typed_prompts_show_three_pictures(page: Page) -> None:
    pictures = []
    for prompt in PROMPTS:
        page.locator("#prompt").fill("")
        page.locator("#prompt").press_sequentially(prompt, delay=20)
        wait_for_picture(page, prompt)
        pictures.append(seen(page))
    assert min(pictures[0].shape[:2]) > 400, "the picture is the hero of the page"
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert difference(pictures[one], pictures[other]) > OTHER
    for name in ("round-trip", "queue", "run"):
        assert re.fullmatch(r"\d+(\.\d)? ms", page.locator(f"#{name}").inner_text())


def test_the_newest_prompt_wins_under_fast_typing(page: Page) -> None:
    network = page.context.new_cdp_session(page)
    # Slow enough that requests would overlap if the page let them.
    slow = {"offline": False, "latency": 150, "downloadThroughput": -1, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", slow)
    page.evaluate("performance.clearResourceTimings()")
    record_alts(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(asked_prompt(request)))
    text = "hot rocket"
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially(text, delay=70)
    wait_for_picture(page, text)
    typed = drawn(page)

    shown = page.evaluate("window.shownPrompts")
    assert shown[-1] == text
    assert shown == sorted(shown, key=len), "an older answer came after a newer one"
    assert set(shown) <= set(asked), "a picture under another prompt than its own"
    spans_ms = page.evaluate(
        """() => performance.getEntriesByType("resource")
            .filter((entry) => entry.name.endsWith("/v1/generate"))
            .map((entry) => [entry.startTime, entry.responseEnd])"""
    )
    assert len(spans_ms) > 1, "the picture follows the typing, it does not wait for its end"
    for (_, end_ms), (start_ms, _) in pairwise(sorted(spans_ms)):
        assert start_ms >= end_ms, "two requests at once"

    page.locator("#prompt").press("Enter")
    wait_for_picture(page, text)
    assert difference(drawn(page), typed) <= SAME


def test_a_slow_overtaken_request_is_aborted(page: Page) -> None:
    def never_answer_slow(route: Route) -> None:
        if asked_prompt(route.request) == "slow":
            return  # only the page itself can end it
        route.continue_()

    page.route(GENERATE, never_answer_slow)
    record_alts(page)
    with page.expect_request(GENERATE):
        page.locator("#prompt").fill("slow")
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "true")
    with page.expect_event("requestfailed", timeout=5000) as failed:
        page.locator("#prompt").fill("rocket")
    assert asked_prompt(failed.value) == "slow"
    wait_for_picture(page, "rocket")
    assert page.evaluate("window.shownPrompts") == ["rocket"]


def test_an_overlong_prompt_is_explained_and_the_picture_stays(page: Page) -> None:
    before = drawn(page)
    page.locator("#prompt").fill("cat " * 200)
    message = page.locator("#message")
    expect(message).to_contain_text(re.compile("^Prompt has 799 characters.*allowed"))
    expect(message).to_have_attribute("role", "status")
    expect(page.locator("#prompt")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#picture")).to_be_visible()
    assert difference(drawn(page), before) == 0

    page.locator("#prompt").fill(PROMPTS[1])
    wait_for_picture(page, PROMPTS[1])
    expect(message).to_be_empty()
    expect(page.locator("#prompt")).to_have_attribute("aria-invalid", "false")


def test_a_wrong_seed_is_explained_without_asking_the_service(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    page.locator("#seed").fill("4294967296")
    expect(page.locator("#message")).to_have_text("Seed is a whole number from 0 to 4294967295.")
    expect(page.locator("#seed")).to_have_attribute("aria-invalid", "true")
    assert "POST" not in asked


def test_a_busy_service_is_given_the_time_it_asks_for(page: Page) -> None:
    asked_s: list[float] = []

    def refuse_once(route: Route) -> None:
        asked_s.append(time.monotonic())
        if len(asked_s) > 1:
            route.continue_()
            return
        problem = {"status": 429, "title": "Queue full", "detail": "the queue is full"}
        route.fulfill(
            status=429,
            headers={"retry-after": "1", "content-type": "application/problem+json"},
            body=json.dumps(problem),
        )

    page.route(GENERATE, refuse_once)
    page.locator("#prompt").fill("cat")
    expect(page.locator("#message")).to_have_text("The queue is full. Trying again in 1 s.")
    page.locator("#prompt").fill("cat face")
    wait_for_picture(page, "cat face")
    expect(page.locator("#message")).to_be_empty()
    assert len(asked_s) == 2, "one refusal, then only the newest prompt"
    assert asked_s[1] - asked_s[0] >= 1


def test_the_page_finds_back_after_the_service_was_away(page: Page) -> None:
    page.route(GENERATE, lambda route: route.abort("connectionrefused"), times=1)
    page.locator("#prompt").fill("rocket")
    expect(page.locator("#message")).to_contain_text("The service can't be reached.")
    wait_for_picture(page, "rocket")


def test_a_locked_seed_stays_and_an_open_one_changes(page: Page) -> None:
    seed, lock, dice = (page.locator(f"#{name}") for name in ("seed", "lock", "dice"))
    expect(lock).to_have_attribute("aria-pressed", "true")
    page.locator("#prompt").fill("rocket")
    wait_for_picture(page, "rocket")
    expect(seed).to_have_value("7")
    first = drawn(page)

    with page.expect_response(GENERATE):
        dice.click()
    expect(seed).not_to_have_value("7")
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    assert difference(drawn(page), first) > SAME

    rolled = seed.input_value()
    lock.click()
    page.locator("#prompt").fill("cat face")
    wait_for_picture(page, "cat face")
    expect(seed).not_to_have_value(rolled)


def test_the_keyboard_reaches_and_works_everything(page: Page) -> None:
    prompt = page.locator("#prompt")
    page.keyboard.press("/")
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value(PROMPTS[0])

    names = []
    while "Save picture" not in names:
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        names.append(focused.get_attribute("aria-label") or focused.inner_text() or "field")
        assert is_focus_visible(focused), names[-1]
        assert len(names) < 60, names
    for name in ("Keep this seed", "Another seed", "Copy as curl", "Copy link"):
        assert name in names

    steps = page.locator("input[name=steps]")
    steps.first.focus()
    with page.expect_request(GENERATE) as asked:
        page.keyboard.press("ArrowRight")
    assert json.loads(asked.value.post_data or "")["steps"] == 2

    page.locator("#dice").focus()
    with page.expect_request(GENERATE):
        page.keyboard.press("Space")
    expect(page.locator("#seed")).not_to_have_value("7")


def is_focus_visible(focused: Locator) -> bool:
    """A radio button is drawn by its label, so the ring is there."""
    return bool(
        focused.evaluate(
            """element => [element, element.closest("label")].some(
                (drawn) => drawn && getComputedStyle(drawn).outlineStyle === "solid")"""
        )
    )


def test_a_style_is_appended_replaced_and_removed(page: Page) -> None:
    styles = page.locator("#styles button")
    if styles.count() < 2:
        pytest.skip("this bundle has no styles")
    prompt = page.locator("#prompt")
    first, second = styles.nth(0), styles.nth(1)
    first.click()
    expect(prompt).to_have_value(f"{PROMPTS[0]}, {first.inner_text()}")
    expect(first).to_have_attribute("aria-pressed", "true")
    second.click()
    expect(prompt).to_have_value(f"{PROMPTS[0]}, {second.inner_text()}")
    expect(first).to_have_attribute("aria-pressed", "false")
    wait_for_picture(page, f"{PROMPTS[0]}, {second.inner_text()}")
    second.click()
    expect(prompt).to_have_value(PROMPTS[0])


def test_an_example_is_drawn(page: Page) -> None:
    example = page.locator("#examples button").last
    example.click()
    expect(page.locator("#prompt")).to_have_value(example.inner_text())


@pytest.mark.parametrize("width_px", [320, 390])
def test_a_phone_shows_all_without_scrolling_sideways(page: Page, width_px: int) -> None:
    page.set_viewport_size({"width": width_px, "height": 780})
    page.locator("#prompt").fill("w" * 400)
    expect(page.locator("#message")).not_to_be_empty()
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    box = page.locator("#picture").bounding_box()
    assert box is not None
    assert box["width"] > 0.8 * width_px
    for control in page.locator("main button:visible, #seed").all():
        size = control.bounding_box()
        assert size is not None
        assert size["height"] >= 40, f"{control.inner_text()} is too low for a thumb"
        assert size["x"] + size["width"] <= width_px


def test_the_copied_curl_command_draws_the_same_picture(page: Page, tmp_path: Path) -> None:
    text = 'it\'s "red"'
    page.locator("#prompt").fill(text)
    wait_for_picture(page, text)
    page.locator("#copy-curl").click()
    expect(page.locator("#copy-curl")).to_have_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60)
    copied = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"), np.float32)
    assert difference(copied, drawn(page)) <= SAME


def test_a_link_keeps_prompt_and_seed(page: Page) -> None:
    page.locator("#prompt").fill(PROMPTS[2])
    wait_for_picture(page, PROMPTS[2])
    page.locator("#copy-link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    other = page.context.new_page()
    other.goto(link)
    wait_for_picture(other, PROMPTS[2])
    expect(other.locator("#seed")).to_have_value("7")
    assert difference(drawn(other), drawn(page)) <= SAME
