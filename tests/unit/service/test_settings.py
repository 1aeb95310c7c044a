"""Settings come from ONESTEP_ names, refuse what they do not know and say which name it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import StartError
from service.settings import ENV_PREFIX, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(ENV_PREFIX + name.upper(), raising=False)


def test_environment_and_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESTEP_PORT", "9001")
    monkeypatch.setenv("ONESTEP_MODEL", "some/where")
    assert load_settings().port == 9001
    assert load_settings().model == (Path("some/where"),)
    assert load_settings(port=9002, model=None).port == 9002


def test_a_wrong_value_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESTEP_MAX_BATCH_SIZE", "many")
    with pytest.raises(StartError, match="ONESTEP_MAX_BATCH_SIZE"):
        load_settings()


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESTEP_MAX_BATHC_SIZE", "8")
    with pytest.raises(StartError, match="ONESTEP_MAX_BATHC_SIZE"):
        load_settings()


def test_a_clients_key_in_the_same_shell_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESTEP_API_KEY", "os_abc.def")
    assert "os_abc" not in load_settings().model_dump_json()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]  # that it is refused is the point


def test_a_failed_check_is_allowed_by_choice_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load_settings(allow_failed_check=None).allow_failed_check
    assert load_settings(allow_failed_check=True).allow_failed_check
    monkeypatch.setenv("ONESTEP_ALLOW_FAILED_CHECK", "1")
    assert load_settings(allow_failed_check=None).allow_failed_check
