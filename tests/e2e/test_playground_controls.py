"""The page's controls in a real browser: seed, steps, styles, keyboard, phone, ways to share."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.e2e.playground_page import GENERATE, PROMPTS, SAME, difference, drawn, wait_for_picture

pytestmark = pytest.mark.e2e


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
