"""The page over the realtime connection: order, problems, a lost connection, a flow of pictures."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.e2e.conftest import opened
from tests.e2e.playground_page import (
    GENERATE,
    PROMPTS,
    SAME,
    difference,
    drawn,
    record_alts,
    wait_for_picture,
)
from tests.e2e.realtime_line import Line

pytestmark = pytest.mark.e2e


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def watched(browser: Browser, service_url: str, line: Line) -> Any:
    with opened(browser, service_url, line.attach) as page:
        expect(page.locator("#channel")).to_have_text("Live")
        yield page


def test_letters_are_sent_as_they_come_and_nothing_older_is_shown_after_something_newer(
    watched: Page, line: Line
) -> None:
    page, text = watched, "hot air balloon"
    record_alts(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially(text, delay=60)
    wait_for_picture(page, text)
    typed = drawn(page)
    sent = [message["prompt"] for message in line.sent]
    shown = page.evaluate("window.shownPrompts")
    assert "POST" not in asked
    typed_so_far = {text[:length].strip() for length in range(1, len(text) + 1)}
    assert set(sent) <= typed_so_far
    assert len(sent) > len(text) / 2, "letters are sent as they come, not at a pause"
    assert shown[-1] == text
    assert shown == sorted(shown, key=len), "an older answer came after a newer one"
    assert len(shown) > 3, "the picture follows the typing"
    ids = [message["id"] for message in line.sent]
    assert ids == sorted(set(ids))
    page.locator("#prompt").press("Enter")
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    assert difference(drawn(page), typed) <= SAME


def test_a_flow_of_pictures_has_a_pace(watched: Page) -> None:
    expect(watched.locator("#pace")).to_have_text("–")
    watched.locator("#prompt").press_sequentially(", flat and round and red", delay=30)
    expect(watched.locator("#pace")).not_to_have_text("–")
    assert 1 < float(watched.locator("#pace").inner_text()) < 100


def test_a_full_queue_is_told_and_the_picture_comes(watched: Page, line: Line) -> None:
    waiting = {"type": "waiting", "retry_after_ms": 700}
    line.answers = [waiting]
    watched.locator("#prompt").fill("rocket")
    expect(watched.locator("#message")).to_have_text("The queue is full. Trying again in 1 s.")
    expect(watched.locator("#picture")).to_have_attribute("alt", PROMPTS[0])
    watched.locator("#prompt").fill("cat face")
    wait_for_picture(watched, "cat face")
    expect(watched.locator("#message")).to_be_empty()


def test_a_service_that_says_when_is_asked_again_then(watched: Page, line: Line) -> None:
    line.answers = [{"type": "error", "detail": "the model is loading", "retry_after_ms": 300}]
    watched.locator("#prompt").fill("rocket")
    expect(watched.locator("#message")).to_have_text("The model is loading. Trying again in 1 s.")
    wait_for_picture(watched, "rocket")
    assert [message["prompt"] for message in line.sent[-2:]] == ["rocket", "rocket"]


def test_a_problem_with_an_older_wish_is_not_told(watched: Page, line: Line) -> None:
    line.answers = [{"type": "error", "detail": "it is too old", "id": 1}]
    watched.locator("#prompt").fill("rocket")
    watched.wait_for_timeout(300)
    assert line.sent[-1]["prompt"] == "rocket"
    expect(watched.locator("#message")).to_be_empty()
    watched.locator("#prompt").fill("cat face")
    wait_for_picture(watched, "cat face")
    expect(watched.locator("#message")).to_be_empty()


def test_a_lost_connection_loses_no_wish_and_comes_back(watched: Page, line: Line) -> None:
    assert line.socket is not None
    line.is_cut = True
    line.socket.close(code=1011)
    expect(watched.locator("#channel")).to_have_text("HTTP")
    with watched.expect_request(GENERATE):
        watched.locator("#prompt").fill("rocket")
    wait_for_picture(watched, "rocket")
    line.is_cut = False
    expect(watched.locator("#channel")).to_have_text("Live")
    before = len(line.sent)
    watched.locator("#prompt").fill("cat face")
    wait_for_picture(watched, "cat face")
    assert len(line.sent) > before


def test_a_wish_under_way_when_the_connection_breaks_is_asked_by_request(
    watched: Page, line: Line
) -> None:
    assert line.socket is not None
    # Swallowed by the line: the page goes on waiting for its picture.
    line.answers = [{"type": "waiting", "retry_after_ms": 500}]
    watched.locator("#prompt").fill("rocket")
    expect(watched.locator("#message")).not_to_be_empty()
    line.is_cut = True
    with watched.expect_request(GENERATE):
        line.socket.close(code=1011)
    wait_for_picture(watched, "rocket")


def test_after_a_silence_the_next_wish_connects_again(watched: Page, line: Line) -> None:
    assert line.socket is not None
    line.socket.close(code=1000)
    expect(watched.locator("#channel")).to_have_text("HTTP")
    watched.wait_for_timeout(1500)
    expect(watched.locator("#channel")).to_have_text("HTTP")
    watched.locator("#prompt").fill("rocket")
    wait_for_picture(watched, "rocket")
    expect(watched.locator("#channel")).to_have_text("Live")


def test_a_late_answer_by_request_is_not_shown_over_a_newer_picture(
    watched: Page, line: Line
) -> None:
    assert line.socket is not None
    line.is_cut = True
    line.socket.close(code=1011)
    expect(watched.locator("#channel")).to_have_text("HTTP")
    held: list[Route] = []
    watched.route(GENERATE, lambda route: held.append(route))
    watched.locator("#prompt").fill("rocket")
    line.is_cut = False
    expect(watched.locator("#channel")).to_have_text("Live")
    record_alts(watched)
    watched.locator("#prompt").fill("cat face")
    wait_for_picture(watched, "cat face")
    with watched.expect_response(GENERATE):
        held[0].continue_()
    watched.wait_for_timeout(300)
    assert watched.evaluate("window.shownPrompts") == ["cat face"]
