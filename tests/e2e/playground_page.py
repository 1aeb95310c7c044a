"""The page as a person sees it: which picture is on the stage, and how two pictures differ.

Owns reading the open page. Knows nothing of who opened it.
"""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image
from playwright.sync_api import Page, Request, expect

PROMPTS = ("red apple", "cat face", "rocket")
GENERATE = "**/v1/generate"
REALTIME = "**/v1/realtime"
# Mean difference of 8-bit pixels: the same picture, apart from rounding, and another one.
SAME, OTHER = 1.0, 2.0
# Generous: the machine may be busy with other tests.
expect.set_options(timeout=20_000)


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
