"""The page's controls in a real browser: seed, steps, styles, keyboard, phone, ways to share."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.e2e.playground_page import PROMPTS, SAME, difference, drawn, wait_for_picture

pytestmark = pytest.mark.e2e


def test_a_locked_seed_stays_and_an_open_one_changes(page: Page) -> None:
    seed, lock, dice = (page.locator(f"#{name}") for name in ("seed", "lock", "dice"))
    expect(lock).to_have_attribute("aria-pressed", "true")
    page.locator("#prompt").fill("rocket")
    wait_for_picture(page, "rocket")
    expect(seed).to_have_value("7")
    first = drawn(page)

    shown = page.locator("#picture").get_attribute("src")
    dice.click()
    expect(seed).not_to_have_value("7")
    expect(page.locator("#picture")).not_to_have_attribute("src", str(shown))
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
    for name in ("One picture", "Keep this seed", "Another seed", "Copy as curl", "Copy link"):
        assert name in names

    steps = page.locator("input[name=steps]")
    steps.first.focus()
    page.keyboard.press("ArrowRight")
    expect(steps.nth(1)).to_be_checked()
    expect(page).to_have_url(re.compile("steps=2"))

    page.locator("#dice").focus()
    page.keyboard.press("Space")
    expect(page.locator("#seed")).not_to_have_value("7")


def test_single_keys_work_outside_of_fields_only(page: Page) -> None:
    page.locator("#prompt").fill("")
    page.keyboard.type("rl49?")
    expect(page.locator("#prompt")).to_have_value("rl49?")
    expect(page.locator("#seed")).to_have_value("7")
    page.keyboard.press("Escape")
    expect(page.locator("#prompt")).not_to_be_focused()
    page.keyboard.press("r")
    expect(page.locator("#seed")).not_to_have_value("7")
    page.keyboard.press("l")
    expect(page.locator("#lock")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("4")
    expect(page.locator("#grid button")).to_have_count(4)
    page.keyboard.press("1")
    expect(page.locator("#picture")).to_be_visible()
    page.keyboard.press("Control+r")  # is the browser's own
    page.wait_for_load_state()
    expect(page.locator("#picture")).to_be_visible()


def test_the_keys_are_listed_and_the_list_closes(page: Page) -> None:
    dialog = page.locator("#keys")
    page.keyboard.press("?")
    expect(dialog).to_be_visible()
    seed = page.locator("#seed").input_value()
    page.keyboard.press("r")
    expect(page.locator("#seed")).to_have_value(seed)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.locator("#show-keys").click()
    expect(dialog).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_single_keys_can_be_switched_off_and_stay_off(page: Page) -> None:
    choice = page.get_by_label("Use single keys")
    page.locator("#show-keys").click()
    expect(choice).to_be_checked()
    choice.uncheck()
    page.keyboard.press("Escape")
    page.locator("#picture").click()  # into no field
    for _ in range(2):
        page.keyboard.type("r4?")
        expect(page.locator("#keys")).to_be_hidden()
        expect(page.locator("#seed")).to_have_value("7")
        expect(page.locator("#picture")).to_be_visible()
        page.reload()
        expect(page.locator("#picture")).to_be_visible()
    page.locator("#show-keys").click()
    choice.check()
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    expect(page.locator("#seed")).not_to_have_value("7")


def test_what_was_drawn_is_announced_once_it_settles(page: Page) -> None:
    said = page.locator("#announce")
    expect(said).to_have_attribute("aria-live", "polite")
    expect(said).to_have_text(f"Drawn: {PROMPTS[0]}, seed 7")
    page.evaluate(
        """() => {
            window.said = [];
            const announce = document.getElementById("announce");
            new MutationObserver(() => window.said.push(announce.textContent))
                .observe(announce, { childList: true });
        }"""
    )
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially("rocket", delay=40)
    expect(said).to_have_text("Drawn: rocket, seed 7")
    assert page.evaluate("window.said") == ["Drawn: rocket, seed 7"], "not every letter is read out"


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


@pytest.mark.parametrize("width_px", [320, 360, 390])
def test_a_phone_shows_all_without_scrolling_sideways(page: Page, width_px: int) -> None:
    page.set_viewport_size({"width": width_px, "height": 780})
    page.locator("#prompt").fill("w" * 400)
    expect(page.locator("#message")).not_to_be_empty()
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    box = page.locator("#picture").bounding_box()
    assert box is not None
    assert box["width"] > 0.8 * width_px
    page.keyboard.press("Escape")
    page.keyboard.press("9")
    page.locator("#prompt").fill("rocket")
    expect(page.locator("#grid button")).to_have_count(9)
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    for control in page.locator("main section:not(.past) button:visible, #seed").all():
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


def test_the_copied_program_draws_the_same_picture(page: Page, tmp_path: Path) -> None:
    text = 'it\'s "red" \\ é'
    page.locator("#prompt").fill(text)
    wait_for_picture(page, text)
    page.locator("#copy-python").click()
    expect(page.locator("#copy-python")).to_have_text("Copied")
    program = page.evaluate("navigator.clipboard.readText()")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    copied = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"), np.float32)
    assert difference(copied, drawn(page)) <= SAME


def test_a_saved_picture_is_the_exact_one_under_a_telling_name(page: Page) -> None:
    page.locator("#prompt").fill("red apple, 3d")
    wait_for_picture(page, "red apple, 3d")
    page.locator("#prompt").press("Escape")
    with page.expect_download() as saving:
        page.keyboard.press("s")
    assert saving.value.suggested_filename == "red-apple-3d-7.png"
    saved = np.asarray(Image.open(saving.value.path()).convert("RGB"), np.float32)
    assert difference(saved, drawn(page)) <= SAME


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_light(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    page.locator("#prompt").fill("cat " * 200)
    expect(page.locator("#message")).not_to_be_empty()
    darks = {}
    for selector in ("#prompt", "#model", "#message", "dt", "#examples button", "#styles button"):
        ink, paper = page.locator(selector).first.evaluate(COLOURS)
        darks[selector] = luminance(paper) < 0.5
        assert contrast(ink, paper) >= 4.5, selector
    assert set(darks.values()) == {scheme == "dark"}


COLOURS = """element => {
    const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const ink = rgb(getComputedStyle(element).color);
    for (let at = element; at; at = at.parentElement) {
        const paper = rgb(getComputedStyle(at).backgroundColor);
        if (paper.length === 3) return [ink, paper];
    }
}"""


def luminance(rgb: list[float]) -> float:
    """Source: WCAG 2.2, relative luminance."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in rgb[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


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
