"""The page draws from a drawing, a picture file and the camera."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.e2e.conftest import opened
from tests.e2e.playground_page import OTHER, PROMPTS, SAME, difference, drawn, wait_for_picture
from tests.e2e.realtime_line import Line

pytestmark = pytest.mark.e2e

RED = (228, 87, 46)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def page(browser: Browser, service_url: str, line: Line) -> Iterator[Page]:
    """The page of a model that can start from pictures."""

    with opened(browser, service_url, line.attach) as page:
        expect(page.locator("#channel")).to_have_text("Live")
        yield page


def choose(page: Page, mode: str) -> None:
    page.locator(f"label:has(> input[name=start][value={mode}])").click()


def stroke(board: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a line between two places, as shares of the board."""
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    assert box is not None
    mouse = board.page.mouse
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    mouse.move(*places[0])
    mouse.down()
    mouse.move(*places[1], steps=8)
    mouse.up()


def sent_picture(message: dict[str, Any]) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(message["image"])))
    assert image.format == "JPEG"
    return np.asarray(image.convert("RGB"), np.float32)


def last_sent(page: Page, line: Line) -> dict[str, Any]:
    """The last message once the page is quiet."""
    page.wait_for_timeout(200)
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    return line.sent[-1]


def test_a_drawing_changes_the_picture(page: Page, line: Line) -> None:
    from_words = drawn(page)
    choose(page, "drawing")
    page.locator("#colours label").nth(4).click()
    page.locator("#brushes label").nth(2).click()
    for height in (0.3, 0.5, 0.7):
        stroke(page.locator("#board"), (0.1, height), (0.9, height))
    last_sent(page, line)
    from_drawing = drawn(page)
    assert difference(from_drawing, from_words) > OTHER
    choose(page, "words")
    last_sent(page, line)
    assert difference(drawn(page), from_words) <= SAME


@pytest.mark.parametrize("language", ["curl", "python"])
def test_a_wish_from_a_drawing_is_copied_with_it(
    page: Page, line: Line, tmp_path: Path, language: str
) -> None:
    choose(page, "drawing")
    stroke(page.locator("#board"), (0.2, 0.5), (0.8, 0.5))
    last_sent(page, line)
    page.locator(f"#copy-{language}").click()
    expect(page.locator(f"#copy-{language}")).to_have_text("Copied")
    text = page.evaluate("navigator.clipboard.readText()")
    command = ["sh", "-c", text] if language == "curl" else [sys.executable, "-c", text]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    copied = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"), np.float32)
    assert difference(copied, drawn(page)) <= SAME


def test_a_model_of_words_alone_offers_nothing_else(browser: Browser, service_url: str) -> None:
    def prepare(page: Page) -> None:
        page.route("**/v1/models", refuse_pictures)

    def refuse_pictures(route: Route) -> None:
        models = route.fetch().json()
        models["data"][0] |= {"can_start_from_image": False, "strengths": []}
        route.fulfill(json=models)

    with opened(browser, service_url, prepare) as page:
        expect(page.locator("#start")).to_be_hidden()
        page.keyboard.press("d")
        expect(page.locator("#source")).to_be_hidden()
        page.keyboard.press("?")
        expect(page.locator(".with-start").first).to_be_hidden()


