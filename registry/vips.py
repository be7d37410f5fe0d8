"""Which virtual addresses a name may get: Istio's automatic ranges, 240.240.0.0/16 and 2001:2::/48.

Rule: pure; the same name tries the same addresses in the same order, so that a name that was forgotten and
comes back mostly gets its old ones. The backend decides, with compare-and-set, which of them is free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from registry.model import VirtualIps

__all__ = [
    "CAPACITY",
    "QUARANTINE_SECONDS",
    "RANGES",
    "all_virtual",
    "candidates",
    "is_virtual",
    "virtual_ips",
]

RANGES = ("240.240.0.0/16", "2001:2::/48")
"""Blocks of addresses that exist nowhere: only the proxies know what stands behind one."""
_NETWORKS = tuple(ip_network(block) for block in RANGES)

_V4 = int(IPv4Address("240.240.0.0"))
_V6 = int(IPv6Address("2001:2::f0f0:0"))
_HOSTS = 254  # of a /24: Istio leaves .0 and .255 out, which some stacks treat as special
CAPACITY = 256 * _HOSTS
"""How many names can have VIPs at one time."""
QUARANTINE_SECONDS = 86_400.0
"""How long a released address is kept from other names: applications remember what a name resolved to."""


def candidates(name: str) -> Iterator[int]:
    """Every slot (0 … CAPACITY - 1) once, beginning where `name` hashes to."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % CAPACITY
    yield from range(start, CAPACITY)
    yield from range(start)


def virtual_ips(slot: int) -> VirtualIps:
    """The addresses of a slot. Raises ValueError for a slot out of range."""
    if not 0 <= slot < CAPACITY:
        raise ValueError(f"VIP slot {slot} is not within 0 … {CAPACITY - 1}")
    offset = slot // _HOSTS * 256 + slot % _HOSTS + 1
    return VirtualIps(str(IPv4Address(_V4 + offset)), str(IPv6Address(_V6 + offset)))


@lru_cache(maxsize=1 << 16)
def is_virtual(address: str) -> bool:
    """Whether an address (not a block) is one of those that exist nowhere."""
    return "/" not in address and any(ip_address(address) in network for network in _NETWORKS)


def all_virtual(addresses: tuple[str, ...]) -> bool:
    """Whether a service has addresses, and only such."""
    return bool(addresses) and all(map(is_virtual, addresses))
