"""networking.istio.io Gateway: what the mesh's edge listens on. Validated; has no effect yet (see kinds.py)."""

from __future__ import annotations

from collections.abc import Iterator

from istiod.resources.names import UNIX, ip_problem, server_host_problem
from istiod.resources.schema import NonEmpty, PortNumber, Spec, Str, empty, repeated
from istiod.resources.server_tls import ServerTls
from istiod.resources.service_entry import PROTOCOLS


class GatewayPort(Spec):
    """A port of a gateway."""

    number: PortNumber
    protocol: NonEmpty
    name: NonEmpty
    target_port: PortNumber | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.protocol.upper() not in PROTOCOLS:
            yield "protocol", f"unsupported protocol {self.protocol!r}; one of {', '.join(PROTOCOLS)}"
        if self.target_port is not None:
            yield "targetPort", "has no meaning for a Gateway"


class Server(Spec):
    """One listening port of a gateway and the hosts it serves."""

    port: GatewayPort
    bind: Str = ""
    hosts: tuple[NonEmpty, ...]
    tls: ServerTls | None = None
    default_endpoint: Str = ""
    name: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.hosts:
            yield "hosts", "must not be empty"
        for index, text in enumerate(self.hosts):
            if problem := server_host_problem(text):
                yield f"hosts[{index}]", problem
        if self.bind and ip_problem(self.bind) and not self.bind.startswith(UNIX):
            yield "bind", f"{self.bind!r} is neither an IP address nor unix://PATH"
        encrypted = self.port.protocol.upper() in ("HTTPS", "TLS")
        if encrypted and self.tls is None:
            yield "tls", f"must be set for {self.port.protocol}"
        elif not encrypted and self.tls is not None and self.tls.mode != "PASSTHROUGH":
            yield "tls", f"may not be set for {self.port.protocol}, but for tls.httpsRedirect"


class Gateway(Spec):
    """What the mesh's edge listens on. Has no effect yet (see kinds.py)."""

    selector: dict[str, Str] = empty()
    servers: tuple[Server, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.servers:
            yield "servers", "must not be empty"
        for index in repeated(server.port.name for server in self.servers):
            name = self.servers[index].port.name
            yield f"servers[{index}].port.name", f"the port name {name!r} is there twice"
