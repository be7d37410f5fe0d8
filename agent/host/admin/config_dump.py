"""/config_dump: the configuration in use, in Envoy's shape (envoy.admin.v3.ConfigDump), secrets redacted.

Rule: no private key, password or token leaves this module, wherever in a resource it stands.
Not for: the resources' meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from agent.host.admin.sources import Resource, Resources
from agent.table.build import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from agent.table.decode.types import message_class

_ADMIN = "type.googleapis.com/envoy.admin.v3."
_SECRET_FIELDS = frozenset(
    {
        "private_key",
        "password",
        "session_ticket_keys",
        "generic_secret",
        "hmac_secret",
        "token_secret",
        "local_jwks",
    }
)
REDACTED = "[redacted]"

Wanted = Callable[[str], bool]


def config_dump(
    bootstrap: Message | None, resources: Resources, *, include_eds: bool, wanted: Wanted = lambda name: True
) -> dict[str, Any]:
    """The whole dump; `wanted` chooses resources by name (name_regex)."""
    configs: list[dict[str, Any]] = []
    static: Mapping[str, Any] = {}
    if bootstrap is not None:
        shown = redacted(as_dict(bootstrap))
        static = shown.get("static_resources", {})
        configs.append({"@type": _ADMIN + "BootstrapConfigDump", "bootstrap": shown})
    configs.append(
        {
            "@type": _ADMIN + "ClustersConfigDump",
            **_entries("static_clusters", "cluster", CLUSTER, static.get("clusters", ()), wanted),
            **_listed(
                "dynamic_active_clusters",
                (
                    {"version_info": resource.version, "cluster": value}
                    for resource, value in _decoded(resources.get(CLUSTER, ()), wanted)
                ),
            ),
        }
    )
    configs.append(
        {
            "@type": _ADMIN + "ListenersConfigDump",
            **_entries("static_listeners", "listener", LISTENER, static.get("listeners", ()), wanted),
            **_listed(
                "dynamic_listeners",
                (
                    {
                        "name": resource.name,
                        "active_state": {"version_info": resource.version, "listener": value},
                    }
                    for resource, value in _decoded(resources.get(LISTENER, ()), wanted)
                ),
            ),
        }
    )
    configs.append(
        {
            "@type": _ADMIN + "RoutesConfigDump",
            **_entries("static_route_configs", "route_config", ROUTE, _inline_routes(static), wanted),
            **_listed(
                "dynamic_route_configs",
                (
                    {"version_info": resource.version, "route_config": value}
                    for resource, value in _decoded(resources.get(ROUTE, ()), wanted)
                ),
            ),
        }
    )
    if include_eds:
        configs.append(
            {
                "@type": _ADMIN + "EndpointsConfigDump",
                **_listed(
                    "dynamic_endpoint_configs",
                    (
                        {"version_info": resource.version, "endpoint_config": value}
                        for resource, value in _decoded(resources.get(ENDPOINT, ()), wanted)
                    ),
                ),
            }
        )
    configs.append(
        {
            "@type": _ADMIN + "SecretsConfigDump",
            **_entries("static_secrets", "secret", SECRET, static.get("secrets", ()), wanted),
            **_listed(
                "dynamic_active_secrets",
                (
                    {"name": resource.name, "version_info": resource.version, "secret": value}
                    for resource, value in _decoded(resources.get(SECRET, ()), wanted)
                ),
            ),
        }
    )
    return {"configs": configs}


def one_field(dump: Mapping[str, Any], field: str) -> dict[str, Any] | None:
    """`?resource=dynamic_listeners`: the entries of that field as configs; None where nothing has it."""
    for section in dump["configs"]:
        if field in section:
            found = section[field]
            entries = found if isinstance(found, list) else [found]
            kind = {"@type": _ADMIN + section["@type"].rpartition(".")[2] + "." + _camel(field)}
            return {"configs": [{**kind, **entry} for entry in entries]}
    return None


def _camel(field: str) -> str:
    singular = field.removesuffix("s")
    return "".join(part.capitalize() for part in singular.split("_"))


def _listed(field: str, entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Fields without entries are left out, as JSON of protobuf has it."""
    found = list(entries)
    return {field: found} if found else {}


def _entries(
    field: str, key: str, type_url: str, values: Iterable[Mapping[str, Any]], wanted: Wanted
) -> dict[str, Any]:
    return _listed(
        field, ({key: {"@type": type_url, **value}} for value in values if wanted(str(value.get("name", ""))))
    )


def _decoded(resources: Iterable[Resource], wanted: Wanted) -> Iterable[tuple[Resource, dict[str, Any]]]:
    for resource in resources:
        if wanted(resource.name):
            try:
                value = as_dict(AnyMessage.FromString(resource.body))
            except (DecodeError, TypeError, json_format.Error) as error:
                # What was not understood here was refused before; a dump must not fail for it.
                value = {"error": f"not decodable: {error}"}
            yield resource, redacted(value)


class _EveryType:
    """A descriptor pool for json_format that imports the classes inside Any fields when it meets them."""

    def FindMessageTypeByName(self, full_name: str) -> Any:  # noqa: N802 (protobuf's name)
        """The descriptor; KeyError for a type that nobody knows."""
        kind = message_class(full_name)
        if kind is None:
            raise KeyError(full_name)
        return kind.DESCRIPTOR


EVERY_TYPE: Any = _EveryType()


def as_dict(message: Message) -> dict[str, Any]:
    """A message as Envoy prints it: proto field names, Any fields opened."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=EVERY_TYPE)


def _inline_routes(static: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Route configurations inside the listeners' connection managers (Envoy lists them as static too)."""
    found: list[Mapping[str, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if isinstance(node.get("route_config"), Mapping):
                found.append(node["route_config"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(static.get("listeners", ()))
    return found


def redacted(node: Any, secret: bool = False) -> Any:
    """The same JSON tree with the contents of secret fields replaced; file names stay."""
    if isinstance(node, Mapping):
        return {
            key: redacted(value, secret or key in _SECRET_FIELDS) if key != "filename" else value
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [redacted(value, secret) for value in node]
    return REDACTED if secret and isinstance(node, str) and node else node
