"""The page's variations and its strip of what was drawn before."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.playground_page import (
    GENERATE,
    PROMPTS,
    SAME,
    difference,
    drawn,
    wait_for_picture,
)

pytestmark = pytest.mark.e2e


def view(page: Page, num_pictures: int) -> None:
    page.locator(f"label:has(> input[name=view][value='{num_pictures}'])").click()


@pytest.mark.parametrize("num_pictures", [4, 9])
def test_variations_are_the_seeds_that_follow_and_a_click_takes_one(
    page: Page, num_pictures: int
) -> None:
    with page.expect_request(GENERATE) as asked:
        view(page, num_pictures)
    body = json.loads(asked.value.post_data or "")
    assert (body["num_images"], body["seed"]) == (num_pictures, 7)
    cells = page.locator("#grid button")
    expect(cells).to_have_count(num_pictures)
    expect(page.locator("#picture")).to_be_hidden()
    last = num_pictures - 1
    expect(cells.nth(last)).to_have_accessible_name(f"{PROMPTS[0]}, seed {7 + last}")
    page.locator("#lock").click()
    cells.nth(last).click()
    expect(page.locator("#seed")).to_have_value(str(7 + last))
    expect(page.locator("#lock")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#grid")).to_be_hidden()
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#announce")).to_have_text(f"Drawn: {PROMPTS[0]}, seed {7 + last}")


def test_variations_follow_the_typing(page: Page) -> None:
    view(page, 4)
    expect(page.locator("#grid button")).to_have_count(4)
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially("rocket", delay=50)
    expect(page.locator("#grid")).to_have_attribute("data-prompt", "rocket")
    view(page, 1)
    wait_for_picture(page, "rocket")
    expect(page.locator("#picture")).to_be_visible()


def test_a_picture_that_was_under_way_does_not_hide_the_variations(page: Page) -> None:
    page.locator("#prompt").fill("rocket")
    view(page, 4)
    expect(page.locator("#grid")).to_have_attribute("data-prompt", "rocket")
    page.wait_for_timeout(500)
    expect(page.locator("#grid")).to_be_visible()
    expect(page.locator("#picture")).to_be_hidden()


def test_the_keyboard_chooses_a_variation(page: Page) -> None:
    page.keyboard.press("4")
    cells = page.locator("#grid button")
    expect(cells).to_have_count(4)
    cells.nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#seed")).to_have_value("9")
    expect(page.locator("input[name=view]:checked")).to_be_focused()


def draw_and_settle(page: Page, prompt: str, num_kept: int) -> None:
    page.locator("#prompt").fill(prompt)
    wait_for_picture(page, prompt)
    expect(page.locator("#history button")).to_have_count(num_kept)


def test_the_strip_keeps_what_was_drawn_and_brings_it_back(page: Page) -> None:
    kept = page.locator("#history button")
    expect(kept).to_have_count(1)
    first = drawn(page)
    draw_and_settle(page, "rocket", 2)
    page.locator("#seed").fill("8")
    expect(kept).to_have_count(3)
    expect(kept.first).to_have_accessible_name("rocket, seed 8")
    expect(kept.last).to_have_accessible_name(f"{PROMPTS[0]}, seed 7")
    kept.last.click()
    wait_for_picture(page, PROMPTS[0])
    expect(page.locator("#prompt")).to_have_value(PROMPTS[0])
    expect(page.locator("#seed")).to_have_value("7")
    assert difference(drawn(page), first) == 0


def test_the_strip_lists_a_picture_once_and_letters_not_at_all(page: Page) -> None:
    kept = page.locator("#history button")
    expect(kept).to_have_count(1)
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially("rocket", delay=60)
    expect(kept).to_have_count(2)
    page.locator("#prompt").fill(PROMPTS[0])
    expect(kept.first).to_have_accessible_name(f"{PROMPTS[0]}, seed 7")
    expect(kept).to_have_count(2)


def test_the_strip_outlives_a_reload(page: Page) -> None:
    expect(page.locator("#history button")).to_have_count(1)
    draw_and_settle(page, "rocket", 2)
    first = drawn(page)
    page.reload()
    kept = page.locator("#history button")
    expect(kept).to_have_count(2)
    kept.first.click()
    wait_for_picture(page, "rocket")
    assert difference(drawn(page), first) <= SAME


def test_the_strip_is_bounded(page: Page) -> None:
    expect(page.locator("#history button")).to_have_count(1)
    page.evaluate(
        """() => {
            const [entry] = JSON.parse(sessionStorage.getItem("onestep.history"));
            const many = Array.from({ length: 24 }, (_, index) => (
                { ...entry, wish: { ...entry.wish, prompt: `kept ${index}` } }));
            sessionStorage.setItem("onestep.history", JSON.stringify(many));
        }"""
    )
    page.reload()
    kept = page.locator("#history button")
    expect(kept.first).to_have_accessible_name(f"{PROMPTS[0]}, seed 7")
    expect(kept).to_have_count(24)
    expect(kept.last).to_have_accessible_name("kept 22, seed 7")
