"""istiod's configuration file, `/etc/hostmesh/istiod.yaml`, as values (DESIGN section 2).

Rule: everything is checked here, once, at start; a field that is not known is refused with its path and
the nearest known name, so that a typing error never becomes a silently missing setting. Secrets are named
here, never held: they come from systemd credentials or files. Not for resources that people apply
(istiod.resources).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import types
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from istiod.resources.mesh_config import MeshConfig
from istiod.resources.names import host_problem
from istiod.resources.reading.yaml_text import YamlError, documents
from istiod.resources.schema import Duration, NonEmpty, Spec, fields_of
from registry.opening import ConsulSettings, SqliteSettings
from wire.private_socket import LONGEST_PATH
from wire.spiffe import SpiffeError, SpiffeId

__all__ = ["Address", "Config", "ConfigError", "Listen", "UnixSocket", "load", "parse"]

DEFAULT_PATH = Path("/etc/hostmesh/istiod.yaml")
_SHORTEST_AGE, _LONGEST_AGE = 1.0, 86400.0
_SHORTEST_TTL = 60.0
_LONGEST_TTL = 90 * 86400.0
_SEGMENTS = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


class ConfigError(Exception):
    """The configuration cannot be used; one line for each problem: file, field, reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Address(Spec):
    """Where to listen: `host` is an IP address or a name, "" for all addresses; `port` 0 picks a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixSocket(Spec):
    """Where to listen on this machine: a socket at the absolute path `path`, which only istiod's own user may open."""

    path: Path

    def __str__(self) -> str:
        return f"unix://{self.path}"


def _address(value: object) -> object:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("address", 'must be an address like "0.0.0.0:15012" or "[::1]:15012"')
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise PydanticCustomError("address", "must end in a port, as 0.0.0.0:15012 does")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise PydanticCustomError("address", "has no IPv6 address between its brackets") from None
    elif ":" in host:
        raise PydanticCustomError("address", "an IPv6 address must stand in brackets: [::1]:15012")
    elif host and (problem := host_problem(host, wildcard=False)):
        raise PydanticCustomError("address", "the host {problem}", {"problem": problem})
    return Address(host=host, port=int(port))


def _local_address(value: object) -> object:
    if not value:
        return None
    if isinstance(value, UnixSocket):
        return value
    return _unix_socket(value) if isinstance(value, str) and value.startswith("unix:") else _address(value)


def _unix_socket(value: str) -> UnixSocket:
    path = value.removeprefix("unix://")
    if not path.startswith("/") or path.endswith("/"):
        raise PydanticCustomError(
            "socket", "must be an absolute path of a socket after unix://, as unix:///run/hostmesh/xds.sock"
        )
    if "\0" in path:
        raise PydanticCustomError("socket", "has a character that no path may have")
    if (length := len(os.fsencode(path))) > LONGEST_PATH:
        raise PydanticCustomError(
            "socket",
            "the path has {length} bytes; that of a Unix socket has at most {most}",
            {"length": length, "most": LONGEST_PATH},
        )
    return UnixSocket(path=Path(path))


def _path(value: object) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.startswith("/"):
        raise PydanticCustomError("path", "must be an absolute path")
    return Path(value)


def _server_name(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("name", "must be a host name or an IP address")
    if _is_ip(value):
        return value
    if problem := host_problem(value, wildcard=False):
        raise PydanticCustomError("name", "{problem}", {"problem": problem})
    return value


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


ListenAddress = Annotated[Address, BeforeValidator(_address)]
LocalAddress = Annotated[Address | UnixSocket | None, BeforeValidator(_local_address)]
AbsolutePath = Annotated[Path, BeforeValidator(_path)]
CredentialName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,255}$")]


