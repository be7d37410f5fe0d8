"""CORS policies, in their present place (per-filter configuration) and their deprecated ones (route, virtual host)."""

from __future__ import annotations

from agent.table.decode.matchers import runtime_fraction, string_match
from agent.table.decode.message import Reader
from agent.table.filter_config import CorsPolicy
from agent.table.matchers import EVERYTHING


def cors_policy(reader: Reader) -> CorsPolicy:
    """CorsPolicy; an absent filter_enabled means always, an absent default value never."""
    with reader as r:
        enabled = r.child("filter_enabled")
        r.without_effect("shadow_enabled")  # statistics only
        return CorsPolicy(
            allow_origins=tuple(string_match(item) for item in r.children("allow_origin_string_match")),
            allow_methods=r.text("allow_methods"),
            allow_headers=r.text("allow_headers"),
            expose_headers=r.text("expose_headers"),
            max_age=r.text("max_age"),
            allow_credentials=r.optional_boolean("allow_credentials"),
            enabled=None if enabled is None else runtime_fraction(enabled, EVERYTHING),
            allow_private_network=r.optional_boolean("allow_private_network_access"),
            forward_not_matching_preflights=r.optional_boolean("forward_not_matching_preflights"),
        )
