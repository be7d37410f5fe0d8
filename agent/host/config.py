"""The agent's configuration file, `/etc/hostmesh/agent.yaml`, as values (DESIGN section 2).

Rule: everything is checked here, once, before anything is done; a field that is not known is refused with its
path and the nearest known name, so that a typing error never becomes a silently missing protection.
Not for: finding out what the host is like (addresses, users): see `agent/host/node.py`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

DEFAULT_PATH = Path("/etc/hostmesh/agent.yaml")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class AgentConfigError(Exception):
    """The configuration cannot be used; one line a problem, each with the field's path."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def _name(value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise ValueError("must be a DNS label: lower case letters, digits and '-', at most 63 characters")
    return value


def _domain(value: str) -> str:
    if len(value) > 253 or not _DOMAIN.fullmatch(value):
        raise ValueError("must be a lower-case DNS name")
    return value


def _account(value: str) -> str:
    if len(value) > 253 or not _DOMAIN.fullmatch(value):
        raise ValueError("must be a service account's name: lower case letters, digits, '-' and '.'")
    return value


def _authority(value: str) -> str:
    try:
        HostPort.parse(value)
    except ValueError as error:
        raise ValueError(str(error)) from None
    return value


def _address(value: str) -> str:
    return str(ip_address(value))


PortNumber = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, AfterValidator(_name)]
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class HostPort:
    """An authority `host:port` or `[v6]:port`."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Raise ValueError when it is not an authority with a port (RFC 3986 §3.2)."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError("must be HOST:PORT, for example istiod.example.net:15012")
        if host.startswith("[") and host.endswith("]"):
            return cls(str(ip_address(host[1:-1])), int(port))
        if ":" in host or not re.fullmatch(r"[A-Za-z0-9._-]+", host):
            raise ValueError("must be HOST:PORT; an IPv6 address is written in brackets")
        return cls(host, int(port))


class Section(BaseModel):
    """One mapping of the file: frozen, and no field is accepted that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class JoinToken(Section):
    """Where the join token is: a systemd credential's name (`LoadCredential=`) or a file."""

    credential: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]+$")
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> JoinToken:
        if (self.credential is None) == (self.file is None):
            raise ValueError("give exactly one of credential and file")
        return self

    def path(self) -> Path | None:
        """The file to read; None when systemd passed no credentials directory."""
        if self.file is not None:
            return self.file
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        return Path(directory) / str(self.credential) if directory else None


class WorkloadPort(Section):
    """A port of the workload. `name` selects the protocol as in Istio (`http`, `grpc-api`, `tcp`…)."""

    name: Name
    port: PortNumber
    protocol: str | None = None
    target_port: PortNumber | None = Field(default=None, alias="targetPort")


class HttpHeader(Section):
    """One extra header field of an HTTP probe."""

    name: str = Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
    value: str = Field(pattern=r"^[^\r\n\x00]*$")


class HttpGet(Section):
    """Kubernetes HTTPGetAction; `host` defaults to the address that callers reach the workload at."""

    path: str = Field(default="/", pattern=r"^/[\x21-\x7e]*$")
    port: PortNumber
    host: Annotated[str, AfterValidator(_address)] | None = None
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[HttpHeader, ...] = Field(default=(), alias="httpHeaders")


class TcpSocket(Section):
    """Kubernetes TCPSocketAction; `host` defaults to the address that callers reach the workload at."""

    port: PortNumber
    host: Annotated[str, AfterValidator(_address)] | None = None


class ExecAction(Section):
    """Kubernetes ExecAction: no shell; exit status 0 is success. Runs as the workload's user, else as the workers'."""

    command: tuple[str, ...] = Field(min_length=1)


