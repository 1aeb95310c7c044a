"""The examples of docs/realtime.md do what the page says, as they stand but for the address."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.e2e


def example(repo_root: Path, language: str, service_url: str) -> str:
    text = (repo_root / "docs" / "realtime.md").read_text()
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert "ws://127.0.0.1:8000/" in block
    return str(block).replace("ws://127.0.0.1:8000/", service_url.replace("http", "ws") + "/")


def test_the_python_example_draws(repo_root: Path, tmp_path: Path, service_url: str) -> None:
    program = example(repo_root, "python", service_url)
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) > 2
    assert re.fullmatch(r"rocket \d+\.\d+ ms", lines[-1])
    with Image.open(tmp_path / "rocket.png") as picture:
        assert picture.format == "PNG"


def test_the_browser_example_draws(repo_root: Path, browser: Browser, service_url: str) -> None:
    page = browser.new_page()
    # Of the service's own origin: others have to be listed.
    page.goto(f"{service_url}/livez")
    page.set_content("<img>")
    page.evaluate(f"() => {{ {example(repo_root, 'js', service_url)} }}")
    picture = page.locator("img")
    expect(picture).to_have_attribute("alt", re.compile(r"picture 1, \d+(\.\d+)? ms"))
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 0
    page.close()
