"""The Dockerfile, its lock files and what the images start with."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from manifests.composed import image_faults, locked
from manifests.images import DOCKERFILE, stages
from manifests.objects import ROOT
from manifests.programs import program, run
from packaging.requirements import Requirement

TARGETS = ("api", "worker-cpu", "worker-gpu", "distill")
LOCKS = ROOT / "docker" / "locks"
# Extras and packages that are left out, for each lock.
LOCKED = {
    "api": ([], ["onnxruntime"]),
    "worker-cpu": ([], []),
    "worker-openvino": (["openvino"], []),
    "worker-gpu": (["tensorrt"], []),
    "distill": (["distill"], []),
}


def test_the_dockerfile_passes_its_linter(tmp_path: Path) -> None:
    linter = program("hadolint")
    ran = run(linter, DOCKERFILE)
    assert ran.returncode == 0, ran.stdout
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install onestep\n")
    assert "DL3006" in run(linter, tmp_path / "Dockerfile").stdout


def test_the_final_stages_are_small_and_unprivileged() -> None:
    assert list(image_faults(DOCKERFILE.read_text(), TARGETS)) == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("USER 10001:10001", "USER root", "runs as root"),
        ("USER 10001:10001", "", "runs as root"),
        ("@sha256:", "@", "is not pinned"),
        ("WORKDIR /app", "WORKDIR /app\nADD https://example.com/x /x", "ADD"),
        ("WORKDIR /app", "WORKDIR /app\nRUN apt-get install gcc", "installs in the final stage"),
        ('CMD ["onestep", "api"]', "COPY models models", "its user owns"),
        ("python -m pip uninstall", "true", "keeps pip"),
        ("HEALTHCHECK", "LABEL", "no health check"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(before: str, after: str, fault: str) -> None:
    text = DOCKERFILE.read_text()
    assert before in text
    assert any(fault in line for line in image_faults(text.replace(before, after), TARGETS))


def test_make_builds_the_final_stages(repo_root: Path) -> None:
    shown = run("make", "--no-print-directory", "-n", "images", cwd=repo_root)
    assert re.findall(r"--target (\S+)", shown.stdout) == list(TARGETS)
    assert set(TARGETS) <= set(stages(DOCKERFILE.read_text()))


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_holds_what_the_project_asks_for(name: str) -> None:
    extras, left_out = LOCKED[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    pins = locked(LOCKS / f"{name}.txt")
    for requirement in map(Requirement, lines):
        if requirement.name in left_out:
            assert requirement.name not in pins
        elif requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"}):
            version = pins.get(requirement.name)
            assert version and requirement.specifier.contains(version), (
                f"{requirement} is not in docker/locks/{name}.txt: make locks"
            )


def test_gpu_workers_have_the_torch_of_the_training() -> None:
    distill = locked(LOCKS / "distill.txt")["torch"]
    assert f"torch=={distill}" in (LOCKS / "worker-gpu.in").read_text()
    assert locked(LOCKS / "worker-gpu.txt")["torch"] == distill


def test_the_entry_point_makes_settings_of_secrets(tmp_path: Path) -> None:
    (tmp_path / "ONESTEP_REDIS_URL").write_text("redis://:a b$c@redis:6379/0\n")
    (tmp_path / "grafana_password").write_text("word\n")
    entry = ROOT / "docker" / "entrypoint.sh"
    variables = {"PATH": "/usr/bin:/bin", "SECRETS_FOLDER": str(tmp_path), "ONESTEP_REDIS_URL": "x"}
    shown = run(entry, "env", env=variables).stdout
    assert "ONESTEP_REDIS_URL=redis://:a b$c@redis:6379/0\n" in shown
    assert "grafana_password=" not in shown
    # A process of the image ends with the program's own status, and gets its signals.
    assert run(entry, "sh", "-c", "exit 7", env=variables).returncode == 7
    (tmp_path / "ONESTEP_KEYS").mkdir()
    refused = run(entry, "env", env=variables)
    assert refused.returncode != 0 and "ONESTEP_REDIS_URL" not in refused.stdout


def test_asking_for_health_says_why_not() -> None:
    asked = run(sys.executable, "-IS", ROOT / "docker" / "ask.py", "http://127.0.0.1:1/livez")
    assert asked.returncode == 1
    assert "http://127.0.0.1:1/livez" in asked.stdout and not asked.stderr
