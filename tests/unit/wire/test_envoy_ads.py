"""A real Envoy as ADS client over mTLS of a small server made of our gRPC server and sessions."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import json_format

from tests.ports import free_port
from wire import tls, x509
from wire.grpc import ADS_DELTA, ADS_SOTW, ServerCall, listen, port_of, serve
from wire.spiffe import SpiffeId
from wire.xds import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    DeltaSession,
    EncodedResource,
    Received,
    SotwSession,
    encode,
)

pytestmark = pytest.mark.envoy

ENVOY = Path(sys.executable).parent / "envoy"
ISTIOD = SpiffeId("cluster.local", "hostmesh-system", "istiod")
PROXY = SpiffeId("cluster.local", "default", "reviews")

Content = Mapping[str, Mapping[str, EncodedResource]]


class Ads:
    """The latest content, and every session that is to get it."""

    def __init__(self, content: Content) -> None:
        self.content = dict(content)
        self.sessions: dict[DeltaSession | SotwSession, trio.Event] = {}
        self.received: list[Received] = []
        self.peers: list[SpiffeId | None] = []

    def push(self, content: Content) -> None:
        self.content.update(content)
        for session, wake in self.sessions.items():
            session.update(content)
            wake.set()

    async def handle(self, call: ServerCall) -> None:
        session = DeltaSession() if call.path == ADS_DELTA else SotwSession()
        session.update(self.content)
        self.sessions[session] = trio.Event()
        self.peers.append(call.peer.spiffe_id)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                while True:
                    while (response := session.next_response()) is not None:
                        await call.send(response)
                    await self.sessions[session].wait()
                    self.sessions[session] = trio.Event()

            nursery.start_soon(send)
            while (request := await call.receive()) is not None:
                self.received.append(session.receive(request))
                self.sessions[session].set()
            nursery.cancel_scope.cancel()
        del self.sessions[session]


def cluster(name: str, connect_seconds: int = 5) -> EncodedResource:
    message = json_format.ParseDict(
        {
            "name": name,
            "type": "EDS",
            "connect_timeout": f"{connect_seconds}s",
            "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        },
        cluster_pb2.Cluster(),
    )
    return encode(name, message)


def endpoints(name: str, port: int) -> EncodedResource:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    message = json_format.ParseDict(
        {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
        endpoint_pb2.ClusterLoadAssignment(),
    )
    return encode(name, message)


def listener(name: str, port: int, route: str) -> EncodedResource:
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix="test")
    manager.rds.route_config_name = route
    manager.rds.config_source.ads.SetInParent()
    manager.rds.config_source.resource_api_version = 2  # V3
    manager.http_filters.add(name="router").typed_config.Pack(router_pb2.Router())
    message = listener_pb2.Listener(name=name)
    message.address.socket_address.address = "127.0.0.1"
    message.address.socket_address.port_value = port
    message.filter_chains.add().filters.add(name="hcm").typed_config.Pack(manager)
    return encode(name, message)


def route(name: str, status: int, body: str) -> EncodedResource:
    message = json_format.ParseDict(
        {
            "name": name,
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": status, "body": {"inline_string": body}},
                        }
                    ],
                }
            ],
        },
        route_pb2.RouteConfiguration(),
    )
    return encode(name, message)


def named(*resources: EncodedResource) -> dict[str, EncodedResource]:
    return {resource.name: resource for resource in resources}


def fetch(url: str) -> tuple[int, str]:
    """Status and body, (0, "") while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


