"""What the tests of a running istiod look at: what a proxy holds and the API shows; and how hosts join."""

from __future__ import annotations

from typing import Any

import trio
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from tests.istiod.conftest import Istiod
from tests.istiod.proxies import Identity, Proxy, enrol
from wire.spiffe import SpiffeId
from wire.xds import ENDPOINT, ROUTE

REVIEWS = "outbound|9080||reviews.default.svc.cluster.local"


async def in_thread(call: Any, *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(call, *arguments)


async def joined(istiod: Istiod, *accounts: str) -> list[Identity]:
    """Identities default/ACCOUNT, one for each, by one join token."""
    options = [part for account in accounts for part in ("-s", account, "--service", f"{account}/reviews")]
    token = (await in_thread(istiod.ok, "token", "create", *options)).strip()
    address = istiod.address("xds")
    return [
        await enrol(address, token, SpiffeId("cluster.local", "default", account)) for account in accounts
    ]


async def workloads(istiod: Istiod) -> dict[str, dict[str, Any]]:
    items = (await in_thread(istiod.api, "/api/v1/workloads"))["items"]
    return {item["name"]: item for item in items}


async def eventually(condition: Any, seconds: float = 10.0) -> None:
    with trio.fail_after(seconds):
        while not await condition():
            await trio.sleep(0.05)


def endpoints(proxy: Proxy, cluster: str) -> dict[str, int]:
    """Address to health status (core.v3.HealthStatus) of a cluster's endpoints."""
    resource = proxy.client.held(ENDPOINT).get(cluster)
    if resource is None:
        return {}
    message = endpoint_pb2.ClusterLoadAssignment()
    AnyMessage.FromString(resource.body).Unpack(message)
    return {
        entry.endpoint.address.socket_address.address: entry.health_status
        for group in message.endpoints
        for entry in group.lb_endpoints
    }


def weights(proxy: Proxy) -> list[tuple[str, int]]:
    """The split of route 9080 for reviews, as (cluster, weight)."""
    resource = proxy.client.held(ROUTE).get("9080")
    if resource is None:
        return []
    message = route_pb2.RouteConfiguration()
    AnyMessage.FromString(resource.body).Unpack(message)
    for host in message.virtual_hosts:
        if host.name.startswith("reviews."):
            action = host.routes[0].route
            return [(one.name.split("|")[2], one.weight.value) for one in action.weighted_clusters.clusters]
    return []
