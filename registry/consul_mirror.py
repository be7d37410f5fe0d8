"""How an instance looks in Consul's own catalog: the operations that show it there and take it away.

Rule: pure; a mirror for people, `consul catalog`, Consul's UI and its DNS, never read back. Nodes are named
PREFIX-HOST: a Consul agent on the same host owns the plain name and would remove what it does not know.
"""

from __future__ import annotations

from typing import Any

from registry.model import Health, Instance

__all__ = ["node_name", "remove_node", "remove_service", "show"]

_META_LENGTH = 512  # Consul's limit for a value


def node_name(root: str, instance: Instance) -> str:
    """The instance's host as Consul's catalog names it."""
    return f"{root.replace('/', '-')}-{instance.node or instance.id}"


def show(root: str, instance: Instance) -> list[dict[str, Any]]:
    """Node, service and health check of `instance`, for a Consul transaction.

    Tags are the namespace and the label `version`: `default.reviews.service.consul` works in Consul's DNS.
    """
    node = node_name(root, instance)
    address = instance.addresses[0] if instance.addresses else ""
    version = instance.labels.get("version")
    healthy = instance.health is Health.HEALTHY
    meta = {
        "external-source": "hostmesh",
        "namespace": instance.namespace,
        "workload": instance.workload,
        "service-account": instance.service_account,
        "locality": instance.locality,
        "addresses": ",".join(instance.addresses),
        "ports": ",".join(f"{p.name}:{p.number}:{p.protocol or 'auto'}" for p in instance.ports),
        "labels": ",".join(f"{key}={value}" for key, value in sorted(instance.labels.items())),
        "mtls": "true" if instance.mtls else "false",
    }
    service = {
        "ID": instance.id,
        "Service": instance.service,
        "Tags": [instance.namespace, *([version] if version else [])],
        "Address": address,
        "Port": instance.ports[0].number if instance.ports else 0,
        "Meta": {key: value[:_META_LENGTH] for key, value in meta.items() if value},
        "Weights": {"Passing": max(instance.weight, 1), "Warning": 1},
    }
    check = {
        "Node": node,
        "CheckID": f"hostmesh:{instance.id}",
        "Name": "hostmesh agent",
        "Status": "passing" if healthy else "critical",
        "Notes": "what the agent's probe of the application says",
        "Output": f"{instance.health.value}, as told to istiod {instance.owner or '(nobody)'}",
        "ServiceID": instance.id,
    }
    return [
        {"Node": {"Verb": "set", "Node": {"Node": node, "Address": address, "Meta": {"hostmesh": root}}}},
        {"Service": {"Verb": "set", "Node": node, "Service": service}},
        {"Check": {"Verb": "set", "Check": check}},
    ]


def remove_service(root: str, instance: Instance) -> dict[str, Any]:
    """Take the instance's service, with its check, out of Consul's catalog."""
    service = {"ID": instance.id, "Service": instance.service}
    return {"Service": {"Verb": "delete", "Node": node_name(root, instance), "Service": service}}


def remove_node(root: str, instance: Instance) -> dict[str, Any]:
    """Take the instance's host, with everything on it, out of Consul's catalog."""
    return {"Node": {"Verb": "delete", "Node": {"Node": node_name(root, instance)}}}
