"""xDS between istiod and its clients: resources, and sans-IO sessions of both protocol variants.

A session is fed messages and says which ones to send; it does no I/O and knows no clock. Modules: `types`
(resources), `sotw` and `delta` (server sides), `client` (our agent's side), `references` (what resources
name).
"""

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
    "EncodedResource",
    "encode",
    "in_push_order",
]
