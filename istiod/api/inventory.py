"""The admin API's view of the catalog: workloads and services.

Job: instances as their agents registered them, services with their addresses, and the bootstrap with which a
real Envoy takes a workload's place.
Rule: read from the current snapshot's facts, never from the backend; a long list does not hold up the event loop.
Not for: registering (agents do).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from istiod.api.envoy_bootstrap import SDS_SOCKET, bootstrap
from istiod.api.errors import not_found
from istiod.feed import Feed
from istiod.xds.status import ProxyTable
from registry.model import Health, Instance, Port, Service

_AT_ONCE = 250
"""Workloads between two turns of the event loop."""


class InventoryApi:
    """The handlers over the feed's latest facts."""

    def __init__(self, feed: Feed, table: ProxyTable, xds_address: str) -> None:
        self._feed = feed
        self._table = table
        self._xds_address = xds_address

    def routes(self) -> list[BaseRoute]:
        """Paths below /api/v1."""
        return [
            Route("/workloads", self.workloads, methods=["GET"]),
            Route("/workloads/{namespace}/{name}/envoy-bootstrap", self.envoy_bootstrap, methods=["GET"]),
            Route("/services", self.services, methods=["GET"]),
        ]

    async def workloads(self, request: Request) -> Response:
        """GET /workloads?namespace=NS."""
        namespace = request.query_params.get("namespace")
        found = [one for one in self._feed.instances if namespace in (None, one.namespace)]
        return await _answer([partial(self._workload, instance) for instance in found])

    async def services(self, request: Request) -> Response:
        """GET /services?namespace=NS."""
        namespace = request.query_params.get("namespace")
        found = [one for one in self._feed.services if namespace in (None, one.namespace)]
        members: dict[tuple[str, str], list[Instance]] = {}
        for one in self._feed.instances:
            members.setdefault((one.namespace, one.service), []).append(one)
        return await _answer(
            [partial(self._service, one, members.get((one.namespace, one.name), ())) for one in found]
        )

    async def envoy_bootstrap(self, request: Request) -> Response:
        """GET the bootstrap; ?identity=DIRECTORY of its certificate files, ?istiod=HOST:PORT,
        ?sds=PATH of the socket that serves its secrets."""
        key = f"{request.path_params['namespace']}/{request.path_params['name']}"
        instance = next((one for one in self._feed.instances if one.id == key), None)
        if instance is None:
            raise not_found(f"workload {key}")
        address = request.query_params.get("istiod", self._xds_address)
        directory = request.query_params.get("identity", "/var/lib/hostmesh/identity")
        sds_socket = request.query_params.get("sds", SDS_SOCKET)
        return JSONResponse(bootstrap(instance, self._domain, address, directory, sds_socket))

    def _workload(self, instance: Instance) -> dict[str, Any]:
        return {
            "namespace": instance.namespace,
            "name": instance.id.partition("/")[2] or instance.id,
            "service": instance.service,
            "workload": instance.workload,
            "addresses": list(instance.addresses),
            "ports": [_port(port) for port in instance.ports],
            "labels": dict(instance.labels),
            "serviceAccount": instance.service_account,
            "locality": instance.locality,
            "weight": instance.weight,
            "health": instance.health.value,
            "node": instance.node,
            "owner": instance.owner,
            "connected": self._table.find(instance.id) is not None,
        }

    @property
    def _domain(self) -> str:
        return self._feed.snapshot.mesh.domain_suffix

    def _service(self, service: Service, instances: Sequence[Instance]) -> dict[str, Any]:
        return {
            "namespace": service.namespace,
            "name": service.name,
            "hostname": f"{service.name}.{service.namespace}.svc.{self._domain}",
            "addresses": [address for address in (service.vip4, service.vip6) if address],
            "ports": [_port(port) for port in service.ports],
            "instances": len(instances),
            "healthy": sum(one.health is Health.HEALTHY for one in instances),
        }


async def _answer(items: Sequence[Callable[[], dict[str, Any]]]) -> Response:
    """The items as JSON, made and encoded in portions between which the event loop gets its turn."""
    parts: list[str] = []
    for number, make in enumerate(items, 1):
        parts.append(json.dumps(make(), separators=(",", ":")))
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return Response('{"items":[' + ",".join(parts) + "]}", media_type="application/json")


def _port(port: Port) -> dict[str, Any]:
    document: dict[str, Any] = {"name": port.name, "port": port.number}
    if port.protocol:
        document["protocol"] = port.protocol
    if port.target_port and port.target_port != port.number:
        document["targetPort"] = port.target_port
    return document
