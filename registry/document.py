"""Model values as JSON documents and back: the stored format, the same in every backend.

Rule: pure; unknown fields are ignored when read (a newer istiod may share the registry during an upgrade);
a document that cannot be read names itself in a NotARegistryError. Not for Istio's YAML (istiod.resources).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from registry.errors import HeldError, NotARegistryError
from registry.model import Health, Instance, Port, Resource, Service, merge_ports
from registry.vips import CAPACITY, virtual_ips

__all__ = [
    "ServiceEntry",
    "check_holder",
    "decode_instance",
    "decode_resource",
    "decode_service",
    "encode_instance",
    "encode_resource",
    "encode_service",
    "next_stored",
    "same_content",
    "served",
]


_MAX_WEIGHT = 2**32 - 1


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """What is stored of a service: every port that an instance ever had since it exists, and its VIP slot."""

    namespace: str
    name: str
    ports: tuple[Port, ...]
    slot: int

    def with_ports(self, latest: tuple[Port, ...]) -> ServiceEntry:
        """The entry after an instance with `latest` registered."""
        return replace(self, ports=merge_ports(self.ports, latest))


def check_holder(new: Instance, stored: Instance | None) -> None:
    """Raise HeldError when the id of `new` is another holder's."""
    if stored is not None and stored.holder != new.holder:
        namespace, account, address = stored.holder
        raise HeldError(f"instance {new.id} is claimed by {namespace}/{account} at {address or 'no address'}")


def served(entry: ServiceEntry, instances: Iterable[Instance]) -> Service:
    """The service as callers see it, given all its instances.

    Ports that no instance has any more are left out; without instances all stay, so that callers get
    "no healthy upstream" and not a closed port.
    """
    live = {port.number for instance in instances for port in instance.ports}
    ports = tuple(port for port in entry.ports if not live or port.number in live)
    vips = virtual_ips(entry.slot)
    return Service(entry.name, entry.namespace, ports, vips.v4, vips.v6)


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _load(text: object, where: str) -> dict[str, Any]:
    if not isinstance(text, str | bytes):
        raise NotARegistryError(f"{where}: text is expected")
    try:
        # A database gives text that is no UTF-8 with surrogates in it: encoding finds them.
        value = json.loads(text.encode() if isinstance(text, str) else text)
    except (ValueError, RecursionError) as error:
        raise NotARegistryError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise NotARegistryError(f"{where}: a JSON object is expected")
    return value


def _text(value: dict[str, Any], key: str, *default: str) -> str:
    found: str = _of(value, key, str, *default)
    return found


def _texts(value: dict[str, Any], key: str) -> dict[str, str]:
    found: dict[str, str] = _of(value, key, dict)
    if not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f"{key}: texts are expected")
    return found


def _number(value: dict[str, Any], key: str, most: int, *default: int) -> int:
    found: int = _of(value, key, int, *default)
    if isinstance(found, bool) or not 0 <= found <= most:
        raise ValueError(f"{key}: {found!r} is not within 0 … {most}")
    return found


def _of(value: dict[str, Any], key: str, kind: type, *default: Any) -> Any:
    found = value.get(key, default[0]) if default else value[key]
    if not isinstance(found, kind):
        raise TypeError(f"{key}: {found!s:.100} is not of type {kind.__name__}")
    return found


def _encode_port(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "number": port.number,
        "protocol": port.protocol,
        "targetPort": port.target_port,
    }


def _decode_ports(value: dict[str, Any]) -> tuple[Port, ...]:
    return tuple(
        Port(
            _text(port, "name"),
            _number(port, "number", 65535),
            _text(port, "protocol", ""),
            _number(port, "targetPort", 65535, 0),
        )
        for port in _of(value, "ports", list)
    )


