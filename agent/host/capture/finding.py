"""A line of the preflight's list. Not for: how it is found (`preflight`, `firewall`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`state` is `ok`, `note` (works, worth knowing) or `problem`."""

    topic: str
    state: str
    detail: str
