"""What an HTTP/1.1 message means before it may be proxied: the judgement that both codecs share.

Rule: a codec (h1_fast on h11r, h1_reference on h11) only finds the parts of a message; here Envoy's verdict on them is
made (RFC 9110, RFC 9112, Envoy's HTTP/1 codec), so that it cannot depend on the codec. A message that can be read in
two ways is refused, never repaired.
Not for: sending (h1_encode), header changes that depend on configuration (intake).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from mypy_extensions import trait

from agent.http.headers import Cases, Headers
from agent.http.single import SINGLE_IN_REQUESTS, SINGLE_IN_RESPONSES

CHUNKED: Final = -1
"""Body length of a message with `Transfer-Encoding: chunked`."""
UNTIL_CLOSE: Final = -2
"""Body length of a response that ends with its connection (RFC 9112 section 6.3, rule 8)."""

NO_HOST: Final = b"no-host.hostmesh.invalid"
"""Put in by a codec whose parser insists on a Host field."""

METHODS: Final = frozenset(
    b"ACL BIND CHECKOUT CONNECT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE M-SEARCH "
    b"NOTIFY OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND "
    b"UNLINK UNLOCK UNSUBSCRIBE".split()
)
"""Methods that Envoy's HTTP/1 codec knows; others are refused unless custom methods are allowed."""

_MOST_DIGITS: Final = 19
_AUTHORITY: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:@\[\]]*\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_VERSION_AT_END: Final = re.compile(rb"([^ ]+) +([^ ]+)(?: +HTTP/(\d)\.(\d))?\Z")
_LENGTH_FIELD: Final = re.compile(rb"(?i)(?<=\n)content-length:[^\n]*\n")
_CODING_FIELD: Final = re.compile(rb"(?i)(?<=\n)transfer-encoding:([^\r\n]*)")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00-\x08\x0a-\x1f\x7f]*)\Z")


