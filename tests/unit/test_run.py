"""The two parts in which all tests run: what comes out of them together."""

from __future__ import annotations

from pathlib import Path

import pytest
import run


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0), 0),
        ((1, 0), 1),
        ((0, 1), 1),
        ((0, 5), 0),
        ((5, 0), 0),
        ((5, 1), 1),
        ((1, 5), 1),
        ((5, 5), 5),
        ((2,), 2),
        ((4,), 4),
        ((0, 2), 2),
    ],
)
def test_a_failure_of_either_part_is_one_of_both(
    codes: tuple[int, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(words: list[str]) -> int:
        asked.append(words)
        return codes[len(asked) - 1]

    monkeypatch.setattr(run, "_run", answer)
    assert run.main(["-x"]) == expected
    assert len(asked) == len(codes)
    assert all(words[-1] == "-x" for words in asked)


def test_every_folder_of_tests_is_in_one_part(repo_root: Path) -> None:
    tests = repo_root / "tests"
    folders = {
        f"tests/{path.relative_to(tests).parts[0]}"
        for path in tests.rglob("test_*.py")
        if path.relative_to(tests).parts[0] not in ("extra", "bench")
    }
    assert folders == {*run.SIDE_BY_SIDE, *run.ALONE}
    assert not set(run.SIDE_BY_SIDE) & set(run.ALONE)
