"""The page at `/` in a real browser: pictures follow the typing, problems are told politely."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise

import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.playground_page import (
    GENERATE,
    OTHER,
    PROMPTS,
    SAME,
    asked_prompt,
    difference,
    drawn,
    record_alts,
    seen,
    wait_for_picture,
)

pytestmark = pytest.mark.e2e


def test_three_typed_prompts_show_three_pictures(any_page: Page) -> None:
    page, pictures = any_page, []
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


def test_the_newest_prompt_wins_under_fast_typing(http_page: Page) -> None:
    page = http_page
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


def test_a_slow_overtaken_request_is_aborted(http_page: Page) -> None:
    page = http_page

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


def test_an_overlong_prompt_is_explained_and_the_picture_stays(any_page: Page) -> None:
    page = any_page
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


def test_a_busy_service_is_given_the_time_it_asks_for(http_page: Page) -> None:
    page = http_page
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


def test_the_page_finds_back_after_the_service_was_away(http_page: Page) -> None:
    page = http_page
    page.route(GENERATE, lambda route: route.abort("connectionrefused"), times=1)
    page.locator("#prompt").fill("rocket")
    expect(page.locator("#message")).to_contain_text("The service can't be reached.")
    wait_for_picture(page, "rocket")
