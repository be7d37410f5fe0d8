"""What a client has refused of one type, and how the rest of a refused response reaches it all the same.

Rule: after a refusal it is known of every resource whether the client holds it, refuses it, or is in doubt. A client
that names what it refuses (one line each, `Cluster[reviews].lb_policy: reason`, as our agent does) holds everything
else of that response. Other clients say only that something is wrong, and may or may not use the rest (Envoy applies
the clusters and listeners that are right, xDS does not ask for it): what they were sent is sent again in halves, until
each refused resource stands alone. A refused version is not sent again until it changes, is asked for anew, or `retry`.
Sans-IO. Not for what a resource is, nor for messages (`delta`, `sotw`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from wire.xds.types import EncodedResource

UNKNOWN = ""
"""As a version: the client may hold any, or none."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version of a resource that the client does not use; its last good one stays in use there, if it has one."""

    version: str
    reason: str


class Refusals:
    """The refusals of one type on one stream. Invariant: a name is refused, in doubt, or neither."""

    __slots__ = ("_doubted", "_groups", "_type_name", "refused")

    def __init__(self, type_url: str) -> None:
        self._type_name = type_url.rpartition(".")[2]
        self.refused: dict[str, Refusal] = {}
        self._doubted: dict[str, str] = {}
        self._groups: list[tuple[str, ...]] = []

    def __bool__(self) -> bool:
        return bool(self.refused or self._doubted)

    @property
    def doubting(self) -> bool:
        """Whether some resources are still in doubt."""
        return bool(self._doubted)

    def note(self, sent: Mapping[str, str], reason: str, *, alone: bool) -> set[str]:
        """A response with these names and versions was refused. `alone`: it held nothing else.

        Returns the names of which it is not known what the client holds.
        """
        named = self._named(sent, reason)
        if not named and len(sent) == 1 and alone:
            named = dict.fromkeys(sent, reason)
        if named:
            for name, why in named.items():
                self.refused[name] = Refusal(sent[name], why)
            return set(named)
        self._doubted.update(sent)
        names = sorted(sent)
        half = (len(names) + 1) // 2
        self._groups[:0] = [group for group in (tuple(names[:half]), tuple(names[half:])) if group]
        return set(sent)

    def due(
        self, changed: Iterable[EncodedResource], asked: Collection[str]
    ) -> tuple[list[EncodedResource], bool]:
        """Which of `changed` to send now, and whether others wait for a later response of their own."""
        due: list[EncodedResource] = []
        doubted: dict[str, EncodedResource] = {}
        for resource in changed:
            name, version = resource.name, resource.version
            refusal = self.refused.get(name)
            if name in asked:
                due.append(resource)
            elif refusal is not None and refusal.version == version:
                continue
            elif self._doubted.get(name) == version:
                doubted[name] = resource
            else:
                due.append(resource)
        if due or not doubted:
            return due, bool(doubted)
        while self._groups:
            group = self._groups.pop(0)
            due = [doubted.pop(name) for name in group if name in doubted]
            if due:
                return due, bool(doubted)
        return list(doubted.values()), False

    def stand(self, name: str, version: str) -> bool:
        """Whether this version is refused."""
        refusal = self.refused.get(name)
        return refusal is not None and refusal.version == version

    def drop(self, name: str) -> None:
        """The resource is sent, or gone: what was known of it is over."""
        self.refused.pop(name, None)
        self._doubted.pop(name, None)

    def retry(self) -> None:
        """Have everything that is refused sent once more: the reason may be gone."""
        self.refused.clear()

    def _named(self, sent: Mapping[str, str], reason: str) -> dict[str, str]:
        """The resources that the reason names, each with its own lines."""
        found: dict[str, str] = {}
        for line in reason.splitlines():
            if not line.startswith(f"{self._type_name}["):
                continue
            start = len(self._type_name) + 1
            # Names hold brackets of their own ([2001:db8::1]_80): the longest that fits is meant.
            fitting = [name for name in sent if line.startswith(f"{name}]", start)]
            if fitting:
                name = max(fitting, key=len)
                found[name] = f"{found[name]}\n{line}" if name in found else line
        return found
