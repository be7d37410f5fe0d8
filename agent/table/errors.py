"""The one error of the table: a configuration that cannot be used, and where it says so."""

from __future__ import annotations


class ConfigError(ValueError):
    """`path` is the field's way from the top, e.g. `static_resources.listeners[0].name`; `reason` is for people."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason
