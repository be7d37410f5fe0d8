"""Rows that cannot be read: skipped and reported, so that one of them costs nothing but itself.

Rule: a read of many rows never fails because of one; what was skipped is known until a later read finds the row
whole or gone. Not for a backend that is away or a file that is damaged as a whole (registry.errors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import TypeVar

from registry.errors import NotARegistryError
from registry.model import ResourceKey

__all__ = ["Damage", "Damaged"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Damaged:
    """One row. `area` is what it should be (instance, service, resource); `reason` names the row."""

    area: str
    reason: str
    key: ResourceKey | None = None
    """Of a resource, as far as the row's place says it."""

    def __str__(self) -> str:
        return f"damaged row of the registry, left out: {self.reason}"


class Damage:
    """The damaged rows that the last whole read of each area met; read and written from any thread."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Damaged, ...]] = {}

    def readable(
        self,
        area: str,
        reads: Iterable[Callable[[], T]],
        *,
        whole: bool = True,
        keys: Iterable[ResourceKey | None] | None = None,
    ) -> list[T]:
        """What `reads` return, without those that raise NotARegistryError. `whole`: these are all rows of the area."""
        good: list[T] = []
        bad: list[Damaged] = []
        for read, key in zip(reads, repeat(None) if keys is None else keys, strict=False):
            try:
                good.append(read())
            except NotARegistryError as error:
                bad.append(Damaged(area, str(error), key))
        if whole:
            self._found[area] = tuple(bad)
        return good

    def found(self) -> tuple[Damaged, ...]:
        """All that is known to be damaged."""
        return tuple(one for area in sorted(self._found) for one in self._found[area])
