"""Load balancing of a DestinationRule: which instance a call goes to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from istiod.resources.schema import (
    Bool,
    Double,
    Duration,
    HeaderName,
    HeaderText,
    NonEmpty,
    Percent100,
    PositiveDuration,
    Spec,
    UInt64,
    exactly_one,
    repeated,
    unsupported,
)
from istiod.resources.traffic.locality import LocalityLoadBalancer, ZoneAwareLoadBalancer

MAX_RING = 8 * 1024 * 1024
"""Envoy's largest ring."""
MAGLEV_LIMIT = 5_000_011
"""Envoy's tables are smaller."""
RingSize = Annotated[UInt64, Field(le=MAX_RING)]


class CookieAttribute(Spec):
    """An attribute of the affinity cookie that Envoy makes."""

    name: HeaderName
    value: HeaderText = ""


class HttpCookie(Spec):
    """Hash by a cookie; with a ttl the proxy makes it where it is missing."""

    name: NonEmpty
    path: HeaderText = ""
    ttl: Duration | None = None
    attributes: tuple[CookieAttribute, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        for index in repeated(attribute.name.lower() for attribute in self.attributes):
            yield f"attributes[{index}].name", f"{self.attributes[index].name!r} is there twice"


class RingHash(Spec):
    """Ring (ketama) hashing."""

    minimum_ring_size: RingSize | None = None


class Maglev(Spec):
    """Maglev hashing. A worker builds a table of this size for every cluster, so that it is bounded."""

    table_size: UInt64 | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.table_size is None:
            return
        if self.table_size >= MAGLEV_LIMIT:
            yield "tableSize", f"must be less than {MAGLEV_LIMIT}"
        elif not _is_prime(self.table_size):
            yield "tableSize", "must be a prime number (65537 is Envoy's own)"


def _is_prime(number: int) -> bool:
    """For numbers below MAGLEV_LIMIT: at most 2,236 divisions."""
    if number < 4:
        return number > 1
    return number % 2 == 1 and all(number % factor for factor in range(3, int(number**0.5) + 1, 2))


class ConsistentHash(Spec):
    """Session affinity by one property of the request."""

    http_header_name: HeaderName | None = None
    http_cookie: HttpCookie | None = None
    use_source_ip: Bool | None = None
    http_query_parameter_name: NonEmpty | None = None
    ring_hash: RingHash | None = None
    maglev: Maglev | None = None
    minimum_ring_size: RingSize | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        keys = ("http_header_name", "http_cookie", "use_source_ip", "http_query_parameter_name")
        if len(exactly_one(self, keys)) != 1:
            yield (
                "",
                "exactly one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName must be set",
            )
        if self.ring_hash is not None and self.maglev is not None:
            yield "maglev", "may not be set together with ringHash"
        if self.minimum_ring_size and (self.ring_hash is not None or self.maglev is not None):
            yield "minimumRingSize", "may not be set together with ringHash or maglev"


class Warmup(Spec):
    """Slow start."""

    duration: PositiveDuration
    minimum_percent: Percent100 | None = None
    aggression: Annotated[Double, Field(ge=1)] | None = None


class LoadBalancer(Spec):
    """Which instance a call goes to."""

    simple: (
        Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None
    ) = None
    consistent_hash: ConsistentHash | None = None
    locality_lb_setting: LocalityLoadBalancer | None = None
    zone_aware_lb_setting: ZoneAwareLoadBalancer | None = unsupported()
    warmup_duration_secs: PositiveDuration | None = unsupported()
    warmup: Warmup | None = unsupported()

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.simple is not None and self.consistent_hash is not None:
            yield "consistentHash", "may not be set together with simple"
        if self.locality_lb_setting is not None and self.zone_aware_lb_setting is not None:
            yield "zoneAwareLbSetting", "may not be set together with localityLbSetting"

    def refusals(self) -> Iterator[tuple[str, str]]:
        setting = self.locality_lb_setting
        if setting is not None and setting.enabled is not False:
            yield (
                "localityLbSetting",
                "balancing by locality is not supported by this version; {enabled: false} is what it does",
            )
