"""xDS between istiod and its clients: resources, and sans-IO sessions of both protocol variants.

A session is fed messages and says which ones to send; it does no I/O and knows no clock. Modules: `types`
(resources), `requests` (what clients say), `refusals` (what they do not take), `sotw` and `delta` (server
sides), `client` (our agent's side), `references` (what resources name).
"""

from wire.xds.client import DeltaClient, Update, health_request
from wire.xds.delta import DeltaSession
from wire.xds.references import endpoint_names, route_names
from wire.xds.refusals import Refusal
from wire.xds.requests import Interest, Kind, Nack, Received, TypeState, XdsError
from wire.xds.sotw import SotwSession
from wire.xds.types import (
    CLUSTER,
    ENDPOINT,
    HEALTH,
    LEGACY_WILDCARD_TYPES,
    LISTENER,
    NAME_TABLE,
    PUSH_ORDER,
    ROUTE,
    SECRET,
    WILDCARD,
    EncodedResource,
    Resources,
    encode,
    in_push_order,
)

__all__ = [
    "CLUSTER",
    "ENDPOINT",
    "HEALTH",
    "LEGACY_WILDCARD_TYPES",
    "LISTENER",
    "NAME_TABLE",
    "PUSH_ORDER",
    "ROUTE",
    "SECRET",
    "WILDCARD",
    "DeltaClient",
    "DeltaSession",
    "EncodedResource",
    "Interest",
    "Kind",
    "Nack",
    "Received",
    "Refusal",
    "Resources",
    "SotwSession",
    "TypeState",
    "Update",
    "XdsError",
    "encode",
    "endpoint_names",
    "health_request",
    "in_push_order",
    "route_names",
]
