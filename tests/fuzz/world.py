"""A small mesh in which a document is tried: what it makes of several proxies, and whether agent and Envoy take that."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2

from agent.exchange.trial import decode
from istiod.api.envoy_bootstrap import RUNTIME
from istiod.compile import Cache, ProxyInfo, ProxyResources, compile_proxy
from istiod.resources.mesh_config import mesh_config
from istiod.snapshot import build
from registry.model import Health, Instance, Port, Resource, Service
from tests.unit.istiod.test_compile_envoy import static_bootstrap
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE

ENVOY = Path(sys.executable).with_name("envoy")
PORTS = {
    "reviews": Port("http", 9080), "web": Port("web", 8080), "mysqldb": Port("mysql", 3306), "rpc": Port("grpc", 7070),
    "secure": Port("https", 8443), "plain": Port("http", 80),
}  # fmt: skip


def _services() -> tuple[tuple[Service, ...], tuple[Instance, ...]]:
    services, instances = [], []
    for number, (name, port) in enumerate(PORTS.items(), 1):
        services.append(Service(name, "default", (port,), f"240.240.0.{number}", f"2001:2::{number}"))
        for copy in (0, 10):
            labels = {"app": name, "version": f"v{1 + copy // 10}"}
            addresses = (f"10.0.0.{number + copy}", f"fd00::{number + copy}")
            instances.append(
                Instance(
                    f"default/{name}-{copy}", name, "default", addresses, (port,), labels, f"sa-{name}", "a/b", 2,
                    Health.HEALTHY, name, name,
                )
            )  # fmt: skip
    return tuple(services), tuple(instances)


SERVICES, INSTANCES = _services()
PROXIES = (
    ProxyInfo(
        "default", "sa-reviews", {"app": "reviews", "version": "v1"}, ("10.0.0.1", "fd00::1"), "reviews", "reviews",
        (PORTS["reviews"], PORTS["mysqldb"], PORTS["web"]),
    ),
    ProxyInfo("default", "sa-web", {"app": "web", "version": "v2"}, ("10.0.0.12",), "web", "web", (PORTS["web"],)),
    ProxyInfo("other", "sa-x", {"app": "gw"}, ("10.0.0.99",), "", "x", ()),
)  # fmt: skip


class World:
    """The mesh without any document, and with some."""

    def __init__(self, mesh: Mapping[str, Any] | None = None) -> None:
        self._mesh = mesh_config(dict(mesh or {}))
        self._cache = Cache()
        self._bare = build(SERVICES, INSTANCES, (), self._mesh)
        self._before = [compile_proxy(self._bare, proxy, self._cache) for proxy in PROXIES]

    def compiled(self, resources: Sequence[Resource]) -> list[ProxyResources]:
        """Of every proxy, what the resources make; whatever is wrong with that fails the test."""
        snapshot = build(SERVICES, INSTANCES, resources, self._mesh, self._bare)
        assert not snapshot.problems, [str(problem) for problem in snapshot.problems]
        found = [compile_proxy(snapshot, proxy, self._cache) for proxy in PROXIES]
        for made in found:
            assert not made.failures, "\n".join(one.trace for one in made.failures)
        return found

    def changed(self, made: Sequence[ProxyResources]) -> list[ProxyResources]:
        """What differs from the mesh without documents; of each listener also its routes, of each cluster its endpoints."""
        found = []
        for before, now in zip(self._before, made, strict=True):
            differing = {
                url: {name for name, one in now.of(url).items() if before.of(url).get(name) != one}
                for url in now.types
                if url != NAME_TABLE
            }
            found.append(
                ProxyResources({url: {n: now.of(url)[n] for n in names} for url, names in differing.items()})
            )
        return found


def refused_by_agent(all_of: Sequence[ProxyResources], changed: Sequence[ProxyResources]) -> list[str]:
    """What the agent's interpreter refuses of what changed."""
    reasons = []
    for everything, part in zip(all_of, changed, strict=True):
        bodies = {url: {name: one.body for name, one in found.items()} for url, found in part.types.items()}
        if bodies.get(ROUTE):
            bodies[LISTENER] = {name: one.body for name, one in everything.of(LISTENER).items()}
        reasons += [str(one) for one in decode(bodies)[1]]
    return reasons


@dataclass
class Sample:
    """What one document made, for Envoy's judgement."""

    text: str
    listeners: list[listener_pb2.Listener]
    clusters: list[cluster_pb2.Cluster]


def sample(text: str, all_of: Sequence[ProxyResources], changed: Sequence[ProxyResources]) -> Sample:
    """The listeners (with their routes) and clusters (with their endpoints) that a document changed."""
    listeners: list[listener_pb2.Listener] = []
    clusters: list[cluster_pb2.Cluster] = []
    for everything, part in zip(all_of, changed, strict=True):
        static = static_bootstrap(everything).static_resources
        routes = part.of(ROUTE).keys()
        for one in static.listeners:
            inline = {name for name in routes if _has_routes(one, name)}
            if one.name in part.of(LISTENER) or inline:
                listeners.append(one)
        touched = part.of(CLUSTER).keys() | part.of(ENDPOINT).keys()
        clusters += [one for one in static.clusters if one.name in touched]
    return Sample(text, listeners, clusters)


def _has_routes(listener: listener_pb2.Listener, name: str) -> bool:
    marker = name.encode()
    return any(
        marker in filter_.typed_config.value
        for chain in (*listener.filter_chains, listener.default_filter_chain)
        for filter_ in chain.filters
        if filter_.typed_config.type_url.endswith("HttpConnectionManager")
    )


def refused_by_envoy(samples: Sequence[Sample], directory: Path) -> list[tuple[Sample, str]]:
    """The samples that the real Envoy does not take, each with its reason; all together in as few runs as can be."""
    if not samples:
        return []
    reason = _validate(samples, directory)
    if not reason:
        return []
    if len(samples) == 1:
        return [(samples[0], reason)]
    half = len(samples) // 2
    return refused_by_envoy(samples[:half], directory) + refused_by_envoy(samples[half:], directory)


def _validate(samples: Sequence[Sample], directory: Path) -> str:
    bootstrap = bootstrap_pb2.Bootstrap()
    bootstrap.node.id = bootstrap.node.cluster = "test"
    bootstrap.layered_runtime.layers.add(name="static").static_layer.update(RUNTIME)
    static = bootstrap.static_resources
    port = 20000
    for number, one in enumerate(samples):
        for position, listener in enumerate(one.listeners):
            copy = static.listeners.add()
            copy.CopyFrom(listener)
            # Names and addresses are each proxy's own; in one Envoy they would meet.
            copy.name = f"{number}-{position}-{listener.name}"
            del copy.additional_addresses[:]
            port += 1
            copy.address.socket_address.address = f"127.0.{port >> 14}.1"
            copy.address.socket_address.port_value = 10000 + port % 50000
        for position, cluster in enumerate(one.clusters):
            copied = static.clusters.add()
            copied.CopyFrom(cluster)
            copied.name = f"{number}-{position}-{cluster.name}"
    own = static_bootstrap(ProxyResources({})).static_resources.clusters[0]
    static.clusters.append(own)
    path = directory / "bootstrap.pb"
    path.write_bytes(bootstrap.SerializeToString())
    command = [str(ENVOY), "--mode", "validate", "-c", str(path), "-l", "error", "--concurrency", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=directory)
    if done.returncode == 0:
        return ""
    return re.sub(r"\s+", " ", (done.stdout + done.stderr)[-1500:])
