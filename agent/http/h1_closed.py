"""The sinks of codecs whose connections have ended: they listen to nothing.

A codec and the connection that owns it are a cycle; `close` ends it by putting one of these in the connection's place.
"""

from __future__ import annotations

from typing import Final

from agent.http.h1_message import InboundResponse, RequestHead, RequestSink, ResponseSink
from agent.http.headers import Headers


class _NoRequests(RequestSink):
    def request_head(self, head: RequestHead) -> None: ...
    def request_data(self, data: bytes) -> None: ...
    def request_end(self, trailers: Headers | None) -> None: ...


class _NoResponses(ResponseSink):
    def informational(self, status: int, headers: Headers) -> None: ...
    def response_head(self, head: InboundResponse) -> None: ...
    def response_data(self, data: bytes) -> None: ...
    def response_end(self, trailers: Headers | None) -> None: ...


NO_REQUESTS: Final = _NoRequests()
NO_RESPONSES: Final = _NoResponses()
