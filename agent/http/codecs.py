"""Which HTTP/1.1 codec runs: h11r, or the reference on h11 where HOSTMESH_H1_CODEC says `reference`.

Rule: chosen once per process; both give the same verdicts (tests run every case on both).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from agent.http.h1_fast import FastClientCodec, FastServerCodec
from agent.http.h1_message import ClientCodec, Limits, RequestSink, ResponseSink, ServerCodec
from agent.http.h1_reference import ReferenceClientCodec, ReferenceServerCodec

MakeServer = Callable[[RequestSink, Limits], ServerCodec]
MakeClient = Callable[[ResponseSink, Limits], ClientCodec]

CODECS: Final[dict[str, tuple[MakeServer, MakeClient]]] = {
    "fast": (FastServerCodec, FastClientCodec),
    "reference": (ReferenceServerCodec, ReferenceClientCodec),
}
"""By name: what reads requests, what reads responses."""

SERVER_CODEC, CLIENT_CODEC = CODECS[os.environ.get("HOSTMESH_H1_CODEC", "fast")]
