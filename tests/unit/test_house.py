"""The repository keeps its own promises: version, layout, documents, make targets."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

MAX_FILE_BYTES = 40 * 2**20
MAX_DECISION_LINES = 40
MAKE_TARGETS = (
    "help run test check format lint types imports bench bench-bundle load distill ablation "
    "vision-model export engines images locks dashboards clean"
).split()


def _tracked_files(repo_root: Path) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repo_root, capture_output=True, text=True
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [repo_root / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_the_installed_version_is_the_declared_one(repo_root: Path) -> None:
    declared = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["version"]
    assert importlib.metadata.version("onestep") == declared


def _imported_packages(path: Path) -> set[str]:
    """Top-level names that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_what_is_imported_is_declared(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for package in ("service", "engines", "distill"):
        for path in (repo_root / package).rglob("*.py"):
            for name in _imported_packages(path) - set(sys.stdlib_module_names):
                owners = {owner.lower().replace("_", "-") for owner in distributions.get(name, ())}
                if owners and "onestep" not in owners and not owners & declared:
                    undeclared.add(f"{path.relative_to(repo_root)}: {name}")
    assert not undeclared


def test_no_tracked_file_is_larger_than_a_bundle_may_be(repo_root: Path) -> None:
    sizes = {path: path.stat().st_size for path in _tracked_files(repo_root)}
    assert sizes
    assert not [str(path) for path, num_bytes in sizes.items() if num_bytes > MAX_FILE_BYTES]


def test_no_module_is_a_drawer_for_everything(repo_root: Path) -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert not [str(path) for path in _tracked_files(repo_root) if path.name in drawers]


def test_decisions_are_numbered_without_gaps_and_short(repo_root: Path) -> None:
    decisions = sorted((repo_root / "docs" / "adr").glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        lines = path.read_text().splitlines()
        assert len(lines) <= MAX_DECISION_LINES, path.name
        assert lines[0].startswith(f"# {int(path.name[:4])}. "), path.name


def test_every_relative_link_in_the_documents_leads_somewhere(repo_root: Path) -> None:
    documents = [path for path in _tracked_files(repo_root) if path.suffix == ".md"]
    assert documents
    broken = []
    for document in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            path = target.split("#")[0]
            if path and "://" not in path and not (document.parent / path).exists():
                broken.append(f"{document.name}: {target}")
    assert not broken


def test_make_help_lists_every_target(repo_root: Path) -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=repo_root, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == MAKE_TARGETS
    assert all(len(line.split()) > 1 for line in listed.stdout.splitlines())


def test_make_says_so_when_python_is_too_old(repo_root: Path, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit 0\nexit 1\n")
    old.chmod(0o755)
    asked = subprocess.run(
        ["make", "run", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert asked.returncode != 0
    assert "needs Python 3.11 or newer" in asked.stderr
    assert "Python 3.9.2" in asked.stderr
    assert "make run PYTHON=" in asked.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("is_ci", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        "import pytest\ndef test_a(): pytest.skip('no browser')\n",
        "import pytest\npytest.importorskip('a_package_that_is_missing')\n",
    ],
    ids=["test", "module"],
)
def test_a_skip_is_a_failure_in_ci_only(
    repo_root: Path, tmp_path: Path, body: str, is_ci: bool
) -> None:
    (tmp_path / "conftest.py").write_text((repo_root / "tests" / "conftest.py").read_text())
    (tmp_path / "test_skipped.py").write_text(
        body + "def test_b(): pass\n@pytest.mark.gpu\ndef test_c(): pytest.skip('no GPU')\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env={"CI": "true" if is_ci else "", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode not in (0, 5)) == is_ci, ran.stdout