def test_a_drawing_is_sent_with_its_strength(page: Page, line: Line) -> None:
    choose(page, "drawing")
    assert "image" not in last_sent(page, line), "an empty board is nothing to start from"
    page.locator("#colours label").nth(1).click()
    page.locator("#brushes label").nth(2).click()
    stroke(page.locator("#board"), (0.2, 0.5), (0.8, 0.5))
    message = last_sent(page, line)
    width, height = int(page.locator("#picture").get_attribute("width") or 0), message.get("height")
    assert height is None
    pixels = sent_picture(message)
    assert pixels.shape == (width, width, 3)
    assert np.abs(pixels[width // 2, width // 2] - RED).max() < 20
    assert pixels[4, 4].min() > 245
    assert message["strength"] == pytest.approx(0.5, abs=0.01)
    page.locator("#strength").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#strength-value")).to_have_text("25 %")
    assert last_sent(page, line)["strength"] == pytest.approx(0.25, abs=0.01)


def test_the_picture_follows_the_stroke(page: Page, line: Line) -> None:
    choose(page, "drawing")
    last_sent(page, line)
    before = len(line.sent)
    board = page.locator("#board")
    box = board.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    for place in range(40):
        page.mouse.move(box["x"] + 20 + 4 * place, box["y"] + 60)
        page.wait_for_timeout(15)
    during = len(line.sent)
    page.mouse.up()
    assert during - before > 3, "pictures are drawn while the pen is down"
    final = sent_picture(last_sent(page, line))
    assert final[:, final.shape[1] * 3 // 5].min() < 80, "the last wish has the whole stroke"


def test_one_picture_is_under_way_at_a_time(page: Page, line: Line) -> None:
    choose(page, "drawing")
    last_sent(page, line)
    stroke(page.locator("#board"), (0.2, 0.2), (0.8, 0.8))
    last_sent(page, line)
    before = len(line.sent)
    # No answer to this one: whatever comes is held, and only the newest.
    line.answers = [{"type": "waiting", "retry_after_ms": 10}]
    for height in (0.3, 0.5, 0.7):
        stroke(page.locator("#board"), (0.1, height), (0.9, height))
    page.wait_for_timeout(300)
    assert len(line.sent) == before + 1


def test_steps_that_a_strength_leaves_no_room_for_are_closed(page: Page, line: Line) -> None:
    steps = page.locator("input[name=steps]")
    page.locator("#steps label").nth(3).click()
    expect(steps.nth(3)).to_be_checked()
    choose(page, "drawing")
    expect(steps.nth(3)).to_be_enabled()
    stroke(page.locator("#board"), (0.2, 0.5), (0.8, 0.5))
    expect(steps.nth(2)).to_be_disabled()
    expect(steps.nth(1)).to_be_checked()
    assert last_sent(page, line)["steps"] == 2
    choose(page, "words")
    expect(steps.nth(3)).to_be_enabled()


def test_strokes_are_undone_and_cleared(page: Page, line: Line) -> None:
    undo, clear = page.locator("#undo"), page.locator("#clear")
    choose(page, "drawing")
    expect(undo).to_be_disabled()
    board = page.locator("#board")
    stroke(board, (0.2, 0.3), (0.8, 0.3))
    one = sent_picture(last_sent(page, line))
    stroke(board, (0.2, 0.7), (0.8, 0.7))
    assert np.abs(sent_picture(last_sent(page, line)) - one).mean() > 1
    undo.click()
    assert np.abs(sent_picture(last_sent(page, line)) - one).mean() == 0
    board.focus()
    page.keyboard.press("Control+z")
    assert "image" not in last_sent(page, line)
    expect(undo).to_be_disabled()
    stroke(board, (0.2, 0.3), (0.8, 0.3))
    clear.click()
    assert "image" not in last_sent(page, line)
    expect(clear).to_be_disabled()


def test_the_keyboard_draws(page: Page, line: Line) -> None:
    page.keyboard.press("d")
    page.locator("#board").focus()
    page.keyboard.down("Space")
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    page.keyboard.up("Space")
    page.keyboard.press("ArrowDown")
    pixels = sent_picture(last_sent(page, line))
    middle = pixels.shape[0] // 2
    assert pixels[middle, middle - 10].max() < 80
    assert pixels[middle, middle + 20].min() > 240


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    path = tmp_path / "blue.png"
    Image.new("RGB", (300, 200), (20, 40, 220)).save(path)
    return path


def test_a_picture_file_is_put_onto_the_board(page: Page, line: Line, picture_file: Path) -> None:
    choose(page, "drawing")
    page.locator("#file").set_input_files(picture_file)
    pixels = sent_picture(last_sent(page, line))
    assert np.abs(pixels - (20, 40, 220)).max() < 12, "it covers the board"


def test_a_picture_is_dropped_anywhere(page: Page, line: Line, picture_file: Path) -> None:
    content = base64.b64encode(picture_file.read_bytes()).decode()
    drop = """(content) => {
        const bytes = Uint8Array.from(atob(content), (char) => char.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "blue.png", { type: "image/png" }));
        document.body.dispatchEvent(
            new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, content)
    expect(page.locator("input[name=start][value=drawing]")).to_be_checked()
    assert np.abs(sent_picture(last_sent(page, line)) - (20, 40, 220)).max() < 12


def test_a_file_that_is_no_picture_is_told(page: Page, tmp_path: Path) -> None:
    choose(page, "drawing")
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    page.locator("#file").set_input_files(path)
    expect(page.locator("#source-message")).to_contain_text("no picture")


def test_the_camera_flows_and_stops(page: Page, line: Line) -> None:
    choose(page, "camera")
    expect(page.locator("#pace")).not_to_have_text("–")
    pictures = [sent_picture(message) for message in line.sent if "image" in message]
    assert len(pictures) > 3, "the next is sent when the last has come back"
    assert any(np.abs(one - pictures[0]).mean() > 1 for one in pictures[1:]), "it moves"
    choose(page, "words")
    assert page.evaluate("document.getElementById('camera').srcObject") is None
    assert "image" not in last_sent(page, line)
    before = len(line.sent)
    page.wait_for_timeout(400)
    assert len(line.sent) == before


def test_the_camera_is_frozen_to_be_drawn_on(page: Page, line: Line) -> None:
    choose(page, "camera")
    expect(page.locator("#pace")).not_to_have_text("–")
    page.locator("#freeze").click()
    expect(page.locator("input[name=start][value=drawing]")).to_be_checked()
    still = sent_picture(last_sent(page, line))
    assert still[..., 1].mean() > still[..., 0].mean(), "the pattern is green"
    expect(page.locator("#undo")).to_be_enabled()


def test_a_camera_that_may_not_be_used_is_told(page: Page) -> None:
    page.evaluate(
        """() => { navigator.mediaDevices.getUserMedia =
            () => Promise.reject(new DOMException("", "NotAllowedError")); }"""
    )
    choose(page, "camera")
    expect(page.locator("#source-message")).to_contain_text("no camera")
    page.locator("#prompt").fill("rocket")
    wait_for_picture(page, "rocket")


def test_a_phone_shows_board_and_picture_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 780})
    choose(page, "drawing")
    stroke(page.locator("#board"), (0.2, 0.5), (0.8, 0.5))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [page.locator(name).bounding_box() for name in ("#picture", "#board")]
    assert boxes[0] is not None and boxes[1] is not None
    assert boxes[1]["y"] + boxes[1]["height"] - boxes[0]["y"] <= 780
    for control in page.locator("#tools button, #tools label").all():
        size = control.bounding_box()
        assert size is not None and size["height"] >= 36, control.inner_text()


def test_variations_of_a_drawing_start_from_it_too(page: Page) -> None:
    choose(page, "drawing")
    stroke(page.locator("#board"), (0.2, 0.5), (0.8, 0.5))
    with page.expect_request("**/v1/generate") as asked:
        page.locator("label:has(> input[name=view][value='4'])").click()
    body = json.loads(asked.value.post_data or "")
    assert body["prompt"] == PROMPTS[0]
    assert body["strength"] == pytest.approx(0.5, abs=0.01)
    assert sent_picture(body).shape[2] == 3
