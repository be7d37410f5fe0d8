"""grpcio's own xDS client (`xds:///name`) resolving and calling a service through our sessions."""

from __future__ import annotations

import json
import os
import sys

import trio
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import json_format

from wire.grpc import ADS_SOTW, ServerCall, listen, port_of, serve
from wire.xds import CLUSTER, ENDPOINT, LISTENER, EncodedResource, SotwSession, encode

CLIENT = """
import grpc
with grpc.insecure_channel("xds:///reviews") as channel:
    call = channel.unary_unary("/t/whoami", lambda m: m, lambda m: m)
    print(call(b"", timeout=15, wait_for_ready=True).decode())
"""


def content(port: int) -> dict[str, dict[str, EncodedResource]]:
    manager = http_connection_manager_pb2.HttpConnectionManager()
    host = manager.route_config.virtual_hosts.add(name="all", domains=["*"])
    host.routes.add(match={"prefix": ""}, route={"cluster": "backend"})
    manager.http_filters.add(name="router").typed_config.Pack(router_pb2.Router())
    target = listener_pb2.Listener(name="reviews")
    target.api_listener.api_listener.Pack(manager)
    # No proxy's listener: Envoy's wildcard must not see it, a client that names it must.
    listeners = {"reviews": encode("reviews", target, wildcard=False)}
    cluster = json_format.ParseDict(
        {
            "name": "backend",
            "type": "EDS",
            "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        },
        cluster_pb2.Cluster(),
    )
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    locality = {
        "locality": {"zone": "a"},
        "load_balancing_weight": 1,
        "lb_endpoints": [{"endpoint": {"address": address}}],
    }
    assignment = json_format.ParseDict(
        {"cluster_name": "backend", "endpoints": [locality]}, endpoint_pb2.ClusterLoadAssignment()
    )
    return {
        LISTENER: listeners,
        CLUSTER: {"backend": encode("backend", cluster)},
        ENDPOINT: {"backend": encode("backend", assignment)},
    }


def test_grpcio_finds_and_calls_a_service_by_its_name() -> None:
    async def whoami(call: ServerCall) -> None:
        await call.receive()
        await call.send(b"reviews-v1")

    async def main() -> str:
        backend, control = await listen("127.0.0.1", 0), await listen("127.0.0.1", 0)

        async def ads(call: ServerCall) -> None:
            session = SotwSession()
            session.update(content(port_of(backend[0])))
            while (request := await call.receive()) is not None:
                session.receive(request)
                while (response := session.next_response()) is not None:
                    await call.send(response)

        bootstrap = {
            "xds_servers": [
                {
                    "server_uri": f"127.0.0.1:{port_of(control[0])}",
                    "channel_creds": [{"type": "insecure"}],
                    "server_features": ["xds_v3"],
                }
            ],
            "node": {"id": "sidecar~127.0.0.1~a.default~default.svc.cluster.local"},
        }
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)}
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, backend, {"/t/whoami": whoami})
                nursery.start_soon(serve, control, {ADS_SOTW: ads})
                done = await trio.run_process(
                    [sys.executable, "-c", CLIENT],
                    env=environment,
                    capture_stdout=True,
                    check=False,
                    capture_stderr=True,
                )
                assert done.returncode == 0, done.stderr.decode()
                nursery.cancel_scope.cancel()
        return done.stdout.decode().strip()

    assert trio.run(main) == "reviews-v1"
