"""The real Envoy and grpcio as clients of istiod's xDS: everything is accepted."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import yaml
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from tests.istiod.conftest import BIN, CASES, Istiod, poll
from tests.istiod.proxies import Identity, connected, enrol, node
from tests.ports import free_port
from wire.grpc import ServerCall, listen, serve
from wire.spiffe import SpiffeId
from wire.xds import CLUSTER, LISTENER, SECRET, DeltaSession, SotwSession, encode

SAMPLES = CASES / "istio-samples"

POLICIES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews, namespace: default}
spec:
  selector: {matchLabels: {app: reviews}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/caller"]}}]
    to: [{operation: {methods: [GET], paths: ["/reviews/*"]}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: default}
spec:
  hosts: [api.example.com]
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.9}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: default}
spec:
  hosts: [db.example.com]
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  resolution: DNS
"""


class RunningEnvoy:
    """An Envoy and its admin page."""

    def __init__(self, process: subprocess.Popen[bytes], address_file: Path, log: Path) -> None:
        self.process = process
        self._address_file = address_file
        self.log = log

    def page(self, path: str) -> str:
        address = self._address_file.read_text().strip()
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=5) as response:
            text: str = response.read().decode()
            return text

    def stats(self) -> dict[str, int]:
        stats = json.loads(self.page("stats?format=json&filter=update_|^control_plane"))["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "value" in stat}

    def rejected(self) -> dict[str, int]:
        return {
            name: value for name, value in self.stats().items() if name.endswith("update_rejected") and value
        }

    def names(self, part: str, key: str, inner: str) -> set[str]:
        from istiod.ctl import config_rows

        dump = json.loads(self.page("config_dump?include_eds"))
        return {str(one.get("name", "")) for one in getattr(config_rows, part)(dump)}


@contextmanager
def envoy(bootstrap: dict[str, Any], directory: Path, base_id: int) -> Iterator[RunningEnvoy]:
    """Run the real Envoy with its admin on a free port."""
    bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0
    config, address, log = directory / "envoy.yaml", directory / "admin-address", directory / "envoy.log"
    config.write_text(yaml.safe_dump(bootstrap))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                BIN / "envoy",
                "-c",
                config,
                "--admin-address-path",
                address,
                "--base-id",
                str(base_id),
                "--concurrency",
                "1",
                "-l",
                "info",
            ],
            stdout=file,
            stderr=file,
        )
    try:
        poll(
            lambda: process.poll() is not None or (address.exists() and address.read_text()),
            30,
            "Envoy's admin",
        )
        assert process.poll() is None, log.read_text()
        yield RunningEnvoy(process, address, log)
    finally:
        process.terminate()
        process.wait(20)


def mesh(istiod: Istiod) -> tuple[Identity, Identity]:
    """Two identities: reviews' and the caller's."""
    token = istiod.ok(
        "token", "create", "-s", "reviews", "-s", "caller", "--service", "reviews/reviews"
    ).strip()

    async def both() -> tuple[Identity, Identity]:
        reviews = await enrol(istiod.address("xds"), token, SpiffeId("cluster.local", "default", "reviews"))
        caller = await enrol(istiod.address("xds"), token, SpiffeId("cluster.local", "default", "caller"))
        return reviews, caller

    return trio.run(both)


@asynccontextmanager
async def secrets_served(identity: Identity) -> AsyncIterator[tuple[str, int]]:
    """An SDS server for the secrets that stay on the host, as the workload's agent is one."""
    certificate = secret_pb2.Secret(name="default")
    certificate.tls_certificate.certificate_chain.inline_bytes = identity.chain
    certificate.tls_certificate.private_key.inline_bytes = identity.key
    root = secret_pb2.Secret(name="ROOTCA")
    root.validation_context.trusted_ca.inline_bytes = identity.root
    content = {SECRET: {one.name: encode(one.name, one) for one in (certificate, root)}}

    async def serve_with(session: SotwSession | DeltaSession, call: ServerCall) -> None:
        session.update(content)
        while (message := await call.receive()) is not None:
            session.receive(message)
            while (response := session.next_response()) is not None:
                await call.send(response)

    async def sotw(call: ServerCall) -> None:
        await serve_with(SotwSession(), call)

    async def delta(call: ServerCall) -> None:
        await serve_with(DeltaSession(), call)

    service = "/envoy.service.secret.v3.SecretDiscoveryService/"
    listeners = await listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            serve, listeners, {f"{service}StreamSecrets": sotw, f"{service}DeltaSecrets": delta}
        )
        yield listeners[0].socket.getsockname()  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


