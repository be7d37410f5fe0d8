"""What a registry may answer instead of doing what it was asked: one typed error for each reason.

Rule: a backend turns its own library's exceptions into these, with a message that an operator can act on;
callers never see sqlite3 or httpx errors. Not for mistakes in resources (see istiod.resources).
"""

from __future__ import annotations

__all__ = [
    "ConflictError",
    "HeldError",
    "NotARegistryError",
    "RegistryDeniedError",
    "RegistryError",
    "RegistryUnavailableError",
    "SchemaTooNewError",
    "TooManyWritesError",
]


class RegistryError(Exception):
    """The root of everything a registry raises."""


class RegistryUnavailableError(RegistryError):
    """The backend cannot be reached now; nothing is known about the call's effect; trying later may work."""


class RegistryDeniedError(RegistryError):
    """The backend answers, but our credential may not do this."""


class ConflictError(RegistryError):
    """Somebody else changed the thing first: the expected version is not the stored one.

    `what` names the thing, `expected` and `actual` are versions ("" for: does not exist).
    """

    def __init__(self, what: str, expected: str, actual: str) -> None:
        self.what = what
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"{what} was changed meanwhile: expected {_spoken(expected)}, found {_spoken(actual)}"
        )


class HeldError(RegistryError):
    """The instance's id is claimed by another identity or address (Instance.holder)."""


class NotARegistryError(RegistryError):
    """The file or the stored document is not something that hostmesh wrote, or it is damaged."""


class SchemaTooNewError(RegistryError):
    """The registry was written by a newer hostmesh, whose format this one does not know."""


class TooManyWritesError(RegistryError):
    """More resources at once than the backend can store all or nothing."""


def _spoken(version: str) -> str:
    return f"version {version}" if version else "nothing stored"
