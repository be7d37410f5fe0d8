"""One proxy's configuration before and after a change: what of it cannot be compiled or would be refused.

Rule: pure; the judge is the agent's own interpreter, and only what the change touches is decoded. What was refused
before for the same reason is no fault of the change: it is reported apart, so that two faults can be mended one after
the other.
Not for: choosing proxies (`kinds`), nor finding the document (`blame`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from google.protobuf.message import DecodeError

from agent.exchange.trial import decode
from agent.table.build import Refused
from istiod.compile import Cache, ProxyInfo, ProxyResources, compile_proxy
from istiod.compile.failure import routes_in
from istiod.compile.resources import completed, reads_key
from istiod.snapshot import Snapshot
from wire.xds import LISTENER, NAME_TABLE, ROUTE, EncodedResource, encode, route_names

Resources = Mapping[str, Mapping[str, EncodedResource]]
Interpreter = Callable[[Mapping[str, Mapping[str, bytes]]], tuple[object, Sequence[Refused]]]
"""What an agent takes of resources, and what it refuses."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One part that proxies would not take: `what` is the part (`Cluster[x].lb_policy`), `reason` why."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Findings:
    """`new` is due to the change, `old` was there before and stays; `touched` are the resources that differ."""

    new: tuple[Finding, ...] = ()
    old: tuple[Finding, ...] = ()
    touched: frozenset[tuple[str, str]] = frozenset()


def judge(
    before: Snapshot, after: Snapshot, proxy: ProxyInfo, cache: Cache, interpret: Interpreter = decode
) -> Findings:
    """What becomes of the change on one proxy; nothing when it cannot see it."""
    if _unseen(before, after, proxy):
        return Findings()
    had, made = compile_proxy(before, proxy, cache), compile_proxy(after, proxy, cache)
    known = {str(one) for one in had.failures}
    found = [
        Finding(one.what, f"cannot be compiled: {one.reason}")
        for one in made.failures
        if str(one) not in known
    ]
    touched = _touched(had, made)
    differing = frozenset((url, name) for url, of_type in touched.items() for name in of_type)
    refused = _refused(touched, made, interpret)
    if not refused:
        return Findings(tuple(found), touched=differing)
    names = {(url, name) for url, name, _ in refused}
    former = {
        url: {name: one for name, one in had.of(url).items() if (url, name) in names} for url in had.types
    }
    # By the reason alone: positions within a resource move when another part of it changes.
    already = {(url, name, one.reason) for url, name, one in _refused(former, had, interpret)}
    new = [one for url, name, one in refused if (url, name, one.reason) not in already]
    old = [one for url, name, one in refused if (url, name, one.reason) in already]
    return Findings((*found, *new), tuple(old), differing)


def _unseen(before: Snapshot, after: Snapshot, proxy: ProxyInfo) -> bool:
    try:
        return reads_key(before, completed(before, proxy)) == reads_key(after, completed(after, proxy))
    except Exception:
        return False  # the compile says what is wrong


def _touched(had: ProxyResources, made: ProxyResources) -> Resources:
    touched: dict[str, dict[str, EncodedResource]] = {}
    for url, found in made.types.items():
        if url == NAME_TABLE:
            continue
        of_type = touched[url] = {}
        for name, one in found.items():
            former = had.of(url).get(name)
            if former is None or former.version != one.version:
                of_type[name] = _new_hosts(one, former) if url == ROUTE and former is not None else one
    return touched


def _new_hosts(resource: EncodedResource, former: EncodedResource) -> EncodedResource:
    """A route configuration with the virtual hosts only that the former version did not have: of hundreds, one."""
    new, old = routes_in(resource), routes_in(former)
    known = {host.SerializeToString(deterministic=True) for host in old.virtual_hosts}
    changed = [host for host in new.virtual_hosts if host.SerializeToString(deterministic=True) not in known]
    del new.virtual_hosts[:]
    new.virtual_hosts.extend(changed)
    return encode(resource.name, new)


def _refused(
    touched: Resources, all_of: ProxyResources, interpret: Interpreter
) -> list[tuple[str, str, Finding]]:
    """What the agent would refuse of `touched`; routes are judged with the filters of their listeners."""
    bodies = {url: {name: one.body for name, one in found.items()} for url, found in touched.items()}
    routes = touched.get(ROUTE, {}).keys()
    if routes:
        listeners = bodies.setdefault(LISTENER, {})
        for name, one in all_of.of(LISTENER).items():
            if name not in listeners and not routes.isdisjoint(_routes_of(one)):
                listeners[name] = one.body
    _, refused = interpret(bodies)
    return [
        (one.type_url, one.name, Finding(one.path, one.reason))
        for one in refused
        if one.name in touched.get(one.type_url, {})
    ]


@lru_cache(maxsize=4096)
def _routes_of(listener: EncodedResource) -> frozenset[str]:
    try:
        return frozenset(route_names([listener]))
    except DecodeError:
        return frozenset()


def together(findings: Iterable[Findings]) -> Findings:
    """The findings on several proxies, each once."""
    new: dict[Finding, None] = {}
    old: dict[Finding, None] = {}
    touched: set[tuple[str, str]] = set()
    for one in findings:
        new.update(dict.fromkeys(one.new))
        old.update(dict.fromkeys(one.old))
        touched |= one.touched
    return Findings(tuple(new), tuple(old), frozenset(touched))
