"""The admin API's client.

Job: calls of istiod's admin API with the context's certificate; JSON in, JSON out; every way in which that can
fail becomes a `CommandError` with advice.
Rule: the server is verified against the context's authority, never skipped; proxy variables of the environment do not
count. A connection for each call: commands make one to three. The standard library's client, because a command's
start is most of its time.
Not for: what the answers mean (the commands).
"""

from __future__ import annotations

import datetime
import json
import ssl
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from istiod.admin_context import AdminContext
from istiod.ctl.failure import CommandError, Detail
from wire.memory_file import memory_file

TIMEOUT = 30.0
"""Seconds for one answer; waiting calls add their own time to it."""


class AdminClient:
    """Calls the admin API. Use as a context manager. Every method raises `CommandError`."""

    def __init__(self, context: AdminContext) -> None:
        self._address = context.address.rstrip("/")
        self._host, self._port, self._base = _parts(self._address)
        self._certificate = context.client_certificate
        self._tls = _tls_context(context)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is kept open."""

    def get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """GET and decode JSON."""
        return self.call("GET", path, params=params)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """One call; returns the decoded JSON (None for an empty body)."""
        headers = {"accept": "application/json", "connection": "close"}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        target = f"{self._base}{path}?{urlencode(params)}" if params else f"{self._base}{path}"
        connection = HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        try:
            connection.connect()
            with suppress(OSError):
                # Refused before all of it was sent? Then the answer says why, if it has arrived.
                connection.request(method, target, payload, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            raise self._transport_failure(error) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise _api_failure(response, content)
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise CommandError(
                f"{self._address}{path} did not answer with JSON", "is this a hostmesh admin API?"
            ) from error

    def _transport_failure(self, error: OSError | HTTPException) -> CommandError:
        text = str(error) or type(error).__name__
        expired = _expiry(self._certificate)
        if expired is not None:
            return CommandError(
                f"istiod at {self._address} refused this context: its certificate expired {expired}",
                "copy a fresh admin-context.yaml from istiod's stateDir",
            )
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return CommandError(
                f"the server at {self._address} is not the istiod of this context: {text}",
                "was istiod reinstalled, or is the address another host's? Copy its admin-context.yaml again",
            )
        # TLS 1.3: the client learns only after its handshake that its certificate was refused, often by a bare close.
        refused = isinstance(
            error, ConnectionResetError | BrokenPipeError
        )  # RemoteDisconnected is the former
        if refused or "ALERT" in text.upper() or "EOF" in text.upper():
            return CommandError(
                f"istiod at {self._address} refused this context's certificate: {text}",
                "the certificate must be issued by istiod's admin CA; copy its admin-context.yaml again",
            )
        if isinstance(error, TimeoutError):
            return CommandError(
                f"istiod at {self._address} did not answer in time",
                "is the host reachable, and the port open between here and there?",
            )
        return CommandError(
            f"cannot reach istiod at {self._address}: {text}",
            "is hostmesh-istiod running (systemctl status hostmesh-istiod), and is listen.admin "
            "in istiod.yaml an address this host can reach?",
        )


def _parts(address: str) -> tuple[str, int, str]:
    """Host, port and path of the context's address."""
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if host is None or url.scheme != "https":
        raise CommandError(f"the admin context's address {address!r} is not https://HOST:PORT")
    return host, port or 443, url.path


def _tls_context(context: AdminContext) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        tls.load_verify_locations(cadata=context.certificate_authority)
        # OpenSSL reads client certificates from files only; this one is in memory, and no file system ever has the key.
        with memory_file(f"{context.client_certificate}\n{context.client_key}".encode()) as path:
            tls.load_cert_chain(path)
    except (ssl.SSLError, ValueError) as error:
        raise CommandError(f"the admin context's certificates cannot be used: {error}") from error
    return tls


def _expiry(pem: str) -> str | None:
    """When the certificate expired, as text, or None when it is still good."""
    from cryptography import x509

    try:
        end = x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError:
        return None
    now = datetime.datetime.now(datetime.UTC)
    return f"on {end:%Y-%m-%d %H:%M} UTC" if end < now else None


def _api_failure(response: HTTPResponse, content: bytes) -> CommandError:
    """istiod's error document (`istiod.api.errors`) as a failure."""
    try:
        error = json.loads(content)["error"]
        details = tuple(
            Detail(
                where=str(item.get("where", "")),
                field=str(item.get("field", "")),
                reason=str(item.get("reason", "")),
            )
            for item in error.get("details", ())
        )
        message, hint, reason = str(error["message"]), str(error.get("hint", "")), str(error["reason"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return CommandError(f"istiod answered {response.status} {response.reason}")
    return CommandError(message, hint, details, reason)


def read_source(path: Path) -> str:
    """A file's text. Raises `CommandError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}") from error
