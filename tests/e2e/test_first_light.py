"""The whole path by its commands: captioned pictures in, a student trained, a picture served.

The set is drawn by the project itself and the training is a few iterations long, so nothing is
said about what the pictures show: only that every room of the house hands on to the next.
"""

from __future__ import annotations

import io
import json
import subprocess
import sysconfig
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from service_process import running_service

COMMAND_LIMIT_S = 240


def _run(command: str, *arguments: object) -> str:
    """Run an installed command; its output, or a failure that shows what it wrote."""
    script = Path(sysconfig.get_path("scripts")) / command
    ran = subprocess.run(
        [str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
    )
    assert ran.returncode == 0, f"{command} {arguments[0]}:\n{ran.stderr[-2000:]}"
    return ran.stdout


@pytest.fixture(scope="module")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the commands alone made, from pictures to graphs."""
    folder = tmp_path_factory.mktemp("first-light")
    run, bundle = folder / "run", folder / "bundle"
    for command in ("data", "autoencoder", "teacher", "train", "export"):
        _run("onestep-distill", command, "--preset", "shapes_tiny", "--out", run)
    _run("onestep-engines", "export", run / "export", "--out", bundle)
    _run("onestep-engines", "check", bundle, "--torch", run / "export")
    return bundle


def test_a_student_trained_by_the_commands_is_served(trained_bundle: Path, tmp_path: Path) -> None:
    spec = json.loads((trained_bundle / "model.json").read_text())
    assert set(spec["stages"]) == {"text", "denoise", "decode"}
    pictures = []
    with running_service(trained_bundle, tmp_path) as service:
        for seed in (7, 7, 8):
            request = urllib.request.Request(
                f"{service.url}/v1/generate",
                data=json.dumps({"prompt": "a red circle", "seed": seed}).encode(),
                headers={"content-type": "application/json", "accept": "image/png"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                pictures.append(answer.read())
    assert list(Image.open(io.BytesIO(pictures[0])).size) == spec["sizes_px"][0]
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]
