"""The Dockerfile's stages, and a build of one without a container engine.

Owns parsing and the walk: what a build would copy and run is copied and run below a folder, with
absolute paths led into it. What needs an engine's root (users, owners) is left out, and nothing
else. Knows neither layers nor caches.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from manifests.objects import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
# RUN steps of these programs are walked; of those only an engine can do the others.
WALKED = ("pip", "python")
ENGINE_ONLY = ("groupadd", "install", "mkdir", "chown")
STEP_S = 240


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, word: str) -> str | None:
        """What the last instruction of this name says."""
        return next((text for name, text in reversed(self.steps) if name == word), None)


def stages(text: str) -> dict[str, Stage]:
    """The stages by name, with build arguments at their defaults."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    found: dict[str, Stage] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, rest = line.strip().split(maxsplit=1)
        rest = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], m[0]), " ".join(rest.split()))
        if word == "ARG" and "=" in rest:
            name, value = rest.split("=", 1)
            arguments[name] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(name, base)
        elif word != "ARG":
            stage.steps.append((word, rest))
    return found


def chain(found: Mapping[str, Stage], name: str) -> list[Stage]:
    """The stage's ancestors and itself, oldest first."""
    stage = found[name]
    return [*(chain(found, stage.base) if stage.base in found else []), stage]


def build_context(folder: Path) -> Path:
    """What .dockerignore lets travel, in a folder of its own."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out first"
    excluded = shutil.ignore_patterns("__pycache__", "*.pyc", "engines.json", "*.plan")
    for rule in (rule[1:] for rule in rules if rule.startswith("!")):
        source, goal = ROOT / rule, folder / rule
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, goal, ignore=excluded, dirs_exist_ok=True)
        else:
            shutil.copy2(source, goal)
    return folder


@dataclass
class Image:
    """What a walk made of a stage."""

    root: Path
    folder: str = "/"
    variables: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def inside(self, path: str) -> Path:
        """Where a path of the image lies here."""
        return self.root / os.path.join(self.folder, path).lstrip("/")

    def environment(self, **more: str) -> dict[str, str]:
        """The image's variables, its own programs before this machine's."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("ONESTEP_", "PYTHON"))}
        own = self.variables | {"HOME": str(self.root / "tmp")}
        path = f"{self.root}/opt/onestep/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return plain | own | {"PATH": path} | more

    def arguments(self, line: list[str]) -> list[str]:
        """A command line of the image with its files where they are here."""
        return [str(self.inside(a)) if a.startswith(("/usr/local/", "/opt/")) else a for a in line]


class Walk:
    """Builds stages of the Dockerfile below a folder, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stages = stages(DOCKERFILE.read_text())
        self._built: dict[str, Image] = {}
        self._context = build_context(folder / "context")

    def build(self, name: str) -> Image:
        """The image of a stage."""
        if name in self._built:
            return self._built[name]
        stage = self._stages[name]
        image = Image(self._folder / name)
        if stage.base in self._stages:
            parent = self.build(stage.base)
            image = Image(
                image.root, parent.folder, dict(parent.variables), list(parent.entrypoint)
            )
            _link_tree(parent.root, image.root)
        for folder in ("tmp", "root"):
            (image.root / folder).mkdir(parents=True, exist_ok=True)
        for word, text in stage.steps:
            self._step(image, word, text)
        self._built[name] = image
        return image

    def _step(self, image: Image, word: str, text: str) -> None:
        if word == "WORKDIR":
            image.folder = text
            image.inside(".").mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            image.variables |= dict(pair.split("=", 1) for pair in text.split())
        elif word == "COPY":
            self._copy(image, text)
        elif word == "RUN":
            self._run(image, text)
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(text)
        elif word == "CMD":
            image.command = json.loads(text)
        elif word == "HEALTHCHECK" and "CMD" in text:
            image.health = json.loads(text.split("CMD", 1)[1])

    def _copy(self, image: Image, text: str) -> None:
        *words, goal = text.split()
        flags = dict(w[2:].split("=", 1) for w in words if w.startswith("--"))
        names = [w for w in words if not w.startswith("--")]
        source_root = self.build(flags["from"]).root if "from" in flags else self._context
        for name in names:
            source, target = source_root / name.lstrip("/"), image.inside(goal)
            if source.is_dir():
                _link_tree(source, target)
                _lead_here(target, source_root, image.root)
                continue
            target = target / source.name if goal.endswith("/") else target
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            if "chmod" in flags:
                target.chmod(int(flags["chmod"], 8))

    def _run(self, image: Image, text: str) -> None:
        command = " ".join(word for word in text.split() if not word.startswith("--mount="))
        program = command.split()[0]
        if program not in WALKED:
            assert program in ENGINE_ONLY, command
            image.left_out.append(command)
            return
        here = re.sub(r"(?<=\s)/(?=\w)", f"{image.root}/", command)
        ran = subprocess.run(
            ["/bin/sh", "-euc", here],
            cwd=image.inside("."),
            env=image.environment() | {"HOME": os.environ.get("HOME", "/")},
            capture_output=True,
            text=True,
            timeout=STEP_S,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"


def _lead_here(folder: Path, source_root: Path, root: Path) -> None:
    """Let programs name the interpreter of this image: in an engine both have one path."""
    for path in folder.glob("bin/*"):
        first = f"#!{source_root}/".encode()
        if path.is_symlink() or not path.read_bytes().startswith(first):
            continue
        text, mode = path.read_bytes(), path.stat().st_mode
        path.unlink()  # it is shared with the other stage
        path.write_bytes(text.replace(first, f"#!{root}/".encode(), 1))
        path.chmod(mode)


def _link_tree(source: Path, goal: Path) -> None:
    """As a copy, without its time and room: nothing is changed in place afterwards."""

    def link(one: str, other: str) -> None:
        Path(other).unlink(missing_ok=True)
        os.link(one, other, follow_symlinks=False)

    # What is there is replaced, as a build replaces it; copytree does so with files alone.
    for path in source.rglob("*"):
        if path.is_symlink():
            (goal / path.relative_to(source)).unlink(missing_ok=True)
    shutil.copytree(source, goal, symlinks=True, copy_function=link, dirs_exist_ok=True)
