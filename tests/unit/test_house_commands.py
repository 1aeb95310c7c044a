"""Every command answers, and serving loads no training framework."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

COMMANDS = ("onestep", "onestep-engines", "onestep-distill")
FRAMEWORKS = ("torch", "onnx", "diffusers", "transformers", "tensorrt", "tensorrt_rtx")


def _loaded_after(statement: str, watched: tuple[str, ...]) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sorted(set({watched!r}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_the_commands_are_those_the_package_declares(repo_root: Path) -> None:
    scripts = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["scripts"]
    assert tuple(scripts) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str) -> None:
    script = Path(sysconfig.get_path("scripts")) / command
    ran = subprocess.run([str(script), "--help"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.lower().startswith(f"usage: {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_what_it_does_not_know(command: str) -> None:
    script = Path(sysconfig.get_path("scripts")) / command
    ran = subprocess.run([str(script), "paint"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "paint" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_watch_on_loaded_modules_sees_one() -> None:
    assert _loaded_after("import json", ("json", "torch")) == {"json"}


@pytest.mark.parametrize(
    "module", ["service.__main__", "service.worker", "engines.pipeline", "engines.runtime.onnx"]
)
def test_serving_loads_no_training_framework(module: str) -> None:
    assert _loaded_after(f"import {module}", FRAMEWORKS) == set()


@pytest.mark.parametrize(
    "module", ["service.app", "service.routes", "service.brokers", "service.batching"]
)
def test_the_api_loads_no_engine(module: str) -> None:
    assert _loaded_after(f"import {module}", (*FRAMEWORKS, "onnxruntime", "engines")) == set()