class H1Violation(Exception):
    """The peer broke the protocol. `status` and `details` are what Envoy answers and logs (client side: 502)."""

    def __init__(self, status: int, details: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.details = details


@dataclass(frozen=True, slots=True)
class Limits:
    """What a codec accepts. Sizes in bytes."""

    max_head_bytes: int = 60 * 1024
    max_headers: int = 100
    underscores: str = "allow"
    """`allow`, `reject_request` or `drop_header` for header names with an underscore."""
    allow_absolute_url: bool = True
    trailers: bool = False
    """Pass trailers on; otherwise they are read and dropped."""
    custom_methods: bool = False
    chunked_length: bool = False
    """Ignore a Content-Length beside chunked transfer encoding instead of refusing both (allow_chunked_length)."""
    accept_old: bool = False
    """Take other versions than HTTP/1.1, or none, for HTTP/1.0 (accept_http_10)."""
    cases: str = ""
    """Remember how header names are written: `keep`, or `proper` to write those of the proxy's own properly."""


class RequestHead:
    """A request line and its headers, judged. `headers` has no `host`; hop-by-hop fields are still there."""

    __slots__ = (
        "authority", "ended", "expects_continue", "has_host", "headers", "keep_alive", "length", "method", "old",
        "path", "upgrade",
    )  # fmt: skip

    def __init__(self, method: bytes, path: bytes, headers: Headers) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.authority = b""
        self.has_host = True
        self.old = False
        """HTTP/1.0."""
        self.length = 0
        """Body bytes to come, or CHUNKED."""
        self.ended = True
        """There is no body."""
        self.keep_alive = True
        self.expects_continue = False
        self.upgrade = b""
        """Lower-case token of an Upgrade that the Connection field confirms; `connect` for CONNECT."""


class InboundResponse:
    """A status line and its headers, judged, as a codec found them."""

    __slots__ = ("headers", "keep_alive", "length", "old", "status")

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.old = False
        self.length = 0
        """Body bytes to come, CHUNKED or UNTIL_CLOSE; 0 also for HEAD, 204 and 304."""
        self.keep_alive = True


@trait
class RequestSink:
    """Who hears what a server codec found. Calls come in the order of the wire."""

    @abstractmethod
    def request_head(self, head: RequestHead) -> None: ...
    @abstractmethod
    def request_data(self, data: bytes) -> None: ...
    @abstractmethod
    def request_end(self, trailers: Headers | None) -> None: ...


@trait
class ResponseSink:
    """Who hears what a client codec found."""

    @abstractmethod
    def informational(self, status: int, headers: Headers) -> None: ...
    @abstractmethod
    def response_head(self, head: InboundResponse) -> None: ...
    @abstractmethod
    def response_data(self, data: bytes) -> None: ...
    @abstractmethod
    def response_end(self, trailers: Headers | None) -> None: ...


@trait
class ServerCodec:
    """Reads requests from one connection, one at a time."""

    more: bool
    """So many small pieces arrived at once that the rest waits for `go_on`; nothing must be received before."""

    @abstractmethod
    def go_on(self) -> None:
        """Read on where `more` stopped. Raises H1Violation."""

    @abstractmethod
    def close(self) -> None:
        """The connection has ended: let go of the sink, which owns this codec."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Take bytes and report what they complete. Raises H1Violation."""

    @abstractmethod
    def end_of_input(self) -> bool:
        """The client will send no more. True if that was between messages, else the request is cut off."""

    @abstractmethod
    def next_request(self) -> None:
        """The request in progress has been answered: read on. Raises H1Violation."""

    @abstractmethod
    def leftovers(self) -> bytes:
        """Bytes after the head of a request that became a tunnel."""


@trait
class ClientCodec:
    """Reads responses from one connection, one at a time."""

    more: bool
    """As ServerCodec.more."""

    @abstractmethod
    def go_on(self) -> None:
        """Read on where `more` stopped. Raises H1Violation."""

    @abstractmethod
    def close(self) -> None:
        """The connection has ended: let go of the sink, which owns this codec."""

    @abstractmethod
    def expect(self, method: bytes, upgrade: bytes) -> None:
        """A request was sent whose response is awaited now."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Take bytes and report what they complete. Raises H1Violation."""

    @abstractmethod
    def end_of_input(self) -> None:
        """The upstream will send no more: ends a response that lasts until then. Raises H1Violation if one is cut off."""

    @abstractmethod
    def leftovers(self) -> bytes:
        """Bytes beyond the message: a tunnel's first bytes, or garbage that forbids to use the connection again."""


def judge_request(method: bytes, target: bytes, headers: Headers, old: bool, limits: Limits) -> RequestHead:
    """Envoy's verdict on a request head. Raises H1Violation."""
    head = RequestHead(method, target, headers)
    repeated = headers.repeated
    if repeated is not None:
        _refuse_ambiguous(repeated)
        _join_single(headers, repeated, SINGLE_IN_REQUESTS)
    if limits.underscores != "allow":
        _judge_underscores(headers, limits)
    authority = headers.pop(b"host", None)
    if authority is None or authority == NO_HOST:
        head.has_host = False
    else:
        head.authority = authority
    if method not in METHODS and not limits.custom_methods:
        raise H1Violation(400, "http1.codec_error", "unknown method")
    if target[:1] != b"/":
        _judge_target(head, limits)
    if head.authority not in _good_authorities:
        judge_authority(head.authority)
    if old or not _FRAMING.isdisjoint(headers.first):
        _judge_framing(head, headers, old)
    return head


def headers_of_wire(fields: Collection[tuple[bytes, bytes]], limits: Limits) -> Headers:
    """The header map of fields as a codec found them, with their spelling if that is to be kept."""
    headers = Headers.of_wire(fields)
    if limits.cases:
        headers.cases = Cases([name for name, _ in fields], limits.cases == "proper")
    return headers


def as_http11(data: bytes) -> bytes | None:
    """A head of another version, or of none, as one of HTTP/1.1; None where something else is wrong with it. Envoy with
    accept_http_10 takes all of them for HTTP/1.0, and lets them have chunks."""
    data = data.lstrip(b"\r\n")
    if classify_request_error(data) is None:
        return None
    line, _, rest = data.partition(b"\n")
    match = _VERSION_AT_END.match(line.rstrip(b"\r"))
    if match is None:
        return None
    if match[3] is None:
        rest = b"\r\n"  # no version, no fields (HTTP/0.9)
    return b"%b %b HTTP/1.1\r\n%b" % (match[1], match[2], rest)


def drop_length(data: bytes) -> bytes:
    """A head without its Content-Length, for allow_chunked_length. Raises H1Violation where it is not about chunks, or
    where there is more than one length."""
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n"
    coding = _CODING_FIELD.findall(head)
    if len(_LENGTH_FIELD.findall(head)) > 1:
        raise H1Violation(400, "http1.codec_error", "more than one content-length")
    if len(coding) != 1 or coding[0].strip().lower() != b"chunked":
        raise H1Violation(
            400,
            "http1.content_length_and_chunked_not_allowed",
            "content-length with another transfer-encoding",
        )
    return _LENGTH_FIELD.sub(b"", data, count=1)


def judge_authority(authority: bytes) -> None:
    """Envoy HeaderUtility::authorityIsValid. Raises H1Violation. The good ones are remembered, because few names are asked
    for often."""
    if not _AUTHORITY.match(authority):
        raise H1Violation(400, "http.invalid_authority", "invalid host")
    if len(_good_authorities) < _REMEMBERED and len(authority) < 256:
        _good_authorities.add(authority)


_good_authorities: Final[set[bytes]] = set()
_REMEMBERED: Final = 4096
_FRAMING: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"expect", b"proxy-connection")
)


