"""What a run's configuration changes against a preset.

Owns the comparison of plain values; fields that only one of the two knows are told as such.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.config import ConfigError
from distill.config.overrides import as_plain
from distill.evaluation.tables import Table
from distill.presets import PRESETS, preset

_STAGES = ("student", "teacher", "autoencoder")
_ABSENT = "–"
_MAX_CHARS = 60


def saved_config(run_folder: Path) -> dict[str, Any]:
    """The plain config.json of the run's last stage; {} where no stage has begun.

    Raises:
        ConfigError: it is damaged.
    """
    for stage in _STAGES:
        path = run_folder / stage / "config.json"
        if path.is_file():
            try:
                plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return plain
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path} is damaged ({error})") from error
    return {}


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by their full names, as --set takes them."""
    fields: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def changed_fields(
    config: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Fields whose values differ: (theirs, ours) as text."""
    ours, theirs = flat(config), flat(other)
    return {
        name: (_text(theirs, name), _text(ours, name))
        for name in [*ours, *(n for n in theirs if n not in ours)]
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    }


def nearest_preset(config: Mapping[str, Any]) -> str:
    """The preset from which the fewest fields differ."""
    return min(PRESETS, key=lambda name: (len(changed_fields(config, _preset(name))), name))


def difference_table(config: Mapping[str, Any], preset_name: str) -> Table:
    """What differs from a preset, one field per row."""
    changed = changed_fields(config, _preset(preset_name))
    rows = tuple((name, theirs, ours) for name, (theirs, ours) in changed.items())
    words = "nothing" if not rows else f"{len(rows)} fields"
    return Table(
        f"Configuration: {words} beside the preset {preset_name} as it is now",
        ("field", preset_name, "this run"),
        rows,
        is_words=True,
    )


def _preset(name: str) -> dict[str, Any]:
    plain: dict[str, Any] = as_plain(preset(name))
    return plain


def _text(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        return _ABSENT
    text = json.dumps(fields[name], ensure_ascii=False)
    if len(text) <= _MAX_CHARS:
        return text
    value = fields[name]
    count = f" ({len(value)} entries)" if isinstance(value, list) else ""
    return f"{text[: _MAX_CHARS - 15]}…{count}"
