"""One name to addresses: /etc/hosts, then the servers of resolv.conf, in the order and with the lifetime that they answer.

Rule: an answer without addresses (NXDOMAIN, no data) is an answer; LookupFailed is only what tells nothing about the name
(no answer in time, SERVFAIL), as in Envoy's c-ares. Not the C library's resolver: it sorts answers, hides how long they
hold, and takes a thread for each name.
Not for: when to ask (agent/worker/dns), the names that the agent serves (agent/host/dns).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

_SECONDS = 5.0
"""For one question, all servers and tries together."""


class LookupFailed(Exception):
    """Nothing is known of the name."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses in the order of the answer, and how long they hold (seconds; inf: nobody says)."""

    addresses: tuple[str, ...]
    ttl: float = inf


_NOTHING = Answer(())


class Lookup:
    """Asks for names. Reads its files again when they have changed."""

    def __init__(
        self, hosts: Path = Path("/etc/hosts"), resolv_conf: Path = Path("/etc/resolv.conf")
    ) -> None:
        self._hosts_file, self._resolv_conf = hosts, resolv_conf
        self._hosts: Mapping[str, tuple[str, ...]] = {}
        self._read: tuple[float, float] | None = None
        self._resolver = dns.asyncresolver.Resolver(configure=False)

    async def addresses(self, name: str, family: str, *, tcp: bool = False) -> Answer:
        """Addresses of a family (Envoy DnsLookupFamily, as the table has it). Raises LookupFailed."""
        self._read_files()
        literal = _literal(name)
        if literal is not None:
            return Answer((literal,))
        local = self._hosts.get(name.rstrip(".").lower())
        if local is not None:
            return Answer(_of_family(local, family))
        if family == "v4_only":
            return await self._ask(name, "A", tcp)
        if family == "v6_only":
            return await self._ask(name, "AAAA", tcp)
        if family == "all":
            return await self._both(name, tcp)
        first, second = ("A", "AAAA") if family == "v4_preferred" else ("AAAA", "A")
        try:
            found = await self._ask(name, first, tcp)
        except LookupFailed:
            found = _NOTHING
        return found if found.addresses else await self._ask(name, second, tcp)

    async def _both(self, name: str, tcp: bool) -> Answer:
        answers: list[Answer] = []
        reason = ""
        for kind in ("AAAA", "A"):
            try:
                answers.append(await self._ask(name, kind, tcp))
            except LookupFailed as error:
                reason = str(error)
        if not answers:
            raise LookupFailed(reason)
        addresses = tuple(address for answer in answers for address in answer.addresses)
        return Answer(addresses, min(answer.ttl for answer in answers))

    async def _ask(self, name: str, kind: str, tcp: bool) -> Answer:
        try:
            answer = await self._resolver.resolve(
                name, kind, tcp=tcp, raise_on_no_answer=False, search=True, lifetime=_SECONDS
            )
        except dns.resolver.NXDOMAIN:
            return _NOTHING
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailed(str(error) or type(error).__name__) from error
        if answer.rrset is None:
            return _NOTHING
        addresses = tuple(str(item.address) for item in answer.rrset)
        return Answer(addresses, float(answer.chaining_result.minimum_ttl))

    def _read_files(self) -> None:
        now = (_changed(self._hosts_file), _changed(self._resolv_conf))
        if now == self._read:
            return
        self._read = now
        self._hosts = _hosts(self._hosts_file)
        resolver = dns.asyncresolver.Resolver(configure=False)
        try:
            resolver.read_resolv_conf(str(self._resolv_conf))
        except (dns.exception.DNSException, OSError):
            resolver.nameservers = ["127.0.0.1"]
        self._resolver = resolver


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return -1.0


def _hosts(path: Path) -> dict[str, tuple[str, ...]]:
    """hosts(5), and `localhost` where it is not in it (RFC 6761)."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.partition("#")[0].split()
        address = _literal(words[0]) if words else None
        if address is not None:
            for name in words[1:]:
                lower = name.rstrip(".").lower()
                if address not in found.get(lower, ()):
                    found[lower] = (*found.get(lower, ()), address)
    found.setdefault("localhost", ("127.0.0.1", "::1"))
    return found


def _literal(text: str) -> str | None:
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        return None


def _of_family(addresses: tuple[str, ...], family: str) -> tuple[str, ...]:
    v6 = tuple(address for address in addresses if ":" in address)
    v4 = tuple(address for address in addresses if ":" not in address)
    chosen = {"v4_only": v4, "v6_only": v6, "auto": v6 or v4, "v4_preferred": v4 or v6}
    return chosen.get(family, addresses)
