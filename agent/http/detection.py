"""Who the client is, where others stand between: X-Forwarded-For and Envoy's original_ip_detection extensions.

Rule: an address is taken from a header only as far as the configuration trusts those who wrote it; what is no address is
never one. Not for: what follows from it (intake).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, TypeAlias

from agent.http.request import LocalReply, RequestContext
from agent.table.listener import HeaderDetection, HttpManager, XffDetection


class Detected:
    """What the extensions found. `trusted`: it may also tell that the request is internal."""

    __slots__ = ("address", "append", "refused", "trusted")

    def __init__(
        self, address: str | None = None, trusted: bool = False, append: bool = False, refused: LocalReply | None = None
    ) -> None:  # fmt: skip
        self.address = address
        self.trusted = trusted
        self.append = append
        """The connection's own address is added to X-Forwarded-For."""
        self.refused = refused


Detect: TypeAlias = Callable[[RequestContext, "bytes | None"], Detected]


def compile_detection(manager: HttpManager) -> Detect | None:
    """original_ip_detection_extensions: the first that finds an address, or refuses, decides. None where there is none."""
    steps = [
        _by_forwarded(item) if isinstance(item, XffDetection) else _by_header(item)
        for item in manager.ip_detection
    ]
    if not steps:
        return None

    def detect(ctx: RequestContext, forwarded: bytes | None) -> Detected:
        found = NOTHING
        for step in steps:
            found = step(ctx, forwarded)
            if found.refused is not None or found.address is not None:
                break
        return found

    return detect


NOTHING: Final = Detected()


def _by_forwarded(config: XffDetection) -> Detect:
    hops, networks, append = config.hops, config.networks, not config.skip_append

    def detect(ctx: RequestContext, forwarded: bytes | None) -> Detected:
        if networks:
            if not is_internal(ctx.connection.remote[0], networks):
                return NOTHING
            told = _last_untrusted(forwarded or b"", networks)
            return Detected(told, False, append)
        told = None if forwarded is None else from_the_end(forwarded, hops)
        return Detected(told, forwarded is not None and b"," not in forwarded, append)

    return detect


def _by_header(config: HeaderDetection) -> Detect:
    name, trusted = config.name, config.trusted
    refused: LocalReply | None = None
    if config.reject_status:
        refused = LocalReply(config.reject_status, details="rejecting_because_detection_failed")

    def detect(ctx: RequestContext, forwarded: bytes | None) -> Detected:
        value = ctx.headers.get(name)
        told = None if value is None else _address(value.decode("ascii", "replace"))
        return Detected(told, trusted, False, refused if told is None else None)

    return detect


def _last_untrusted(forwarded: bytes, networks: tuple[IPv4Network | IPv6Network, ...]) -> str | None:
    """The last address that is none of the trusted proxies'."""
    for part in reversed(forwarded.split(b",")):
        told = _address(part.strip().decode("ascii", "replace"))
        if told is None or not is_internal(told, networks):
            return told
    return None


def is_internal(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    """Is the address in one of the networks? Envoy 1.40 takes no address for an internal one unless it is told so."""
    return bool(networks) and _is_internal(address, networks)


@lru_cache(maxsize=1024)
def _is_internal(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return any(ip in network for network in networks)


def from_the_end(forwarded: bytes, skip: int) -> str | None:
    """The address of X-Forwarded-For that `skip` trusted proxies stand behind; None where there is none."""
    parts = forwarded.split(b",")
    if skip >= len(parts):
        return None
    return _address(parts[-1 - skip].strip().decode("ascii", "replace"))


@lru_cache(maxsize=1024)
def _address(text: str) -> str | None:
    try:
        return str(ip_address(text))
    except ValueError:
        return None