async def until(condition: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """Poll until the condition is true (in a thread: it may do I/O)."""
    with trio.move_on_after(seconds):
        while True:
            if result := await trio.to_thread.run_sync(condition):
                return result
            await trio.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {what}")


@asynccontextmanager
async def running_envoy(
    tmp_path: Path, xds_port: int, api_type: str, root: bytes, chain: bytes, key: bytes
) -> AsyncIterator[int]:
    """Envoy with mTLS to the ADS server; gives its admin port."""
    admin_port = free_port()
    bootstrap = {
        "node": {"id": "sidecar~127.0.0.1~reviews.default~default.svc.cluster.local", "cluster": "reviews"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/"
                            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "transport_socket": {
                        "name": "tls",
                        "typed_config": {
                            "@type": "type.googleapis.com/"
                            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                            "common_tls_context": {
                                "alpn_protocols": ["h2"],
                                "tls_certificates": [
                                    {
                                        "certificate_chain": {"inline_string": chain.decode()},
                                        "private_key": {"inline_string": key.decode()},
                                    }
                                ],
                                "validation_context": {
                                    "trusted_ca": {"inline_string": root.decode()},
                                    "match_typed_subject_alt_names": [
                                        {"san_type": "URI", "matcher": {"exact": str(ISTIOD)}}
                                    ],
                                },
                            },
                        },
                    },
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {
                                                "socket_address": {
                                                    "address": "127.0.0.1",
                                                    "port_value": xds_port,
                                                }
                                            }
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
            ]
        },
    }
    config = tmp_path / "envoy.yaml"
    config.write_text(yaml.safe_dump(bootstrap))
    base_id = random.randrange(1 << 16)
    command = [ENVOY, "-c", config, "--base-id", str(base_id), "--concurrency", "1", "-l", "warning"]
    with (tmp_path / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield admin_port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("api_type", ["DELTA_GRPC", "GRPC"])
def test_envoy_is_configured_updated_and_its_refusals_are_heard(tmp_path: Path, api_type: str) -> None:
    now = datetime.now(UTC)
    ca_key, server_key, proxy_key = x509.new_key(), x509.new_key(), x509.new_key()
    root = x509.self_signed_root(ca_key, ttl=timedelta(days=1), now=now)

    def chain(key: x509.PrivateKey, spiffe_id: SpiffeId) -> bytes:
        leaf = x509.issue(
            key.public_key(),
            uri_sans=[spiffe_id],
            ca_cert=root,
            ca_key=ca_key,
            ttl=timedelta(hours=1),
            now=now,
        )
        return x509.to_pem([leaf, root])

    context = tls.server_context(
        chain(server_key, ISTIOD), x509.key_to_pem(server_key), x509.to_pem(root), client_required=False
    )
    port = free_port()
    ads = Ads(
        {
            CLUSTER: named(cluster("one")),
            ENDPOINT: named(endpoints("one", 1), endpoints("two", 2)),
            LISTENER: named(listener("web", port, "web-routes")),
            ROUTE: named(route("web-routes", 200, "first")),
        }
    )

    async def main() -> None:
        listeners = await listen("127.0.0.1", 0, context)
        xds_port = port_of(listeners[0])
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:
            handlers = {ADS_DELTA: ads.handle, ADS_SOTW: ads.handle}
            nursery.start_soon(lambda: serve(listeners, handlers, shutdown=shutdown, grace=0.5))
            async with running_envoy(
                tmp_path,
                xds_port,
                api_type,
                x509.to_pem(root),
                chain(proxy_key, PROXY),
                x509.key_to_pem(proxy_key),
            ) as admin:
                await scenario(admin)
                shutdown.set()
                # GOAWAY and UNAVAILABLE, then nobody there; what is configured stays.
                disconnected = f"http://127.0.0.1:{admin}/stats?filter=^control_plane.connected_state"
                await until(lambda: fetch(disconnected)[1].strip().endswith(": 0"), "envoy saw the shutdown")
                assert fetch(f"http://127.0.0.1:{port}/") == (201, "second")

    async def scenario(admin: int) -> None:
        web = f"http://127.0.0.1:{port}/"
        await until(lambda: fetch(web) == (200, "first"), "the first configuration is in effect")
        assert ads.peers == [PROXY]

        ads.push({ROUTE: named(route("web-routes", 201, "second"))})
        await until(lambda: fetch(web) == (201, "second"), "the new route is in effect")

        # A changed cluster and a new one: neither may hang in warming for want of endpoints.
        ads.push({CLUSTER: named(cluster("one", connect_seconds=7), cluster("two"))})
        stats = f"http://127.0.0.1:{admin}/clusters?format=json"
        await until(
            lambda: (
                {"one", "two"} <= {entry["name"] for entry in json.loads(fetch(stats)[1])["cluster_statuses"]}
            ),
            "both clusters are active",
        )
        warming = f"http://127.0.0.1:{admin}/stats?filter=cluster_manager.warming_clusters"
        await until(lambda: fetch(warming)[1].strip().endswith(": 0"), "nothing warms any longer", 5)

        # Envoy refuses what it cannot use, says why, and keeps what it had.
        broken = listener_pb2.Listener(name="broken")
        ads.push({LISTENER: ads.content[LISTENER] | named(encode("broken", broken))})
        refusal = await until(
            lambda: next((r.nack for r in ads.received if r.nack is not None), None), "the refusal"
        )
        assert "broken" in refusal.reason
        (session,) = ads.sessions
        assert session.state(LISTENER).nack == refusal
        assert fetch(web) == (201, "second")

        # The refused content withdrawn, a cluster taken away.
        ads.push({LISTENER: named(listener("web", port, "web-routes")), CLUSTER: named(cluster("one"))})
        await until(
            lambda: "two" not in {entry["name"] for entry in json.loads(fetch(stats)[1])["cluster_statuses"]},
            "the second cluster is gone",
        )
        for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
            await until(lambda kind=type_url: not session.state(kind).outstanding, f"{type_url} answered")
            state = session.state(type_url)
            assert state.sent == state.acked
            assert state.nack is None

    trio.run(main)
