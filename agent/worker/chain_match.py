"""Which listener, inspectors and filter chain a connection gets (Envoy FilterChainManagerImpl).

Rule: one criterion after the other in Envoy's order, each keeping only the chains with the most specific value that
matches, without going back: destination port, destination prefix, server name, transport protocol, application
protocol, direct source, source type, source prefix, source port. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Generic, TypeVar

from agent.table.listener import ChainMatch, Listener

T = TypeVar("T")
_Ranges = tuple[IPv4Network | IPv6Network, ...]


@dataclass(slots=True)
class Seen:
    """What is known of a connection before its chain is chosen."""

    local: tuple[str, int]
    remote: tuple[str, int]
    server_name: str = ""
    transport: str = "raw_buffer"
    """`tls` or `raw_buffer`."""
    protocols: tuple[str, ...] = ()
    """Offered by ALPN, or found by the HTTP inspector."""
    direct: tuple[str, int] | None = None
    """The peer itself, where `remote` was told by the PROXY protocol."""


class ChainIndex(Generic[T]):
    """The chains of a listener with what they stand for; `find` is asked once per connection."""

    def __init__(self, chains: Sequence[tuple[ChainMatch, T]], default: T | None) -> None:
        self._chains = list(chains)
        self._default = default
        self._only = chains[0][1] if len(chains) == 1 and chains[0][0] == ChainMatch() else None

    def find(self, seen: Seen) -> T | None:
        """The chain of a connection; None: close it."""
        if self._only is not None:
            return self._only
        left = self._chains
        local = parse(seen.local[0])
        remote = parse(seen.remote[0])
        left = _exact(left, lambda match: match.destination_port, seen.local[1])
        left = _prefix(left, lambda match: match.prefix_ranges, local)
        left = _server_name(left, seen.server_name)
        left = _one_of(
            left,
            lambda match: (match.transport_protocol,) if match.transport_protocol else (),
            (seen.transport,),
        )
        left = _one_of(left, lambda match: match.application_protocols, seen.protocols)
        direct = remote if seen.direct is None else parse(seen.direct[0])
        left = _prefix(left, lambda match: match.direct_source_ranges, direct)
        left = _source_type(left, seen, remote)
        left = _prefix(left, lambda match: match.source_ranges, remote)
        left = _one_of(left, lambda match: match.source_ports, (seen.remote[1],))
        return left[0][1] if left else self._default

    def needs_server_name(self) -> bool:
        """Does any chain ask for what only a ClientHello tells?"""
        return any(
            match.server_names or match.transport_protocol or match.application_protocols
            for match, _ in self._chains
        )


def owner(by_address: Mapping[tuple[str, int], T], address: tuple[str, int]) -> T | None:
    """Who takes a connection to an original destination: its address, else the wildcard with its port; None: nobody
    (Envoy ConnectionHandlerImpl). An IPv4 wildcard also takes IPv6 where there is no other.
    """
    found = by_address.get(address)
    if found is None and ":" in address[0]:
        found = by_address.get(("::", address[1]))
    return found if found is not None else by_address.get(("0.0.0.0", address[1]))  # noqa: S104 - a key


def inspected(listener: Listener, port: int) -> tuple[bool, bool]:
    """Whether the TLS and the HTTP inspector look at connections to a port (ListenerFilter.filter_disabled).

    Where they are off, the server may speak first: nobody waits for the client's bytes.
    """
    off = {
        kind
        for kind, ranges in listener.inspector_exceptions
        if any(start <= port < end for start, end in ranges)
    }
    return (
        listener.tls_inspector and "TlsInspector" not in off,
        listener.http_inspector and "HttpInspector" not in off,
    )


@lru_cache(maxsize=4096)
def parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address, None for a Unix socket's path."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _exact(
    chains: list[tuple[ChainMatch, T]], value_of: Callable[[ChainMatch], int | None], value: int
) -> list[tuple[ChainMatch, T]]:
    found = [chain for chain in chains if value_of(chain[0]) == value]
    return found or [chain for chain in chains if value_of(chain[0]) is None]


def _one_of(
    chains: list[tuple[ChainMatch, T]],
    values_of: Callable[[ChainMatch], Sequence[object]],
    values: Sequence[object],
) -> list[tuple[ChainMatch, T]]:
    for value in values:
        found = [chain for chain in chains if value in values_of(chain[0])]
        if found:
            return found
    return [chain for chain in chains if not values_of(chain[0])]


def _prefix(
    chains: list[tuple[ChainMatch, T]],
    ranges_of: Callable[[ChainMatch], _Ranges],
    address: IPv4Address | IPv6Address | None,
) -> list[tuple[ChainMatch, T]]:
    best = -1
    found: list[tuple[ChainMatch, T]] = []
    for chain in chains:
        for network in ranges_of(chain[0]):
            if address is None or address.version != network.version or address not in network:
                continue
            if network.prefixlen > best:
                best = network.prefixlen
                found = [chain]
            elif network.prefixlen == best and chain not in found:
                found.append(chain)
    return found or [chain for chain in chains if not ranges_of(chain[0])]


def _server_name(chains: list[tuple[ChainMatch, T]], name: str) -> list[tuple[ChainMatch, T]]:
    """The name itself, then its wildcards from the longest to the shortest."""
    wanted = [name] if name else []
    rest = name
    while "." in rest:
        rest = rest.partition(".")[2]
        wanted.append("*." + rest)
    return _one_of(chains, lambda match: match.server_names, wanted)


def _source_type(
    chains: list[tuple[ChainMatch, T]], seen: Seen, remote: IPv4Address | IPv6Address | None
) -> list[tuple[ChainMatch, T]]:
    here = remote is None or remote.is_loopback or seen.remote[0] == seen.local[0]
    kind = "same_ip_or_loopback" if here else "external"
    found = [chain for chain in chains if chain[0].source_type == kind]
    return found or [chain for chain in chains if chain[0].source_type == "any"]