class Consul(Spec):
    """A Consul by its HTTP API. Its ACL token is a systemd credential or a file, never text in this file."""

    address: NonEmpty
    prefix: NonEmpty = "hostmesh"
    token_credential: CredentialName | None = None
    token_file: AbsolutePath | None = None
    ca_file: AbsolutePath | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        url = urlsplit(self.address)
        if url.scheme not in {"http", "https", "unix"} or not (
            url.path if url.scheme == "unix" else url.hostname
        ):
            yield "address", 'must be a URL like "http://127.0.0.1:8500", "https://…" or "unix:///…"'
        if url.username is not None or url.password is not None:
            yield "address", "must not carry a user or password; use tokenCredential"
        if not _SEGMENTS.fullmatch(self.prefix):
            yield "prefix", "must be of letters, digits, '.', '_', '-', with single slashes inside"
        if self.token_credential is not None and self.token_file is not None:
            yield "tokenFile", "may not be set together with tokenCredential"


class RegistryChoice(Spec):
    """Exactly one backend; neither means SQLite below stateDir."""

    sqlite: AbsolutePath | None = None
    consul: Consul | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.sqlite is not None and self.consul is not None:
            yield "consul", "may not be set together with sqlite"


class Listen(Spec):
    """The four listeners. `hostNames`: further names and addresses for istiod's own certificate."""

    xds: ListenAddress = Address(host="0.0.0.0", port=15012)  # noqa: S104 - hosts of the mesh connect here
    xds_plaintext: LocalAddress = None
    """Nothing proves there who asks, so it is off unless it is configured, and then for this machine alone.

    On a Unix socket the kernel lets only istiod's own user (and root) connect.
    """
    admin: ListenAddress = Address(host="127.0.0.1", port=8443)
    monitoring: ListenAddress | None = Address(host="127.0.0.1", port=15014)
    host_names: tuple[Annotated[str, BeforeValidator(_server_name)], ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        plaintext = self.xds_plaintext
        if isinstance(plaintext, Address) and not _is_loopback(plaintext.host):
            yield (
                "xdsPlaintext",
                "must be an address of loopback, as 127.0.0.1:15010, or a Unix socket, as "
                "unix:///run/hostmesh/xds.sock: nothing proves there who asks; "
                'hosts use xds, and "" turns it off',
            )


class Ca(Spec):
    """The authority. `plugged`: a directory as Istio's cacerts secret; None: a root of our own.

    `renewalGrace`: how long after its end a certificate still renews, for hosts that were away; 0s: not at all.
    """

    workload_certificate_ttl: Annotated[Duration, Field(alias="workloadCertificateTTL")] = 24 * 3600.0
    renewal_grace: Annotated[Duration, Field(alias="renewalGrace")] = 7 * 24 * 3600.0
    plugged: AbsolutePath | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not _SHORTEST_TTL <= self.workload_certificate_ttl <= _LONGEST_TTL:
            yield "workloadCertificateTTL", "must be between 1m and 2160h (90 days)"
        if not 0 <= self.renewal_grace <= _LONGEST_TTL:
            yield "renewalGrace", "must be between 0s and 2160h (90 days)"

    @property
    def workload_ttl(self) -> timedelta:
        """The lifetime of a workload's certificate."""
        return timedelta(seconds=self.workload_certificate_ttl)


class Registration(Spec):
    """How instances come and go. `graceSeconds`: how long one outlives its broken connection."""

    grace_seconds: Annotated[float, Field(ge=0, le=86400)] = 30.0


class Limits(Spec):
    """What peers of the xDS port may cost. A peer is an identity at an address (IPv6: a /64; Unix socket: a user)."""

    stream_max_age: Duration = 1800.0
    """After so long a stream is ended (a tenth earlier or later), and its agent connects anew."""
    streams_per_peer: Annotated[int, Field(ge=1, le=100_000)] = 256
    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Of peers with an identity."""
    anonymous_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 8_192
    """Of peers that have shown none yet, or have none."""

    def rules(self) -> Iterator[tuple[str, str]]:
        if not _SHORTEST_AGE <= self.stream_max_age <= _LONGEST_AGE:
            yield "streamMaxAge", "must be between 1s and 24h"


class Config(Spec):
    """The whole file."""

    state_dir: AbsolutePath = Path("/var/lib/hostmesh")
    registry: RegistryChoice = RegistryChoice()
    listen: Listen = Listen()
    ca: Ca = Ca()
    mesh: MeshConfig = MeshConfig()
    registration: Registration = Registration()
    limits: Limits = Limits()

    def rules(self) -> Iterator[tuple[str, str]]:
        try:
            SpiffeId(self.mesh.trust_domain, "default", "default")
        except SpiffeError as error:
            yield "mesh.trustDomain", str(error)
        for number, alias in enumerate(self.mesh.trust_domain_aliases):
            try:
                SpiffeId(alias, "default", "default")
            except SpiffeError as error:
                yield f"mesh.trustDomainAliases[{number}]", str(error)

    def registry_settings(self, environment: Mapping[str, str]) -> SqliteSettings | ConsulSettings:
        """The registry to open, with Consul's token read. Raises ConfigError.

        `environment` gives systemd's CREDENTIALS_DIRECTORY.
        """
        consul = self.registry.consul
        if consul is None:
            return SqliteSettings(self.registry.sqlite or self.state_dir / "registry.db")
        return ConsulSettings(
            consul.address, consul.prefix.strip("/"), _token(consul, environment), consul.ca_file
        )


def load(path: Path) -> Config:
    """Read and check the file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Config:
    """Check the text (empty: all defaults); `source` names it in the errors. Raises ConfigError."""
    try:
        found = list(documents(text))
    except YamlError as error:
        raise ConfigError([f"{source}: {error}"]) from error
    if len(found) > 1:
        raise ConfigError([f"{source}: line {found[1].line}: only one document is expected"])
    value = found[0].value if found else {}
    if not isinstance(value, dict):
        raise ConfigError([f"{source}: a mapping of settings is expected"])
    try:
        config = Config.model_validate(value)
    except ValidationError as failure:
        raise ConfigError([f"{source}: {_explain(error)}" for error in failure.errors()]) from None
    if problems := [f"{source}: {path}: {reason}" for path, reason in _broken_rules(config, "")]:
        raise ConfigError(problems)
    return config


def _token(consul: Consul, environment: Mapping[str, str]) -> str | None:
    path = consul.token_file
    if consul.token_credential is not None:
        directory = environment.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            field = "registry.consul.tokenCredential"
            raise ConfigError(
                [f"{field}: systemd passed no credentials; use LoadCredential={consul.token_credential}:PATH"]
            )
        path = Path(directory) / consul.token_credential
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"registry.consul: cannot read the token: {error}"]) from error