def encode_instance(instance: Instance) -> str:
    """The instance as stored."""
    return _dump(
        {
            "id": instance.id,
            "service": instance.service,
            "namespace": instance.namespace,
            "addresses": list(instance.addresses),
            "ports": [_encode_port(port) for port in instance.ports],
            "labels": dict(instance.labels),
            "serviceAccount": instance.service_account,
            "locality": instance.locality,
            "weight": instance.weight,
            "health": instance.health.value,
            "node": instance.node,
            "workload": instance.workload,
            "owner": instance.owner,
            "mtls": instance.mtls,
        }
    )


def decode_instance(text: str | bytes, where: str) -> Instance:
    """Read `encode_instance`'s text; `where` names it in a NotARegistryError."""
    value = _load(text, where)
    try:
        return Instance(
            id=_text(value, "id"),
            service=_text(value, "service"),
            namespace=_text(value, "namespace"),
            addresses=_addresses(value),
            ports=_decode_ports(value),
            labels=_texts(value, "labels"),
            service_account=_text(value, "serviceAccount"),
            locality=_text(value, "locality"),
            weight=_number(value, "weight", _MAX_WEIGHT),
            health=Health(value["health"]),
            node=_text(value, "node"),
            workload=_text(value, "workload"),
            owner=_text(value, "owner"),
            mtls=_of(value, "mtls", bool),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotARegistryError(f"{where}: not an instance: {error!r}") from error


def _addresses(value: dict[str, Any]) -> tuple[str, ...]:
    found = tuple(_of(value, "addresses", list))
    for address in found:
        ip_address(address)
    return found


def encode_service(entry: ServiceEntry) -> str:
    """The service as stored."""
    return _dump(
        {
            "namespace": entry.namespace,
            "name": entry.name,
            "ports": [_encode_port(port) for port in entry.ports],
            "slot": entry.slot,
        }
    )


def decode_service(text: str | bytes, where: str) -> ServiceEntry:
    """Read `encode_service`'s text; `where` names it in a NotARegistryError."""
    value = _load(text, where)
    try:
        slot = _number(value, "slot", CAPACITY - 1)
        return ServiceEntry(_text(value, "namespace"), _text(value, "name"), _decode_ports(value), slot)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotARegistryError(f"{where}: not a service: {error!r}") from error


def encode_resource(resource: Resource) -> str:
    """The resource as stored; its version is the backend's own and not part of it."""
    return _dump(
        {
            "kind": resource.kind,
            "namespace": resource.namespace,
            "name": resource.name,
            "apiVersion": resource.api_version,
            "spec": resource.spec,
            "labels": dict(resource.labels),
            "annotations": dict(resource.annotations),
            "generation": resource.generation,
            "created": resource.created,
        }
    )


def decode_resource(text: str | bytes, version: str, where: str) -> Resource:
    """Read `encode_resource`'s text; `where` names it in a NotARegistryError."""
    value = _load(text, where)
    try:
        return Resource(
            kind=_text(value, "kind"),
            namespace=_text(value, "namespace"),
            name=_text(value, "name"),
            api_version=_text(value, "apiVersion"),
            spec=_of(value, "spec", dict),
            labels=_texts(value, "labels"),
            annotations=_texts(value, "annotations"),
            version=version,
            generation=_of(value, "generation", int),
            created=float(value["created"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NotARegistryError(f"{where}: not a resource: {error!r}") from error


def same_content(new: Resource, stored: Resource) -> bool:
    """Whether `new` says nothing that is not `stored`: then a put writes nothing."""
    return encode_resource(replace(new, generation=0, created=0.0)) == encode_resource(
        replace(stored, generation=0, created=0.0)
    )


def next_stored(new: Resource, stored: Resource | None, now: float) -> Resource:
    """`new` as it is to be written over `stored`, generation and creation time set; `now`: epoch seconds."""
    if stored is None:
        return replace(new, version="", generation=1, created=now)
    changed = _dump(new.spec) != _dump(stored.spec)
    return replace(new, version="", generation=stored.generation + changed, created=stored.created)