class Probe(Section):
    """Readiness of the application, with Kubernetes' field names and defaults. Times in seconds."""

    http_get: HttpGet | None = Field(default=None, alias="httpGet")
    tcp_socket: TcpSocket | None = Field(default=None, alias="tcpSocket")
    exec: ExecAction | None = None
    initial_delay_seconds: float = Field(default=0, alias="initialDelaySeconds", ge=0)
    period_seconds: float = Field(default=10, alias="periodSeconds", gt=0)
    timeout_seconds: float = Field(default=1, alias="timeoutSeconds", gt=0)
    success_threshold: int = Field(default=1, alias="successThreshold", ge=1)
    failure_threshold: int = Field(default=3, alias="failureThreshold", ge=1)

    @model_validator(mode="after")
    def _one(self) -> Probe:
        if sum(action is not None for action in (self.http_get, self.tcp_socket, self.exec)) != 1:
            raise ValueError("give exactly one of httpGet, tcpSocket and exec")
        return self


class Workload(Section):
    """One service instance on this host, with an identity of its own."""

    service: Name
    namespace: Name = "default"
    service_account: Annotated[str, AfterValidator(_account)] = Field(
        default="default", alias="serviceAccount"
    )
    labels: dict[str, str] = Field(default_factory=dict)
    ports: tuple[WorkloadPort, ...] = ()
    user: str | int | None = None
    """This Unix user's traffic is this workload's. Without it: all traffic that is nobody else's."""
    probe: Probe | None = None
    locality: str | None = None
    weight: int = Field(default=1, ge=1, le=128)
    join_token: JoinToken | None = Field(default=None, alias="joinToken")
    """Its own token, where the host's does not cover its namespace (a token is for one)."""

    @property
    def key(self) -> str:
        """`namespace/service`: the workload's name on this host."""
        return f"{self.namespace}/{self.service}"


class Capture(Section):
    """What nftables redirects. Port 22 is never captured, whatever is written here."""

    enabled: bool = True
    include_inbound_ports: Literal["declared", "*"] | tuple[PortNumber, ...] = Field(
        default="declared", alias="includeInboundPorts"
    )
    """`declared`: the workloads' ports. `*`: every port, also those of services that are not the mesh's business."""
    exclude_inbound_ports: tuple[PortNumber, ...] = Field(default=(), alias="excludeInboundPorts")
    include_outbound_cidrs: tuple[Network, ...] | None = Field(default=None, alias="includeOutboundCIDRs")
    exclude_outbound_cidrs: tuple[Network, ...] = Field(default=(), alias="excludeOutboundCIDRs")
    exclude_outbound_ports: tuple[PortNumber, ...] = Field(default=(), alias="excludeOutboundPorts")
    exclude_outbound_users: tuple[str | int, ...] = Field(default=(), alias="excludeOutboundUsers")
    dns: bool = True


class Ports(Section):
    """The agent's own ports (Istio's numbers); a second workload's three lie 100 higher, and so on."""

    admin: PortNumber = 15000
    outbound: PortNumber = 15001
    inbound: PortNumber = 15006
    metrics: PortNumber = 15020
    readiness: PortNumber = 15021
    dns: PortNumber = 15053
    dns_shared: PortNumber = Field(default=15054, alias="dnsShared")
    """For the questions of users without a workload, where every workload has a user."""


class Proxy(Section):
    """The data plane's processes."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    drain_seconds: float = Field(default=30, alias="drainSeconds", ge=0, le=3600)
    user: str | int | None = None
    """When the agent starts as root: the workers run as this user, without capabilities."""
    ports: Ports = Ports()

    def worker_count(self) -> int:
        """`auto`: one a CPU that this process may use."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers


class AgentConfig(Section):
    """The whole file."""

    istiod: tuple[Annotated[str, AfterValidator(_authority)], ...] = Field(min_length=1)
    join_token: JoinToken | None = Field(default=None, alias="joinToken")
    locality: str = Field(default="", pattern=r"^[^/]*(/[^/]*){0,2}$")
    workloads: tuple[Workload, ...] = Field(min_length=1)
    capture: Capture = Capture()
    proxy: Proxy = Proxy()
    state_dir: Path = Field(default=Path("/var/lib/hostmesh"), alias="stateDir")
    run_dir: Path = Field(default=Path("/run/hostmesh"), alias="runDir")
    addresses: tuple[Annotated[str, AfterValidator(_address)], ...] = ()
    """Where other hosts reach this one; default: the source addresses of its default routes."""
    trust_domain: Annotated[str, AfterValidator(_domain)] = Field(
        default="cluster.local", alias="trustDomain"
    )
    domain: Annotated[str, AfterValidator(_domain)] = "cluster.local"
    """The suffix of mesh names: `reviews.default.svc.<domain>`."""
    cluster_id: str = Field(default="hostmesh", alias="clusterID", pattern=r"^[A-Za-z0-9._-]+$")
    mesh_id: str = Field(default="hostmesh", alias="meshID", pattern=r"^[A-Za-z0-9._-]+$")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", alias="logLevel")

    @model_validator(mode="after")
    def _distinct(self) -> AgentConfig:
        keys = [workload.key for workload in self.workloads]
        users = [workload.user for workload in self.workloads]
        ports = [port.port for workload in self.workloads for port in workload.ports]
        for what, values in (("workload", keys), ("user", users), ("port", ports)):
            seen: set[object] = set()
            for value in values:
                if value in seen:
                    if what == "user" and value is None:
                        raise ValueError(
                            "only one workload may be without a user: it takes all other traffic"
                        )
                    raise ValueError(f"the {what} {value} is given to two workloads")
                seen.add(value)
        own = self.proxy.ports.model_dump()
        taken: dict[int, str] = {}
        for name, number in [*own.items(), *self._workload_ports()]:
            if number in taken:
                raise ValueError(f"proxy port {number} would serve both {taken[number]} and {name}")
            taken[number] = name
        if len(self.workloads) > 9:
            raise ValueError("at most 9 workloads on one host")
        return self

    def _workload_ports(self) -> Iterator[tuple[str, int]]:
        for index in range(1, len(self.workloads)):
            ports = self.proxy_ports(index)
            yield f"outbound of workload {index}", ports.outbound
            yield f"inbound of workload {index}", ports.inbound
            yield f"dns of workload {index}", ports.dns

    def proxy_ports(self, index: int) -> Ports:
        """The proxy ports of the workload at `index`."""
        first, step = self.proxy.ports, 100 * index
        return first.model_copy(
            update={
                "outbound": first.outbound + step,
                "inbound": first.inbound + step,
                "dns": first.dns + step,
            }
        )

    @property
    def shares_dns(self) -> bool:
        """Whether questions of users without a workload are answered: those of a resolver daemon are everybody's."""
        return self.capture.dns and all(workload.user is not None for workload in self.workloads)

    def workload_locality(self, workload: Workload) -> str:
        """The workload's own locality, or the host's."""
        return self.locality if workload.locality is None else workload.locality


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def parse(text: str) -> AgentConfig:
    """The configuration in a YAML text; AgentConfigError lists every problem with its path."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise AgentConfigError([" ".join(str(error).split())]) from error
    if not isinstance(data, dict):
        raise AgentConfigError(["the file must hold a mapping"])
    try:
        return AgentConfig.model_validate(data)
    except ValidationError as error:
        items = error.errors()
        nested = {item["loc"][:depth] for item in items for depth in range(1, len(item["loc"]))}
        # A list whose only item is wrong is also reported as too short: once is enough.
        kept = [item for item in items if item["type"] != "too_short" or item["loc"] not in nested]
        raise AgentConfigError([_explain(item) for item in kept]) from error


def load(path: Path) -> AgentConfig:
    """Read and parse the file; AgentConfigError also when it cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AgentConfigError([f"{path}: {error}"]) from error


def _explain(item: Any) -> str:
    location = [part for part in item["loc"] if not (isinstance(part, str) and _is_union_tag(part))]
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else str(part))
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _known_names(location[:-1]), n=1, cutoff=0.5)
        message = "unknown field" + (f", did you mean {near[0]}?" if near else "")
    elif item["type"] == "missing":
        message = "required"
    return f"{path}: {message}" if path else message


def _is_union_tag(part: str) -> bool:
    return "[" in part or part in {"int", "str", "IPv4Network", "IPv6Network"}


def _known_names(location: list[Any]) -> list[str]:
    model: Any = AgentConfig
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        model = _section_of(field.annotation) if field is not None else None
    return [f.alias or n for n, f in model.model_fields.items()] if model is not None else []


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None
