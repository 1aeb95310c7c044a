"""What test folders share: Ctrl-C as a terminal has it, the rule on skips, one tiny model.

A test may be skipped on a person's machine, where a browser or a package is missing. When CI is
set, everything is meant to be there, so a skip is a failure; otherwise a check could vanish
unnoticed. Tests marked `gpu` are the exception.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# A shell starts its background jobs with Ctrl-C ignored, and processes inherit that: tests that
# interrupt something would then be ignored, here and in what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_IS_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _IS_CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure when CI is set: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("gpu") is None:
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.fixture(autouse=True)
def ctrl_c_stays_as_it_was() -> Iterator[None]:
    """Whoever takes Ctrl-C over gives it back: a later test would hear of it the wrong way."""
    before = signal.getsignal(signal.SIGINT)
    yield
    after = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert after is before, f"the test leaves {after} behind for Ctrl-C"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout that the tests belong to."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights in the layout that export reads."""
    from engines_fixtures import write_tiny_torch_folder

    folder = tmp_path_factory.mktemp("model") / "torch"
    write_tiny_torch_folder(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(torch_folder: Path) -> Path:
    """The bundle of the tiny model. Shared: a test that alters it works on a copy."""
    from engines.export import export_bundle

    folder = torch_folder.parent / "bundle"
    export_bundle(torch_folder, folder)
    return folder