def _judge_framing(head: RequestHead, headers: Headers, old: bool) -> None:
    """Body length, persistence, expectation, upgrade: what most requests say nothing about."""
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise H1Violation(501, "http1.invalid_transfer_encoding", "unsupported transfer encoding")
        if length is not None:
            raise H1Violation(
                400, "http1.content_length_and_chunked_not_allowed", "content-length with transfer-encoding"
            )
        head.length = CHUNKED
        head.ended = False
    elif length is not None:
        head.length = _length(length, 400)
        head.ended = head.length == 0
    connection = headers.get(b"connection")
    if old:
        head.old = True
        tokens = _tokens(headers)
        head.keep_alive = b"keep-alive" in tokens
        if b"upgrade" in tokens and b"upgrade" in headers:
            _note_upgrade(head, headers)
    elif connection is not None and (connection != b"keep-alive" or headers.repeated is not None):
        tokens = _tokens(headers)
        head.keep_alive = b"close" not in tokens
        if b"upgrade" in tokens and b"upgrade" in headers:
            _note_upgrade(head, headers)
    if b"proxy-connection" in headers and b"close" in _tokens(headers, b"proxy-connection"):
        head.keep_alive = False
    if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
        head.expects_continue = True
        headers.remove(b"expect")


def _length(told: bytes, status: int) -> int:
    """Content-Length, which Envoy holds in 64 bits. `status` is that of the refusal."""
    digits = told.lstrip(b"0") if len(told) > _MOST_DIGITS else told
    if not told.isdigit() or len(digits) > _MOST_DIGITS:
        raise H1Violation(status, "http1.codec_error", "invalid content-length")
    return int(digits or b"0")


def judge_response(status: int, headers: Headers, old: bool, method: bytes) -> InboundResponse:
    """Envoy's verdict on a response head to a request with `method`. Raises H1Violation."""
    head = InboundResponse(status, headers)
    repeated = headers.repeated
    if repeated is not None:
        _refuse_ambiguous(repeated)
        _join_single(headers, repeated, SINGLE_IN_RESPONSES)
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise H1Violation(502, "http1.invalid_transfer_encoding", "unsupported transfer encoding")
        if length is not None:
            raise H1Violation(
                502, "http1.content_length_and_chunked_not_allowed", "content-length with transfer-encoding"
            )
        head.length = CHUNKED
    elif length is not None:
        head.length = _length(length, 502)
        if status == 204 and head.length:
            raise H1Violation(502, "http1.body_disallowed", "204 with a body")
    else:
        head.length = UNTIL_CLOSE
    if method == b"HEAD" or status in (204, 304):
        head.length = 0
    if old:
        head.old = True
        head.keep_alive = b"connection" in headers and b"keep-alive" in _tokens(headers)
    elif b"connection" in headers and (headers[b"connection"] != b"keep-alive" or repeated is not None):
        head.keep_alive = b"close" not in _tokens(headers)
    if b"proxy-connection" in headers and b"close" in _tokens(headers, b"proxy-connection"):
        head.keep_alive = False
    if head.length == UNTIL_CLOSE:
        head.keep_alive = False
    return head


def classify_request_error(head: bytes) -> H1Violation | None:
    """Envoy answers a head with another HTTP version (or none) by 426 if nothing else is wrong with it."""
    first_line, _, fields = head.partition(b"\n")
    match = _VERSION_AT_END.match(first_line.rstrip(b"\r"))
    if match is None or match[1] not in METHODS:
        return None
    _, target, major, minor = match.groups()
    if (major == b"1" and minor == b"1") or not _sound(fields):
        return None
    if major is None and (target[:1] not in b"/*" or b"HTTP/" in target):
        return None
    return H1Violation(426, "low_version", "unsupported HTTP version")


