"""The service runs as a plain user installs it: the wheel and its base dependencies, no torch.

`make test` keeps a second environment for this, into which only the built wheel was installed.
Nothing is taken from the checkout but the bundled model.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from service_process import running_service

ANSWER_LIMIT_S = 60
FRAMEWORKS = ("torch", "onnx", "diffusers", "transformers", "tensorrt", "tensorrt_rtx")


@pytest.fixture(scope="module")
def base_scripts(repo_root: Path) -> Path:
    """Folder of the commands in the environment that holds the base installation."""
    scripts = repo_root / ".venv-base" / "bin"
    if not (scripts / "onestep").exists():
        pytest.skip("no base environment: run `make test`, or `make .venv-base/.wheel`")
    return scripts


@pytest.fixture(scope="module")
def base_service(
    base_scripts: Path, repo_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of a service that the base installation's own command started."""
    bundle = Path(os.environ.get("TEST_BUNDLE") or repo_root / "models" / "emoji")
    command = (str(base_scripts / "onestep"),)
    with running_service(bundle, tmp_path_factory.mktemp("base"), command=command) as service:
        yield service.url
        assert service.stop() == 0, service.stderr_path.read_text()


def _read(address: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(address, timeout=ANSWER_LIMIT_S) as answer:
        return answer.headers["content-type"], answer.read()


def test_the_base_installation_holds_no_framework(base_scripts: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.util as u\n"
        f"print([n for n in {FRAMEWORKS!r} if u.find_spec(n)], u.find_spec('service').origin)"
    )
    found = subprocess.run(
        [base_scripts / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("[] ")
    assert "site-packages" in found.stdout


def test_the_base_installation_draws_a_picture(base_service: str) -> None:
    model = json.loads(_read(f"{base_service}/v1/models")[1])["data"][0]
    prompt = next(iter(model["examples"]), "a red circle")
    request = urllib.request.Request(
        f"{base_service}/v1/generate",
        data=json.dumps({"prompt": prompt, "seed": 7}).encode(),
        headers={"content-type": "application/json", "accept": "image/png"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as answer:
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-onestep-seed"] == "7"
        picture = Image.open(io.BytesIO(answer.read()))
    assert list(picture.size) in model["sizes"]
    colours = picture.convert("RGB").getcolors(maxcolors=2**24)
    assert colours is not None and len(colours) > 16, "a flat surface is no picture"


def test_the_wheel_holds_the_whole_page(base_service: str) -> None:
    media_type, page = _read(f"{base_service}/")
    assert media_type.startswith("text/html")
    parts = re.findall(r'(?:src|href)="(/?playground/[^"]+)"', page.decode())
    assert any(part.endswith(".js") for part in parts)
    assert any(part.endswith(".css") for part in parts)
    for part in parts:
        assert _read(f"{base_service}/{part.lstrip('/')}")[1], part


@pytest.mark.parametrize(
    "arguments",
    [
        ("onestep-distill", "train", "--preset", "shapes_tiny"),
        ("onestep-engines", "export", "missing", "--out", "out"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_needs_more_names_the_extra(
    base_scripts: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ran = subprocess.run(
        [base_scripts / arguments[0], *arguments[1:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode not in (0, None)
    assert "Traceback" not in ran.stderr
    assert "onestep[distill]" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
