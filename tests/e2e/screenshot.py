"""Take the pictures of the page for README and docs from a running service.

    make run                                # in one terminal
    python -m tests.e2e.screenshot          # in another

Owns their sizes, lights and places: docs/images/playground-DEVICE-LIGHT.webp for a desktop and a
phone in light and dark, and playground-drawing.webp where the model can start from a picture.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.e2e.chromium import find_chromium, launched

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
DEVICES = {"desktop": (1280, 800), "phone": (390, 844)}
MAX_SIZE_BYTES = 150_000
# Longer than the page waits before it puts a picture into its strip.
SETTLED_MS = 1500
EARLIER = ("castle, flat", "octopus, 3d", "crab, blob", "red apple, noto")


def take(url: str, prompt: str, seed: int, folder: Path) -> None:
    """Photograph the page at `url` with a prompt typed into it."""
    executable_path = find_chromium()
    if executable_path is None:
        raise SystemExit("no chromium found: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with launched(executable_path) as browser:
        for device in DEVICES:
            for light in ("light", "dark"):
                page = opened(browser, url, device, light, seed)
                type_in(page, prompt)
                keep(page, folder / f"playground-{device}-{light}.webp")
                if (device, light) == ("desktop", "light") and page.locator("#start").is_visible():
                    draw_apple(page)
                    keep(page, folder / "playground-drawing.webp")
                page.close()


def opened(browser: Browser, url: str, device: str, light: str, seed: int) -> Page:
    """A page that has drawn before."""
    width, height = DEVICES[device]
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=light, reduced_motion="reduce"
    )
    page.goto(f"{url}/#{urlencode({'prompt': EARLIER[0], 'seed': seed})}")
    for prompt in EARLIER:
        page.locator("#prompt").fill(prompt)
        page.locator(f"#picture[alt={json.dumps(prompt)}]").wait_for()
        page.wait_for_timeout(SETTLED_MS)
    return page


def type_in(page: Page, prompt: str) -> None:
    """Type as a person does, so that latency and pace are those of typing."""
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially(prompt, delay=60)
    page.locator(f"#picture[alt={json.dumps(prompt)}]").wait_for()
    page.wait_for_timeout(SETTLED_MS)


def draw_apple(page: Page) -> None:
    """A child's apple on the board, and the model's beside it."""
    page.locator("#prompt").fill("red apple, 3d")
    page.locator("#prompt").press("Escape")
    page.keyboard.press("d")
    for colour, brush, places in (
        ("Red", "Broad", [spot(r, turn) for r in (0.29, 0.2, 0.1) for turn in range(25)]),
        ("Brown", "Fine", [(0.5, 0.27), (0.48, 0.12)]),
        ("Green", "Broad", [(0.4, 0.2), (0.27, 0.14)]),
    ):
        page.locator(f"label[title={colour}]").click()
        page.locator(f"label[title={brush}]").click()
        stroke(page, places)
    page.wait_for_timeout(SETTLED_MS)


def spot(radius: float, turn: int) -> tuple[float, float]:
    """A place on a circle about the board's middle, in steps of 15 degrees."""
    angle = math.radians(15 * turn)
    return 0.5 + radius * math.cos(angle), 0.57 + radius * math.sin(angle)


def stroke(page: Page, places: list[tuple[float, float]]) -> None:
    """Draw through places, as shares of the board."""
    box = page.locator("#board").bounding_box()
    assert box is not None
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def keep(page: Page, out: Path) -> None:
    """Write what the page shows as WebP."""
    Image.open(io.BytesIO(page.screenshot())).save(out, quality=88, method=6)
    size_bytes = out.stat().st_size
    print(f"{out}: {size_bytes} bytes")
    if size_bytes > MAX_SIZE_BYTES:
        raise SystemExit(f"{out} is larger than {MAX_SIZE_BYTES} bytes")


def main() -> None:
    """Read the command line and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--prompt", default="rocket, 3d")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    take(args.url, args.prompt, args.seed, args.out)


if __name__ == "__main__":
    main()
