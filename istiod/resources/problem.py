"""Problems of a resource: an error, a refusal or a warning, each with the path of the field it is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a problem means for `apply`."""

    ERROR = "error"
    """The document is wrong; it is not stored."""
    REFUSAL = "refusal"
    """The document is right, this version cannot put it into effect; it is not stored."""
    WARNING = "warning"
    """The document is stored; the named part of it has no effect."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `path` is like `spec.http[0].route[1].weight`; `where` names file and line."""

    severity: Severity
    path: str
    message: str
    where: str = ""
    subject: str = ""
    """`VirtualService default/reviews`, as far as known."""

    def __str__(self) -> str:
        parts = [part for part in (self.where, self.subject, self.path) if part]
        return f"{': '.join(parts)}: {self.message}" if parts else self.message
