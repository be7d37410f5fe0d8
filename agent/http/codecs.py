"""Which HTTP/1.1 codec runs: h11r, or the reference on h11 where HOSTMESH_H1_CODEC says `reference`.

Rule: chosen once per process; both give the same verdicts (tests run every case on both).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from agent.http.h1_message import ClientCodec, Limits, RequestSink, ResponseSink, ServerCodec

MakeServer = Callable[[RequestSink, Limits], ServerCodec]
MakeClient = Callable[[ResponseSink, Limits], ClientCodec]

NAMES: Final = ("fast", "reference")


def codec(name: str) -> tuple[MakeServer, MakeClient]:
    """What reads requests and what reads responses. Only the one that is used is imported."""
    if name == "reference":
        from agent.http.h1_reference import ReferenceClientCodec, ReferenceServerCodec

        return ReferenceServerCodec, ReferenceClientCodec
    from agent.http.h1_fast import FastServerCodec
    from agent.http.h1_fast_client import FastClientCodec

    return FastServerCodec, FastClientCodec


SERVER_CODEC, CLIENT_CODEC = codec(os.environ.get("HOSTMESH_H1_CODEC", "fast"))
