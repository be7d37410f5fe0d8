"""Where calls go, and with which share: the destinations of a VirtualService's rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from istiod.resources.names import domain_problem, label_problem
from istiod.resources.schema import Int32, NonEmpty, Percent100, PortNumber, Spec, Str

_SMALLEST_PERCENTAGE = 0.0001
"""Envoy counts fractions of a percent in ten-thousandths."""


class Percent(Spec):
    """A percentage with fraction, 0 to 100."""

    value: Percent100 = 0.0

    def rules(self) -> Iterator[tuple[str, str]]:
        if 0 < self.value < _SMALLEST_PERCENTAGE:
            yield "value", "must be 0 or at least 0.0001"


class PortSelector(Spec):
    """A port by number."""

    number: PortNumber


class Destination(Spec):
    """A service, perhaps one subset or port of it."""

    host: NonEmpty
    subset: Str = ""
    port: PortSelector | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.host == "*":
            yield "host", "must not be the wildcard *"
        elif problem := domain_problem(self.host, wildcard=True):
            yield "host", problem
        if self.subset and (problem := label_problem(self.subset)):
            yield "subset", problem


class _Weighted(Protocol):
    @property
    def weight(self) -> int: ...


def weight_problems(routes: Sequence[_Weighted], path: str) -> Iterator[tuple[str, str]]:
    """Istio: with more than one destination the weights must not add up to zero. Large ones are scaled in compiling."""
    if len(routes) > 1 and sum(route.weight for route in routes) == 0:
        yield path, "the sum of the weights must not be zero"


class TcpDestination(Spec):
    """One weighted destination of a TCP or TLS route."""

    destination: Destination
    weight: Int32 = 0

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.weight < 0:
            yield "weight", "must not be negative"