def _broken_rules(message: Spec, path: str) -> Iterator[tuple[str, str]]:
    for below, reason in message.rules():
        yield f"{path}{below}", reason
    for name, field in fields_of(type(message)).items():
        value = getattr(message, _attribute(type(message), name, field))
        if isinstance(value, Spec):
            yield from _broken_rules(value, f"{path}{name}.")


def _attribute(model: type[Spec], alias: str, field: Any) -> str:
    return next(name for name, info in model.model_fields.items() if info is field or info.alias == alias)


def _explain(error: Any) -> str:
    """One of pydantic's errors as `field: reason`."""
    location = list(error["loc"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        known = list(fields_of(_model_at(location[:-1])))
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return f"{path}: unknown field; " + (
            f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        )
    if error["type"] in {"model_type", "model_attributes_type"}:
        return f"{path}: a mapping is expected"
    if error["type"] == "missing":
        return f"{path}: is required"
    return f"{path}: {error['msg']}"


def _model_at(location: list[str | int]) -> type[Spec]:
    model: type[Spec] = Config
    for part in location:
        model = _spec_in(fields_of(model)[str(part)].annotation) or model
    return model


def _spec_in(annotation: Any) -> type[Spec] | None:
    """The message class that a field's type allows, if any."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    if get_origin(annotation) in {Union, types.UnionType, Annotated}:
        return next((spec for part in get_args(annotation) if (spec := _spec_in(part))), None)
    return None
