"""Copies of requests for other destinations (VirtualService `mirror`, `mirrors`), whose answers are thrown away.

Source: Istio HTTPRoute.mirror; Envoy RouteAction.request_mirror_policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from envoy.config.route.v3 import route_components_pb2 as route_pb2

from istiod.compile.route_filters import fraction
from istiod.resources.routing.destination import Destination, Percent
from istiod.resources.routing.http_route import HttpRoute


def mirror_policies(
    rule: HttpRoute, cluster_of: Callable[[Destination], str]
) -> Iterator[route_pb2.RouteAction.RequestMirrorPolicy]:
    """One policy for each destination that gets more than 0 %; without a percentage it gets all."""
    for destination, percentage in _mirrors(rule):
        share = fraction(percentage, None)
        if not share.numerator:
            continue
        policy = route_pb2.RouteAction.RequestMirrorPolicy(cluster=cluster_of(destination))
        policy.runtime_fraction.default_value.CopyFrom(share)
        policy.trace_sampled.value = False
        yield policy


def _mirrors(rule: HttpRoute) -> Iterator[tuple[Destination, Percent]]:
    everything = Percent(value=100.0)
    if rule.mirror is not None:
        old = None if rule.mirror_percent is None else Percent(value=float(rule.mirror_percent))
        yield rule.mirror, rule.mirror_percentage or old or everything
    for one in rule.mirrors:
        yield one.destination, one.percentage or everything
