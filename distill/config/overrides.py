"""From a preset and `section.field=value` words to a checked dataclass, and to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from distill.config.errors import ConfigError
from engines.spec import ScheduleSpec

Config = TypeVar("Config")


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply `section.field=value` assignments; values are JSON, bare words are strings.

    Raises:
        ConfigError: an assignment is malformed, or names no field, or has a value of another kind.
    """
    plain = as_plain(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set takes section.field=value, got {assignment!r}")
        node: dict[str, Any] = plain
        *sections, last = path.split(".")
        for section in sections:
            if not isinstance(node.get(section), dict):
                raise ConfigError(f"--set {path}: no section {section!r}")
            node = node[section]
        if last not in node:
            raise ConfigError(f"--set {path}: no field {last!r}; fields: {', '.join(node)}")
        try:
            node[last] = json.loads(text)
        except json.JSONDecodeError:
            node[last] = text
    changed: Config = build(type(config), plain)
    return changed


def build(kind: Any, plain: Any) -> Any:
    """A dataclass from plain values, each checked against its annotation.

    Raises:
        ConfigError: a field is unknown or its value of another kind.
    """
    return _build_at(kind, plain, "")


def as_plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists: what JSON can hold."""
    if isinstance(value, ScheduleSpec):
        return value.model_dump()
    if dataclasses.is_dataclass(value):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [as_plain(item) for item in value]
    return value


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots."""
    fields: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def _build_at(kind: Any, plain: Any, where: str) -> Any:
    if kind is ScheduleSpec:
        try:
            return ScheduleSpec.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, (where[:-1], *first["loc"])))
            raise ConfigError(f"{field}: {first['msg']}, got {first['input']!r}") from error
    if dataclasses.is_dataclass(kind):
        if not isinstance(plain, dict):
            raise ConfigError(f"{where[:-1]} is a section, set one of its fields; got {plain!r}")
        hints = get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        for key in plain:
            if key not in names:
                raise ConfigError(f"unknown field {where}{key}; fields: {', '.join(names)}")
        for entry in dataclasses.fields(kind):
            is_needed = entry.default is entry.default_factory is dataclasses.MISSING
            if is_needed and entry.name not in plain:
                raise ConfigError(f"{where}{entry.name} is missing")
        return kind(**{k: _build_at(hints[k], v, f"{where}{k}.") for k, v in plain.items()})  # type: ignore[operator]  # a dataclass type is callable
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(plain, list):
            raise ConfigError(f"{where[:-1]} must be a list, got {plain!r}")
        if Ellipsis not in get_args(kind) and len(plain) != len(get_args(kind)):
            raise ConfigError(f"{where[:-1]} must have {len(get_args(kind))} entries, got {plain}")
        return tuple(_build_at(item, entry, where) for entry in plain)
    if get_origin(kind) is Literal:
        if plain not in get_args(kind):
            raise ConfigError(f"{where[:-1]} must be one of {get_args(kind)}, got {plain!r}")
        return plain
    return _scalar(kind, plain, where)


def _scalar(kind: Any, plain: Any, where: str) -> Any:
    allowed = get_args(kind) or (kind,)
    if float in allowed and type(plain) is int:
        return float(plain)
    if type(plain) not in allowed:
        names = " or ".join(getattr(a, "__name__", str(a)) for a in allowed)
        raise ConfigError(f"{where[:-1]} must be {names}, got {plain!r}")
    return plain