def _sound(fields: bytes) -> bool:
    """Are these the lines of a header section that Envoy's parser takes?"""
    values: dict[bytes, bytes] = {}
    for line in fields.partition(b"\r\n\r\n")[0].split(b"\n"):
        if not (line := line.rstrip(b"\r")):
            break
        match = _FIELD.match(line)
        if match is None:
            return False
        values[match[1].lower()] = match[2].strip()
    length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
    if length is not None and (coding is not None or not length.isdigit()):
        return False
    return coding is None or coding.lower() == b"chunked"


def classify_refused(data: bytes, text: str) -> H1Violation:
    """What Envoy calls bytes that a parser refused: a control character outside of values is another matter to it than
    a head that is malformed, or no head at all. `data` ends where the parser stopped or later; `text` is the parser's reason."""
    if data[:1] > b" " and _CONTROL.search(data.partition(b"\r\n\r\n")[0]):
        return H1Violation(400, "http1.invalid_characters", text)
    return H1Violation(400, "http1.codec_error", text)


def too_many(what: str) -> H1Violation:
    """The head is over a limit: `headers_too_large` or `too_many_headers`."""
    return H1Violation(431, f"http1.{what}", what)


def connection_tokens(headers: Headers) -> set[bytes]:
    """Lower-case tokens of the Connection field (RFC 9110 section 7.6.1)."""
    return _tokens(headers)


def _tokens(headers: Headers, name: bytes = b"connection") -> set[bytes]:
    return {token.strip().lower() for token in (headers.joined(name) or b"").split(b",")}


def _refuse_ambiguous(repeated: list[tuple[bytes, bytes]]) -> None:
    for name, _ in repeated:
        if name == b"content-length" or name == b"host":
            raise H1Violation(400, "http1.codec_error", f"more than one {name.decode()}")
        if name == b"transfer-encoding":
            raise H1Violation(501, "http1.invalid_transfer_encoding", "more than one transfer-encoding")


def _join_single(headers: Headers, repeated: list[tuple[bytes, bytes]], single: frozenset[bytes]) -> None:
    """Names that Envoy keeps once: their values become one, in order."""
    for name in {name for name, _ in repeated if name in single}:
        headers.set(name, headers.joined(name) or b"")


def _judge_underscores(headers: Headers, limits: Limits) -> None:
    named = [name for name, _ in headers.fields() if b"_" in name]
    if named and limits.underscores == "reject_request":
        raise H1Violation(400, "http1.unexpected_underscore", "underscore in a header name")
    for name in named:
        headers.remove(name)


def _judge_target(head: RequestHead, limits: Limits) -> None:
    """Targets that are not origin-form: authority-form, asterisk-form, absolute-form (RFC 9112 section 3.2)."""
    target = head.path
    if head.method == b"CONNECT":
        head.authority = target
        head.path = b""
        head.upgrade = b"connect"
        return
    if target == b"*":
        if head.method != b"OPTIONS":
            raise H1Violation(400, "http1.invalid_url", "asterisk with another method than OPTIONS")
        return
    scheme, mark, rest = target.partition(b"://")
    if mark and not limits.allow_absolute_url:
        return
    if not mark:
        raise H1Violation(400, "http1.codec_error", "invalid request target")
    if scheme.lower() not in (b"http", b"https"):
        raise H1Violation(400, "http1.invalid_scheme", "invalid scheme in request target")
    cut = len(rest)
    for mark in (b"/", b"?", b"#"):
        found = rest.find(mark)
        if 0 <= found < cut:
            cut = found
    authority = rest[:cut].rpartition(b"@")[2]
    if not authority:
        raise H1Violation(400, "http1.invalid_url", "no authority in request target")
    head.authority = authority
    head.has_host = True
    head.path = rest[cut:] or b"/"


def _note_upgrade(head: RequestHead, headers: Headers) -> None:
    """Envoy ignores h2c upgrades: the fields go, the request stays."""
    token = headers[b"upgrade"].strip().lower()
    if token == b"h2c":
        for name in (b"upgrade", b"http2-settings"):
            headers.remove(name)
        headers.set(b"connection", b"keep-alive")
    else:
        head.upgrade = token
