"""The filter chains of one listener, no two of which match the same connection.

Rule: a listener with two equal matches is refused as a whole by Envoy, so whoever comes first keeps a match: add the
older document's chains first. A chain of which a part is taken keeps the rest.
Not for: which chains a listener needs (outbound.py, inbound.py), nor for saying who lost (istiod/conflicts.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from itertools import product
from typing import TypeAlias

from envoy.config.listener.v3 import listener_components_pb2, listener_pb2

from istiod.scope import server_names

Chain: TypeAlias = listener_components_pb2.FilterChain
Match: TypeAlias = listener_components_pb2.FilterChainMatch
Place: TypeAlias = tuple[str, str]
"""An address block and a server name, "" for any."""


class Chains:
    """Fills a listener's `filter_chains`. Invariant: no two of them have a combination of conditions in common."""

    def __init__(self, listener: listener_pb2.Listener) -> None:
        self._listener = listener
        self._taken: set[tuple[object, ...]] = set()

    def add(self, chain: Chain) -> bool:
        """Add what no earlier chain matches. False: nothing of it is left."""
        match = chain.filter_chain_match
        names = server_names(match.server_names)
        if match.server_names and names is None:
            return False
        blocks = dict.fromkeys(
            _block(one.address_prefix, one.prefix_len.value) for one in match.prefix_ranges
        )
        places = list(product(blocks or ("",), names or ("",)))
        port = match.destination_port.value if match.HasField("destination_port") else 0
        ends = [
            (port, match.transport_protocol, protocol) for protocol in match.application_protocols or ("",)
        ]
        free = [place for place in places if not any((*place, *end) in self._taken for end in ends)]
        if not free:
            return False
        self._taken.update((*place, *end) for place in free for end in ends)
        if len(free) == len(places):
            self._append(chain, list(blocks), list(names or ()))
        else:
            for block, name in free:
                self._append(chain, [block] if block else [], [name] if name else [])
        return True

    def extend(self, chains: Iterable[Chain]) -> None:
        """Add each."""
        for chain in chains:
            self.add(chain)

    def _append(self, chain: Chain, blocks: list[str], names: list[str]) -> None:
        added = self._listener.filter_chains.add()
        added.CopyFrom(chain)
        match = added.filter_chain_match
        del match.prefix_ranges[:], match.server_names[:]
        match.server_names.extend(names)
        for block in blocks:
            address, _, length = block.partition("/")
            match.prefix_ranges.add(address_prefix=address).prefix_len.value = int(length)
        if match == Match():
            added.ClearField("filter_chain_match")


def _block(address: str, length: int) -> str:
    return str(ip_network(f"{address}/{length}", strict=False))
