"""The real Envoy accepts whatever is compiled: RDS and EDS are put inline and the whole is a static bootstrap."""
# ruff: noqa: E501 - a resource is easier to read on one line

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from istiod.api.envoy_bootstrap import RUNTIME
from istiod.compile import ProxyInfo, ProxyResources, compile_proxy
from istiod.resources.document import parse
from istiod.resources.mesh_config import mesh_config
from istiod.snapshot import build
from registry.model import Health, Instance, Port, Service
from wire.xds import CLUSTER, ENDPOINT, LISTENER, ROUTE

pytestmark = pytest.mark.envoy
CASES = Path(__file__).parents[4] / "shared" / "cases"
ENVOY = Path(sys.executable).with_name("envoy")
HCM = http_connection_manager_pb2.HttpConnectionManager
PORTS = {
    "productpage": Port("http", 9080),
    "reviews": Port("http", 9080),
    "ratings": Port("http", 9080),
    "details": Port("http", 9080),
    "mysqldb": Port("mysql", 3306),
    "web": Port("web", 8080),
    "rpc": Port("grpc", 7070),
    "secure": Port("https", 8443),
}

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
EVERYTHING = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {consistentHash: {httpCookie: {name: u, ttl: 0s}}}
    connectionPool:
      tcp: {maxConnections: 5, connectTimeout: 2s, idleTimeout: 5m, maxConnectionDuration: 1h, tcpKeepalive: {probes: 3, time: 60s, interval: 5s}}
      http: {http1MaxPendingRequests: 5, http2MaxRequests: 7, maxRequestsPerConnection: 9, maxRetries: 2, idleTimeout: 9s, useClientProtocol: true}
    outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4, interval: 1s, baseEjectionTime: 5s, maxEjectionPercent: 50, minHealthPercent: 40}
    retryBudget: {percent: 30, minRetryConcurrency: 5}
  subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 65537}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - name: all
    match:
    - {name: m, uri: {regex: '/a.*'}, ignoreUriCase: true, method: {exact: GET}, scheme: {exact: http}, authority: {prefix: r}, headers: {x: {regex: 'a+'}, y: {}}, withoutHeaders: {z: {exact: '1'}, w: {}}, queryParams: {q: {prefix: a}, p: {}}, port: 9080, statPrefix: st}
    rewrite: {uriRegexRewrite: {match: '/a(.*)', rewrite: '/b\\1'}, authority: other}
    timeout: 3s
    retries: {attempts: 4, perTryTimeout: 1s, retryOn: 'connect-failure,503,reset', backoff: 10ms, retryIgnorePreviousHosts: false}
    fault: {delay: {fixedDelay: 1s, percentage: {value: 0.5}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 1}}}
    corsPolicy: {allowOrigins: [{exact: a}, {prefix: b}, {regex: 'c.*'}], allowOrigin: ['*'], allowMethods: [GET], allowHeaders: [x], exposeHeaders: [y], maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE}
    headers: {request: {set: {a: b}, add: {c: d}, remove: [e]}, response: {set: {a: '%RESPONSE_CODE%'}, remove: [server]}}
    mirrors: [{destination: {host: web}, percentage: {value: 0.5}}, {destination: {host: details}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 30, headers: {request: {set: {x: y}}}}
    - {destination: {host: reviews}, weight: 70}
  - {match: [{uri: {exact: /r}}], redirect: {uri: /x, authority: h, port: 8080, scheme: https, redirectCode: 308}}
  - {match: [{uri: {prefix: /p}}], redirect: {prefixRewrite: /x, derivePort: FROM_PROTOCOL_DEFAULT}}
  - {match: [{uri: {prefix: /o}}], headers: {request: {set: {':authority': c}}}, route: [{destination: {host: reviews}}]}
  - {match: [{uri: {prefix: /d}}], directResponse: {status: 503, body: {bytes: aGVsbG8=}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mysql}
spec:
  hosts: [mysqldb]
  tcp:
  - {match: [{port: 3306, destinationSubnets: [10.0.0.0/8]}], route: [{destination: {host: mysqldb}, weight: 1}, {destination: {host: web}, weight: 2}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: blocks}
spec:
  hosts: [blocks.example]
  addresses: [192.0.2.0/24, '2001:db8::/32', 198.51.100.1]
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.1, locality: a/b/c, weight: 3}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: socket}
spec:
  hosts: [socket.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 'unix:///tmp/x'}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named}
