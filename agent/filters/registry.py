"""Which module compiles which kind of HTTP filter. A new filter: its value, its decoder, its module, and a
line here."""

from __future__ import annotations

from typing import Final

from agent.filters import (
    buffer,
    cors,
    csrf,
    fault,
    header_mutation,
    header_to_metadata,
    health_check,
    local_rate_limit,
    rbac,
    set_metadata,
)
from agent.filters.chain import Registry

HTTP_FILTERS: Final[Registry] = {
    "buffer": buffer.compile,
    "cors": cors.compile,
    "csrf": csrf.compile,
    "fault": fault.compile,
    "header_mutation": header_mutation.compile,
    "header_to_metadata": header_to_metadata.compile,
    "health_check": health_check.compile,
    "local_rate_limit": local_rate_limit.compile,
    "rbac": rbac.compile,
    "set_metadata": set_metadata.compile,
}
