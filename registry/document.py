"""Model values as JSON documents and back: the stored format, the same in every backend.

Rule: pure; unknown fields are ignored when read (a newer istiod may share the registry during an upgrade);
a document that cannot be read names itself in a NotARegistryError. Not for Istio's YAML (istiod.resources).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from registry.errors import HeldError, NotARegistryError
from registry.model import Health, Instance, Port, Resource, Service, merge_ports
from registry.vips import virtual_ips

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


def _load(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise NotARegistryError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise NotARegistryError(f"{where}: a JSON object is expected")
    return value


def _encode_port(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "number": port.number,
        "protocol": port.protocol,
        "targetPort": port.target_port,
    }


def _decode_port(value: dict[str, Any]) -> Port:
    return Port(value["name"], int(value["number"]), value.get("protocol", ""), value.get("targetPort", 0))


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
            id=value["id"],
            service=value["service"],
            namespace=value["namespace"],
            addresses=tuple(value["addresses"]),
            ports=tuple(_decode_port(port) for port in value["ports"]),
            labels=value["labels"],
            service_account=value["serviceAccount"],
            locality=value["locality"],
            weight=value["weight"],
            health=Health(value["health"]),
            node=value["node"],
            workload=value["workload"],
            owner=value["owner"],
            mtls=value["mtls"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NotARegistryError(f"{where}: not an instance: {error!r}") from error


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
        ports = tuple(_decode_port(port) for port in value["ports"])
        return ServiceEntry(value["namespace"], value["name"], ports, int(value["slot"]))
    except (KeyError, TypeError, ValueError) as error:
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
            kind=value["kind"],
            namespace=value["namespace"],
            name=value["name"],
            api_version=value["apiVersion"],
            spec=value["spec"],
            labels=value["labels"],
            annotations=value["annotations"],
            version=version,
            generation=value["generation"],
            created=value["created"],
        )
    except (KeyError, TypeError, ValueError) as error:
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