@pytest.mark.envoy
@pytest.mark.parametrize("protocol", ["DELTA_GRPC", "GRPC"])
def test_a_real_envoy_accepts_everything(istiod: Istiod, tmp_path: Path, protocol: str) -> None:
    reviews, _ = mesh(istiod)
    me = node("reviews-a", "reviews", service_account="reviews", labels={"app": "reviews", "version": "v1"})

    async def story() -> None:
        async with (
            connected(istiod.address("xds"), me, reviews) as agent,
            secrets_served(reviews) as sds,
        ):
            await agent.report(True)
            await trio.to_thread.run_sync(with_envoy, sds)

    def with_envoy(sds: tuple[str, int]) -> None:
        poll(lambda: istiod.json("workload", "list"), 10, "registered")
        bootstrap = yaml.safe_load(
            istiod.ok("envoy-bootstrap", "--workload", "default/reviews-a", "--identity", str(tmp_path))
        )
        # Another name, so that proxy-status shows the agent and the Envoy apart; free ports for its listeners.
        bootstrap["node"]["id"] = bootstrap["node"]["id"].replace("reviews-a", "envoy-a")
        bootstrap["node"]["metadata"]["PROXY_CONFIG"] = {
            "proxyListenPort": free_port(),
            "proxyInboundListenPort": free_port(),
        }
        bootstrap["dynamic_resources"]["ads_config"]["api_type"] = protocol
        endpoint = bootstrap["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0][
            "lb_endpoints"
        ][0]
        endpoint["endpoint"]["address"] = {"socket_address": {"address": sds[0], "port_value": sds[1]}}
        (tmp_path / "cert-chain.pem").write_bytes(reviews.chain)
        (tmp_path / "key.pem").write_bytes(reviews.key)
        (tmp_path / "root-cert.pem").write_bytes(reviews.root)
        with envoy(bootstrap, tmp_path, base_id=free_port()) as proxy:
            poll(lambda: proxy.stats().get("control_plane.connected_state") == 1, 20, "Envoy connected")
            poll(lambda: "virtualInbound" in proxy.names("listeners", "", ""), 20, "Envoy has its listeners")
            istiod.ok(
                "apply",
                "--wait=20",
                "-f",
                SAMPLES / "destination-rule-all.yaml",
                "-f",
                SAMPLES / "virtual-service-all-v1.yaml",
            )
            istiod.ok("apply", "--wait=20", "-f", "-", stdin=POLICIES)
            for sample in (
                "virtual-service-reviews-90-10.yaml",
                "virtual-service-ratings-test-abort.yaml",
                "virtual-service-reviews-50-v3.yaml",
            ):
                istiod.ok("apply", "--wait=20", "-f", SAMPLES / sample)
            clusters = proxy.names("clusters", "", "")
            assert "outbound|9080|v1|reviews.default.svc.cluster.local" in clusters
            assert "outbound|5432||db.example.com" in clusters
            assert "9080" in proxy.names("routes", "", "")
            istiod.ok("delete", "--wait=20", "dr", "reviews", "ratings", "details", "productpage")
            istiod.ok("delete", "--wait=20", "vs", "reviews", "ratings", "details", "productpage")
            assert "outbound|9080|v1|reviews.default.svc.cluster.local" not in proxy.names("clusters", "", "")
            assert proxy.rejected() == {}, proxy.log.read_text()[-4000:]
            status = istiod.json("proxy-status", "default/envoy-a")
            assert status["synced"] is True
            assert status["protocol"] == ("delta" if protocol == "DELTA_GRPC" else "sotw")
            assert {entry["status"] for entry in status["types"]} == {"SYNCED"}
            assert "outbound" in istiod.ok("proxy-config", "clusters", "default/envoy-a")

    trio.run(story)


def test_grpcio_speaks_sotw_and_delta_with_it(istiod: Istiod) -> None:
    _, caller = mesh(istiod)
    credentials = grpc.ssl_channel_credentials(caller.root, caller.key, caller.chain)
    host, port = istiod.address("xds")
    me = node("caller-a", service_account="caller")
    with grpc.secure_channel(
        f"{host}:{port}", credentials, options=[("grpc.ssl_target_name_override", "istiod")]
    ) as channel:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        first = discovery_pb2.DiscoveryRequest(node=me, type_url=LISTENER)
        responses = stub.StreamAggregatedResources(iter([first]), timeout=20)
        listeners = next(responses)
        assert listeners.type_url == LISTENER
        assert len(listeners.resources) >= 2
        delta = discovery_pb2.DeltaDiscoveryRequest(node=me, type_url=CLUSTER)
        clusters = next(stub.DeltaAggregatedResources(iter([delta]), timeout=20))
        assert {"PassthroughCluster", "BlackHoleCluster"} <= {
            resource.name for resource in clusters.resources
        }
