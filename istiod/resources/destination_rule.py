"""networking.istio.io DestinationRule: how a host is called: pools, balancing, TLS, subsets.

Not for: turning it into Envoy clusters (istiod/compile/traffic_policy.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from istiod.resources.names import (
    domain_problem,
    export_to_problems,
    ip_problem,
    label_problem,
    label_problems,
)
from istiod.resources.schema import (
    Bool,
    Duration,
    Int32,
    IntPercent,
    NonEmpty,
    Percent100,
    PortNumber,
    PositiveDuration,
    Spec,
    Str,
    UInt32,
    empty,
    repeated,
    unsupported,
)
from istiod.resources.selector import WorkloadSelector
from istiod.resources.traffic.connection_pool import ConnectionPool
from istiod.resources.traffic.load_balancer import LoadBalancer


class OutlierDetection(Spec):
    """When an instance is ejected for a while."""

    consecutive_errors: Int32 | None = None
    split_external_local_origin_errors: Bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive5xx_errors: UInt32 | None = None
    interval: PositiveDuration | None = None
    base_ejection_time: PositiveDuration | None = None
    max_ejection_percent: IntPercent | None = None
    min_health_percent: IntPercent | None = None
    outlier_detection_http_error_codes: tuple[Annotated[Int32, Field(ge=100, le=599)], ...] = unsupported(())

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.consecutive_errors is not None and self.consecutive_errors < 0:
            yield "consecutiveErrors", "must not be negative"
        if self.consecutive_local_origin_failures and not self.split_external_local_origin_errors:
            yield "consecutiveLocalOriginFailures", "needs splitExternalLocalOriginErrors: true"


class ClientTls(Spec):
    """How TLS is originated towards the host."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: Str = ""
    private_key: Str = ""
    ca_certificates: Str = ""
    ca_crl: Str = ""
    credential_name: Str = unsupported(
        "", reason="is not supported by this version: name the files of the caller's host instead"
    )
    subject_alt_names: tuple[NonEmpty, ...] = ()
    sni: Str = ""
    insecure_skip_verify: Bool | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.mode == "MUTUAL" and not self.credential_name:
            if not self.client_certificate:
                yield "clientCertificate", "must be set for MUTUAL"
            if not self.private_key:
                yield "privateKey", "must be set for MUTUAL"
        files = (
            ("clientCertificate", self.client_certificate),
            ("privateKey", self.private_key),
            ("caCertificates", self.ca_certificates),
            ("caCrl", self.ca_crl),
        )
        if self.mode == "ISTIO_MUTUAL":
            for name, value in (*files[:3], ("credentialName", self.credential_name)):
                if value:
                    yield name, "may not be set for ISTIO_MUTUAL"
        elif self.credential_name:
            for name, value in files:
                if value:
                    yield name, "may not be set together with credentialName"
        if self.insecure_skip_verify:
            if self.ca_certificates or self.subject_alt_names:
                yield "insecureSkipVerify", "may not be set together with caCertificates or subjectAltNames"
            if self.credential_name and self.mode == "SIMPLE":
                yield "insecureSkipVerify", "may not be set together with credentialName"


class Tunnel(Spec):
    """CONNECT tunnel through another proxy."""

    protocol: Str = ""
    target_host: NonEmpty
    target_port: PortNumber

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.protocol not in ("", "CONNECT", "POST"):
            yield "protocol", "must be CONNECT or POST"
        if ip_problem(self.target_host) and (problem := domain_problem(self.target_host, wildcard=False)):
            yield "targetHost", problem


class ProxyProtocol(Spec):
    """PROXY protocol towards the upstream."""

    version: Literal["V1", "V2"] = "V1"


class RetryBudget(Spec):
    """Concurrent retries as a share of active requests."""

    percent: Percent100 | None = None
    min_retry_concurrency: UInt32 | None = None
    budget_interval: Duration | None = unsupported()


class PortNumberSelector(Spec):
    """A port by number."""

    number: PortNumber


class PortTrafficPolicy(Spec):
    """The policy of one port; replaces, does not merge with, the destination's."""

    port: PortNumberSelector
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if all(value is None for name, value in self if name != "port"):
            yield "", "must set at least one of loadBalancer, connectionPool, outlierDetection, tls"


class TrafficPolicy(Spec):
    """The policy of a host or of a subset."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    tunnel: Tunnel | None = unsupported()
    proxy_protocol: ProxyProtocol | None = unsupported()
    retry_budget: RetryBudget | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not any(value for _, value in self):
            yield "", "must set at least one of its fields"
        if self.tunnel is not None and self.proxy_protocol is not None:
            yield "proxyProtocol", "may not be set together with tunnel"
        numbers = [setting.port.number for setting in self.port_level_settings]
        if len(set(numbers)) != len(numbers):
            yield "portLevelSettings", "the same port is listed twice"


class Subset(Spec):
    """A named part of the instances, by labels."""

    name: NonEmpty
    labels: dict[str, Str] = empty()
    traffic_policy: TrafficPolicy | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if problem := label_problem(self.name):
            yield "name", problem
        yield from label_problems("labels", self.labels)


class DestinationRule(Spec):
    """The rule of one host."""

    host: NonEmpty
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[NonEmpty, ...] = ()
    workload_selector: WorkloadSelector | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if problem := domain_problem(self.host, wildcard=True):
            yield "host", problem
        for index in repeated(subset.name for subset in self.subsets):
            yield f"subsets[{index}].name", f"the subset {self.subsets[index].name!r} is there twice"

    def document_rules(self, namespace: str, annotations: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        yield from export_to_problems(self.export_to, namespace, selector=self.workload_selector is not None)
