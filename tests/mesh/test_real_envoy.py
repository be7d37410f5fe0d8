"""What simulated meshes are made of is accepted by the real Envoy, too: a few proxies, one static bootstrap each."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.table.build import build
from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import DATA_PLANE, Mesh
from tests.unit.istiod.test_compile_envoy import EVERYTHING, accepted

pytestmark = pytest.mark.envoy

OUTSIDE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec: {hosts: ['*.wiki.example'], ports: [{number: 443, name: tls, protocol: TLS}], resolution: NONE}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: legacy}
spec:
  hosts: [legacy.example]
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP, targetPort: 9090}]
  endpoints: [{address: 192.0.2.1}, {address: 192.0.2.2, ports: {http: 7070}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: details}
spec:
  workloadSelector: {labels: {app: details}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  ingress: [{port: {number: 9080, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:9080'}]
  egress: [{hosts: ['./ratings.default.svc.cluster.local']}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec: {selector: {matchLabels: {app: mysqldb}}, mtls: {mode: STRICT}, portLevelMtls: {'3306': {mode: PERMISSIVE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {action: DENY, rules: [{to: [{operation: {paths: ['/admin', '/x/{*}'], methods: [GET], ports: ['3306']}}]}]}
"""


def large() -> Mesh:
    """Much at once: samples, faults, TLS origination, opaque ports, policies."""
    mesh = bookinfo(
        "destination-rule-all-mtls", "virtual-service-ratings-test-delay", "virtual-service-reviews-jason-v2-v3",
        "fault-injection-details-v1", "egress-rule-google-apis",
        pathNormalization={"normalization": "DECODE_AND_MERGE_SLASHES"},
    )  # fmt: skip
    mesh.add(
        "mysql-1", service="mysqldb", port=(Port("mysql", 3306), Port("admin", 8080), Port("https", 8443))
    )
    mesh.apply(OUTSIDE)
    return mesh


@pytest.mark.parametrize("name", ["productpage-v1", "details-v1", "mysql-1"])
def test_envoy_accepts_a_proxy_of_a_large_mesh(name: str, tmp_path: Path) -> None:
    mesh = large()
    assert mesh.proxy(name).table.listeners
    accepted(mesh.compiled(name), tmp_path)


def test_a_mesh_with_every_field_becomes_a_table() -> None:
    mesh = bookinfo()
    mesh.add("web-1", service="web", port=(Port("web", 8080), Port("https", 8443)))
    mesh.apply(EVERYTHING)
    for name in mesh.workloads:
        compiled = mesh.compiled(name)
        bodies = {url: {key: one.body for key, one in compiled.of(url).items()} for url in DATA_PLANE}
        assert build(bodies).version == mesh.proxy(name).table.version