spec:
  hosts: [one.example, '*.two.example']
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 9443, name: tcp, protocol: TCP}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: robin}
spec:
  hosts: [robin.example]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DNS_ROUND_ROBIN
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: reviews}
spec:
  workloadSelector: {labels: {app: web}}
  ingress: [{port: {number: 9999, protocol: TCP, name: tcp}, defaultEndpoint: '127.0.0.1:99'}, {port: {number: 9998, protocol: HTTP, name: http}, defaultEndpoint: '0.0.0.0:98'}]
  egress: [{hosts: ['*/*']}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: reviews}
spec: {selector: {matchLabels: {app: reviews}}, mtls: {mode: STRICT}, portLevelMtls: {'9080': {mode: DISABLE}, '3306': {mode: DISABLE}, '8080': {mode: DISABLE}, '1234': {mode: PERMISSIVE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow}
spec: {rules: [{from: [{source: {principals: ['*'], remoteIpBlocks: ['10.0.0.0/8', '::1']}}], to: [{operation: {paths: ['/a/{*}', '/b/{**}'], methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {action: DENY, rules: [{from: [{source: {notNamespaces: [default]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: audit}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial, annotations: {istio.io/dry-run: 'true'}}
spec: {action: DENY, rules: [{}]}
"""


def static_bootstrap(compiled: ProxyResources) -> bootstrap_pb2.Bootstrap:
    """Everything in one file, with the one cluster that an Envoy needs of its own (SDS)."""
    result = bootstrap_pb2.Bootstrap()
    result.node.id = result.node.cluster = "test"
    result.layered_runtime.layers.add(name="static").static_layer.update(RUNTIME)

    def every(url: str, form: type[Any]) -> Iterator[Any]:
        for name in compiled.of(url):
            yield compiled.message(url, name, form)

    for listener in every(LISTENER, listener_pb2.Listener):
        for chain in (*listener.filter_chains, listener.default_filter_chain):
            for filter_ in chain.filters:
                if filter_.typed_config.type_url.endswith("HttpConnectionManager"):
                    manager = HCM.FromString(filter_.typed_config.value)
                    if manager.HasField("rds"):
                        routes = compiled.message(
                            ROUTE, manager.rds.route_config_name, route_pb2.RouteConfiguration
                        )
                        manager.route_config.CopyFrom(routes)
                        filter_.typed_config.Pack(manager)
        result.static_resources.listeners.append(listener)
    for cluster in every(CLUSTER, cluster_pb2.Cluster):
        if cluster.type == cluster_pb2.Cluster.EDS:
            name = cluster.eds_cluster_config.service_name
            cluster.ClearField("eds_cluster_config")
            cluster.type = cluster_pb2.Cluster.STATIC
            cluster.load_assignment.CopyFrom(
                compiled.message(ENDPOINT, name, endpoint_pb2.ClusterLoadAssignment)
            )
        result.static_resources.clusters.append(cluster)
    sds = result.static_resources.clusters.add(name="sds-grpc")
    sds.connect_timeout.seconds = 1
    sds.load_assignment.cluster_name = "sds-grpc"
    sds.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = "/nonexistent"
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.SetInParent()
    sds.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].Pack(
        options
    )
    return result


def accepted(compiled: ProxyResources, tmp_path: Path, *, deprecated: bool = False) -> None:
    """`deprecated`: Istio uses fields here that Envoy has newer ones for."""
    path = tmp_path / "bootstrap.pb"
    path.write_bytes(static_bootstrap(compiled).SerializeToString())
    command = [str(ENVOY), "--mode", "validate", "-c", str(path), "-l", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = (done.stdout + done.stderr).lower().splitlines()
    # As Istio's: the newer form of DNS settings is a cluster type of its own, that of gRPC's time-out another limit.
    old = [line for line in told if "deprecated" in line and not re.search("dns_|max_grpc_timeout", line)]
    assert deprecated or not old


def compiled(
    text: str, mesh: dict[str, Any] | None = None, name: str = "reviews", namespace: str = "default"
) -> ProxyResources:
    parsed = parse(text)
    assert not parsed.errors(), parsed.errors()
    services, instances = [], []
    for number, (one, port) in enumerate(PORTS.items(), 1):
        services.append(Service(one, "default", (port,), f"240.240.0.{number}", f"2001:2::{number}"))
        labels = {"app": one, "version": "v1"}
        addresses = (f"10.0.0.{number}", f"fd00::{number}")
        instances.append(
            Instance(
                f"default/{one}",
                one,
                "default",
                addresses,
                (port,),
                labels,
                f"sa-{one}",
                "a/b",
                2,
                Health.HEALTHY,
                one,
                one,
            )
        )
    snapshot = build(services, instances, [one.resource for one in parsed.documents], mesh_config(mesh or {}))
    proxy = ProxyInfo(
        namespace, f"sa-{name}", {"app": name, "version": "v1"}, ("10.0.0.1", "fd00::1"), name, name, tuple(PORTS.values())
    )  # fmt: skip
    ports = {port.number: port for port in proxy.ports}
    return compile_proxy(snapshot, replace(proxy, ports=tuple(ports.values())))


@pytest.mark.parametrize(
    "security", ["", STRICT, STRICT.replace("STRICT", "DISABLE")], ids=["permissive", "strict", "disable"]
)
@pytest.mark.parametrize(
    "samples",
    [(), ("destination-rule-all", "virtual-service-reviews-90-10", "virtual-service-ratings-test-delay")],
)
def test_bookinfo_is_accepted(security: str, samples: tuple[str, ...], tmp_path: Path) -> None:
    texts = [(CASES / "istio-samples" / f"{name}.yaml").read_text() for name in samples]
    accepted(compiled("\n---\n".join([*texts, security])), tmp_path)


@pytest.mark.parametrize("name", ["reviews", "web", "details"])
@pytest.mark.parametrize(
    "mesh",
    [
        {},
        {
            "accessLogFile": "/dev/stdout",
            "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
            "pathNormalization": {"normalization": "DECODE_AND_MERGE_SLASHES"},
            "trustDomainAliases": ["old"],
        },
        {"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON", "protocolDetectionTimeout": "100ms"},
    ],
    ids=["defaults", "closed", "json"],
)
def test_every_field_at_once_is_accepted(name: str, mesh: dict[str, Any], tmp_path: Path) -> None:
    accepted(compiled(EVERYTHING, mesh, name), tmp_path)


def test_istios_configurations_together_are_accepted(tmp_path: Path) -> None:
    # Files that Istio's own tests keep beside the configuration.
    certificates = tmp_path / "tests/testdata/certs/default"
    certificates.mkdir(parents=True)
    source = (CASES / "istio-config" / "se-example.yaml").read_text()
    texts = [
        path.read_text()
        for path in sorted((CASES / "istio-config").glob("*.yaml"))
        if path.stem != "se-example"
    ]
    texts.append(
        source.replace("mode: MUTUAL", "mode: SIMPLE")
        .replace("clientCertificate:", "#")
        .replace("privateKey:", "#")
    )
    texts[-1] = texts[-1].replace("caCertificates:", "#")
    for namespace in ("default", "testns", "none", "seexamples"):
        accepted(compiled("\n---\n".join(texts), namespace=namespace), tmp_path)


def test_an_opaque_connection_is_logged_once() -> None:
    """By the chain that takes it; the listener logs those that no chain takes."""
    resources = compiled("", {"accessLogFile": "/dev/stdout"})
    outbound = resources.message(LISTENER, "virtualOutbound", listener_pb2.Listener)
    assert [list(log.filter.response_flag_filter.flags) for log in outbound.access_log] == [["NR"]]
    (chain,) = [chain for chain in outbound.filter_chains if chain.name == "virtualOutbound-catchall-tcp"]
    proxy = tcp_proxy_pb2.TcpProxy()
    chain.filters[-1].typed_config.Unpack(proxy)
    assert [log.HasField("filter") for log in proxy.access_log] == [False]
