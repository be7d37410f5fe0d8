"""Which module compiles which kind of filter."""

from __future__ import annotations

from agent.filters.chain import Registry

HTTP_FILTERS: Registry = {}
