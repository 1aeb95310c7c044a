"""The one error that a user of a training meets."""

from __future__ import annotations


class ConfigError(ValueError):
    """A preset, field or value does not exist; the message names it and what is allowed."""
