"""An answer of the agent's own pages, and the type of what answers. Not for: serving it (pages, debug_channel)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """One answer."""

    status: int
    content_type: str
    body: bytes


Pages = Callable[[str, str, bytes], Awaitable[Page]]
"""`(method, path with query, body)` to a page."""
