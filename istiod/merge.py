"""ServiceEntries of one host and namespace as one service, and those that are left without effect.

Rule (Istio): entries with the same resolution, location and exportTo merge their ports; of a port that two of them
have, and of entries that differ, the older counts. Endpoints serve the ports of their own entry only.
Not for: entries of several namespaces (istiod/scope.py picks for each proxy).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from istiod.services import MeshService, sealed


def merge_entries(
    services: Iterable[MeshService],
) -> tuple[list[MeshService], list[tuple[MeshService, MeshService]]]:
    """Services of entries, in order of age, each host of a namespace once; and (loser, winner) of those that differ."""
    merged: dict[tuple[str, str], MeshService] = {}
    lost: list[tuple[MeshService, MeshService]] = []
    for service in services:
        key = (service.namespace, service.host)
        older = merged.get(key)
        if older is None:
            merged[key] = service
        elif _alike(older) == _alike(service):
            merged[key] = _merge(older, service)
        else:
            lost.append((service, older))
    return list(merged.values()), lost


def _alike(service: MeshService) -> tuple[object, ...]:
    return service.resolution, service.external, frozenset(service.export_to)


def _merge(older: MeshService, younger: MeshService) -> MeshService:
    known = {port.number for port in older.ports}
    ports = tuple(port for port in younger.ports if port.number not in known)
    numbers = {port.number for port in ports}
    endpoints = tuple(
        replace(one, ports={number: target for number, target in one.ports.items() if number in numbers})
        for one in younger.endpoints
    )
    if older.allocated == younger.allocated:
        addresses = tuple(dict.fromkeys((*older.addresses, *(() if older.allocated else younger.addresses))))
    else:
        addresses = younger.addresses if older.allocated else older.addresses
    return sealed(
        replace(
            older,
            ports=(*older.ports, *ports),
            addresses=addresses,
            allocated=older.allocated and younger.allocated,
            sans=tuple(dict.fromkeys((*older.sans, *younger.sans))),
            servers=tuple(sorted({*older.servers, *younger.servers})),
            endpoints=(*older.endpoints, *(endpoints if ports else ())),
        )
    )
