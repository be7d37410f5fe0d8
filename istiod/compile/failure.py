"""Parts of a proxy's configuration that cannot be made: what is served in their place.

Rule: one failing part costs that part only. A proxy keeps the last good version of it that it was given; a proxy
that never had one goes without. Nothing here raises.
Not for: finding out why a part fails (`istiod.compile`), nor for saying so (`istiod.xds`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from envoy.config.route.v3 import route_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from wire.xds import EncodedResource, encode

Content = Mapping[str, Mapping[str, EncodedResource]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A part that could not be made. `what` names it for people; `type_url` is empty when all types are missing.

    `names` are the resources that are missing with it, a leading `*` stands for any beginning; with
    `virtual_host` the resource itself is there, and that virtual host in it answers with an error.
    """

    type_url: str
    what: str
    reason: str
    names: tuple[str, ...]
    virtual_host: str = ""
    trace: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"

    @property
    def everything(self) -> bool:
        """Nothing at all could be made for this proxy."""
        return not self.type_url

    def covers(self, name: str) -> bool:
        """Whether a resource of the type is missing because of this."""
        return any(
            name.endswith(pattern[1:]) if pattern.startswith("*") else name == pattern
            for pattern in self.names
        )


class Failures:
    """Collects what fails while one proxy's resources are made."""

    def __init__(self) -> None:
        self._found: list[Failure] = []

    def guard(
        self, type_url: str, what: str, make: Callable[[], Iterable[EncodedResource]], *names: str
    ) -> list[EncodedResource]:
        """The resources of one part; none, and a note of it, when it cannot be made."""
        try:
            return list(make())
        except Exception as error:
            self.add(failure(type_url, what, error, names))
            return []

    def add(self, found: Failure) -> None:
        """Note a failure."""
        self._found.append(found)

    def all(self) -> tuple[Failure, ...]:
        """What failed, in the order in which it was tried."""
        return tuple(self._found)


def failure(
    type_url: str, what: str, error: Exception, names: Iterable[str], virtual_host: str = ""
) -> Failure:
    """An exception as a failure of a part."""
    text = " ".join(str(error).split()) or "no reason given"
    trace = "".join(traceback.format_exception(error, limit=-8))
    return Failure(type_url, what, f"{type(error).__name__}: {text}"[:500], tuple(names), virtual_host, trace)


def with_last_good(content: Content, failures: tuple[Failure, ...], before: Content) -> Content:
    """`content` with what failed taken from `before`, what the proxy was given the last time."""
    if not failures or not before:
        return content
    if any(one.everything for one in failures):
        return before
    merged = {type_url: dict(found) for type_url, found in content.items()}
    for one in failures:
        had, now = before.get(one.type_url, {}), merged.setdefault(one.type_url, {})
        if one.virtual_host:
            for name in one.names:
                if name in had and name in now:
                    now[name] = _with_virtual_host(now[name], had[name], one.virtual_host)
            continue
        now.update({name: kept for name, kept in had.items() if name not in now and one.covers(name)})
    return merged


def _with_virtual_host(resource: EncodedResource, before: EncodedResource, name: str) -> EncodedResource:
    """A route configuration with one virtual host as it was before."""
    new, old = routes_in(resource), routes_in(before)
    kept = next((host for host in old.virtual_hosts if host.name == name), None)
    for host in new.virtual_hosts:
        if kept is not None and host.name == name:
            domains = list(host.domains)
            host.CopyFrom(kept)
            host.domains[:] = domains
            return encode(resource.name, new)
    return resource


def routes_in(resource: EncodedResource) -> route_pb2.RouteConfiguration:
    """An encoded route configuration, decoded."""
    message = route_pb2.RouteConfiguration()
    AnyMessage.FromString(resource.body).Unpack(message)
    return message
