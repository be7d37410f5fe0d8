"""Load balancing by locality (`region/zone/subzone`). Validated in full; this version does not balance by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from istiod.resources.schema import Bool, NonEmpty, Spec, Str, UInt32, UInt64, empty

_TOPOLOGY = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone")
_WHOLE = 100


class Distribute(Spec):
    """Share of traffic by locality: of the callers in `from`, percentages to each of `to`."""

    from_: Str = ""
    to: dict[str, UInt32] = empty()

    def rules(self) -> Iterator[tuple[str, str]]:
        for locality, weight in self.to.items():
            if not 1 <= weight <= _WHOLE:
                yield f"to[{locality}]", "must be between 1 and 100"
        if sum(self.to.values()) != _WHOLE:
            yield "to", f"the shares must add up to 100, not {sum(self.to.values())}"
        yield from locality_problems("to", self.to)


class Failover(Spec):
    """Where a region's traffic goes when it is unhealthy."""

    from_: Str = ""
    to: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.from_ == self.to:
            yield "to", "must be another region than from"
        for path, region in (("from", self.from_), ("to", self.to)):
            if "/" in region:
                yield path, "must be a region alone, without zone"
            if "*" in region:
                yield path, "must not have a wildcard"


class LocalityLoadBalancer(Spec):
    """Locality load balancing; at most one of the three ways."""

    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[NonEmpty, ...] = ()
    enabled: Bool | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.distribute and (self.failover or self.failover_priority):
            yield "distribute", "may not be set together with failover or failoverPriority"
        yield from failover_problems(self.failover, self.failover_priority)
        yield from locality_problems("distribute", [one.from_ for one in self.distribute])


class ZoneAwareLoadBalancer(Spec):
    """Zone-aware routing."""

    enabled: Bool | None = None
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[NonEmpty, ...] = ()
    min_cluster_size: Annotated[UInt64 | None, Field(ge=1)] = None

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from failover_problems(self.failover, self.failover_priority)


def failover_problems(
    failover: tuple[Failover, ...], priorities: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """A failover between regions cannot be had together with priorities by region, zone or subzone."""
    for index, priority in enumerate(priorities):
        if failover and priority.partition("=")[0] in _TOPOLOGY:
            yield f"failoverPriority[{index}]", f"{priority!r} may not be set together with failover"


def locality_problems(path: str, localities: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Localities that are not `region[/zone[/subzone]]`, perhaps with `*` at the end, or that overlap."""
    whole: set[tuple[str, ...]] = set()
    wider: set[tuple[str, ...]] = set()
    for locality in localities:
        parts = tuple(locality.split("/", 2))
        if not all(parts):
            yield path, f"the locality {locality!r} has an empty region, zone or subzone"
        elif "*" in locality and (locality.count("*") > 1 or not locality.endswith("*")):
            yield path, f"the locality {locality!r} may have one wildcard, at its end"
        else:
            area = parts[:-1] if parts[-1] == "*" else parts
            prefixes = [area[:length] for length in range(len(area) + 1)]
            if area in wider or not whole.isdisjoint(prefixes):
                yield path, f"the locality {locality!r} overlaps with another one"
            whole.add(area)
            wider.update(prefixes)
