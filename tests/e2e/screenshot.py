"""Take the README's picture of the page from a running service.

    make run                                                  # in one terminal
    python -m tests.e2e.screenshot --prompt "octopus, 3d"     # in another

Owns the size, the light and the place of docs/images/playground.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from urllib.parse import urlencode

from tests.e2e.chromium import find_chromium, launched

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "playground.png"
MAX_SIZE_BYTES = 300_000


def take(url: str, prompt: str, seed: int, scheme: str, out: Path) -> None:
    """Open the page at `url` with a prompt in its address and photograph it."""
    executable_path = find_chromium()
    if executable_path is None:
        raise SystemExit("no chromium found: apt-get install chromium")
    with launched(executable_path) as browser:
        page = browser.new_page(
            viewport={"width": 1280, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
        )
        page.goto(f"{url}/#{urlencode({'prompt': prompt, 'seed': seed})}")
        page.locator(f"#picture[alt={json.dumps(prompt)}]").wait_for()
        # The first answer carries the page's own start; the next shows the latency of a warm page.
        page.locator("#prompt").press("Enter")
        page.wait_for_timeout(1000)
        out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=out)
    size_bytes = out.stat().st_size
    print(f"{out}: {size_bytes} bytes")
    if size_bytes > MAX_SIZE_BYTES:
        raise SystemExit(f"{out} is larger than {MAX_SIZE_BYTES} bytes")


def main() -> None:
    """Read the command line and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--prompt", default="octopus, 3d")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    take(args.url, args.prompt, args.seed, args.scheme, args.out)


if __name__ == "__main__":
    main()
