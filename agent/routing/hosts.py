"""Which virtual host an authority belongs to.

Rule (Envoy RouteMatcher::findVirtualHost): exact name, then the longest `*suffix`, then the longest `prefix*`, then
`*`; without regard to case; a wildcard stands for at least one character. Dictionary lookups, never a scan over names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_REMEMBERED: Final = 1024


class HostIndex(Generic[T]):
    """Domains to what they stand for. Authorities that were looked up are remembered, up to a bound."""

    __slots__ = ("_default", "_exact", "_ignore_port", "_only_default", "_prefixes", "_seen", "_suffixes")

    def __init__(self, domains: Iterable[tuple[str, T]], ignore_port: bool = False) -> None:
        """Raises ValueError for a domain that is named twice."""
        self._default: T | None = None
        self._exact: dict[bytes, T] = {}
        suffixes: dict[int, dict[bytes, T]] = {}
        prefixes: dict[int, dict[bytes, T]] = {}
        self._ignore_port = ignore_port
        seen: set[bytes] = set()
        for text, target in domains:
            domain = text.lower().encode()
            if domain in seen:
                raise ValueError(
                    "only a single wildcard domain is permitted"
                    if domain == b"*"
                    else f"duplicate entry of domain {text}"
                )
            seen.add(domain)
            if domain == b"*":
                self._default = target
            elif domain.startswith(b"*"):
                suffixes.setdefault(len(domain) - 1, {})[domain[1:]] = target
            elif domain.endswith(b"*"):
                prefixes.setdefault(len(domain) - 1, {})[domain[:-1]] = target
            else:
                self._exact[domain] = target
        self._suffixes = sorted(suffixes.items(), reverse=True)
        self._prefixes = sorted(prefixes.items(), reverse=True)
        self._only_default = not (self._exact or self._suffixes or self._prefixes)
        self._seen: dict[bytes, T | None] = {}

    @property
    def only_default(self) -> T | None:
        """The target of `*` where there is no other domain: then the authority need not be read at all."""
        return self._default if self._only_default else None

    def find(self, authority: bytes) -> T | None:
        """The target for a Host header's value; None where no domain takes it."""
        try:
            return self._seen[authority]
        except KeyError:
            pass
        found = self._search(authority)
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        if len(authority) <= 255:
            self._seen[authority] = found
        return found

    def _search(self, authority: bytes) -> T | None:
        if self._only_default:
            return self._default
        if not authority:
            return None
        host = authority.lower()
        if self._ignore_port:
            host = host[: port_start(host)]
        found = self._exact.get(host)
        if found is not None:
            return found
        for length, table in self._suffixes:
            if length < len(host) and (found := table.get(host[-length:])) is not None:
                return found
        for length, table in self._prefixes:
            if length < len(host) and (found := table.get(host[:length])) is not None:
                return found
        return self._default


def port_start(host: bytes) -> int:
    """Where `:port` begins in an authority, its length where there is none (Envoy HeaderUtility::getPortStart)."""
    colon = host.rfind(b":")
    return len(host) if colon < 0 or host.rfind(b"]") > colon else colon
