"""python-consul2 on trio: its HTTP client over httpx, and its errors as the registry's.

Rule: every call ends in an answer or in a typed registry error; the ACL token travels in a header only.
The environment's CONSUL_* variables have no say: istiod.yaml does. Not for what is stored under which key
(registry.consul_catalog, registry.consul_store).
"""

from __future__ import annotations

import base64
import json
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from registry.errors import RegistryDeniedError, RegistryError, RegistryUnavailableError

with warnings.catch_warnings():
    # The library's own imports use deprecated parts of the standard library; our users cannot change that.
    warnings.simplefilter("ignore", DeprecationWarning)
    from consul import base

__all__ = ["WAIT_SECONDS", "ConsulClient", "Entry", "kv"]

_CALL_SECONDS = 10.0
WAIT_SECONDS = 60
"""How long Consul may hold a blocking query (and a sixteenth more: the read timeout is longer)."""
_BUSY = ("408", "429")
_CONNECTIONS = 32  # Consul refuses a client address its 201st

Answer = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored key: its text, Consul's ModifyIndex and Consul's flags (a number of the writer's own)."""

    key: str
    value: str
    index: int
    flags: int


class _Body(httpx.AsyncByteStream):
    """A request's body in one piece.

    httpx's own is an async generator; when a request is cancelled while it is being sent, that generator is left
    for the garbage collector, of which trio warns.
    """

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, None
        if content is None:
            raise StopAsyncIteration
        return content


class _HttpClient(base.HTTPClient):  # type: ignore[misc]
    """The four verbs that python-consul2 asks for, each a coroutine that ends in `callback(Response)`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        super().__init__()
        self.base_uri = ""
        self._client = client

    async def _request(
        self, callback: Answer, method: str, *, path: str, params: Any, headers: Any, data: Any = None
    ) -> Any:
        wait = any(name == "wait" for name, _ in params or ())
        timeout = httpx.Timeout(_CALL_SECONDS, read=WAIT_SECONDS * 1.25 if wait else _CALL_SECONDS)
        content = data.encode() if isinstance(data, str) else data or b""
        request = self._client.build_request(
            method, self.uri(path, params), content=content, headers=headers, timeout=timeout
        )
        request.stream = _Body(content)
        response = await self._client.send(request)
        return callback(
            base.Response(response.status_code, response.headers, response.text, response.content)
        )

    async def get(self, callback: Answer, path: str, params: Any = None, headers: Any = None) -> Any:
        return await self._request(callback, "GET", path=path, params=params, headers=headers)

    async def put(
        self, callback: Answer, path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        return await self._request(callback, "PUT", path=path, params=params, headers=headers, data=data)

    async def delete(
        self, callback: Answer, path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        return await self._request(callback, "DELETE", path=path, params=params, headers=headers, data=data)

    async def post(
        self, callback: Answer, path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        return await self._request(callback, "POST", path=path, params=params, headers=headers, data=data)


class _Endpoints:
    """The parts of python-consul2's client that we use, each of which asks this object for what they share.

    Not made by its own constructor: that lets CONSUL_HTTP_ADDR and CONSUL_HTTP_TOKEN overrule its arguments.
    """

    def __init__(self, client: httpx.AsyncClient, token: str | None) -> None:
        self.http = _HttpClient(client)
        self.token = token
        self.dc = None
        self.consistency = "default"
        self.kv = base.Consul.KV(self)
        self.session = base.Consul.Session(self)
        self.status = base.Consul.Status(self)
        self.txn = base.Consul.Txn(self)


class ConsulClient:
    """What the backend needs of Consul's HTTP API: reads, blocking reads, transactions, sessions."""

    def __init__(self, address: str, token: str | None, ca_file: Path | None) -> None:
        self.address = address
        self._client = _http_client(address, ca_file)
        self._consul = _Endpoints(self._client, token)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def call(self, answer: Awaitable[Any]) -> Any:
        """Await a python-consul2 call. Raises RegistryError and its kinds, nothing of the libraries'."""
        try:
            return await answer
        except httpx.InvalidURL as error:
            raise RegistryError(f"Consul at {self.address}: {error}") from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise RegistryUnavailableError(f"Consul at {self.address}: {reason}") from error
        except (base.ACLPermissionDenied, base.ACLDisabled) as error:
            raise RegistryDeniedError(f"Consul at {self.address} refused the ACL token: {error}") from error
        except (base.BadRequest, base.ClientError, base.NotFound) as error:
            kind = RegistryUnavailableError if str(error).startswith(_BUSY) else RegistryError
            raise kind(f"Consul at {self.address}: {error}") from error
        except base.ConsulException as error:
            # 5xx: no leader, or a server on its way down
            raise RegistryUnavailableError(f"Consul at {self.address}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryUnavailableError(
                f"{self.address} does not answer as Consul does: {error!r}"
            ) from error

    async def leader(self) -> str:
        """The leader's address. Raises RegistryUnavailableError when there is none."""
        leader = await self.call(self._consul.status.leader())
        if not leader:
            raise RegistryUnavailableError(f"Consul at {self.address} has no leader")
        return str(leader)

    async def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None."""
        _, item = await self.call(self._consul.kv.get(key))
        return _entry(item) if item else None

    async def children(self, folder: str) -> list[Entry]:
        """All entries below `folder` (which ends in a slash), in order of key."""
        _, items = await self.call(self._consul.kv.get(folder, recurse=True))
        return [_entry(item) for item in items or () if item["Key"] != folder]

    async def names(self, folder: str) -> list[str]:
        """The keys below `folder`, without it and without values."""
        _, keys = await self.call(self._consul.kv.get(folder, keys=True))
        return [key.removeprefix(folder) for key in keys or () if key != folder]

    async def make_folder(self, folder: str) -> None:
        """Make `folder` exist while it is empty: of nothing, Consul reports every write."""
        await self.transact([kv("cas", folder, index=0)])

    async def changed(self, folder: str, index: int) -> int:
        """Wait (WAIT_SECONDS at most) until something below `folder` is newer than `index`; the index now.

        Index 0 answers at once. The answer may be smaller than `index`: Consul's state was restored.
        """
        # Folder names only: the answer must stay small, however much is stored.
        text, _ = await self.call(
            self._consul.kv.get(
                folder, index=index or None, wait=f"{WAIT_SECONDS}s", keys=True, separator="/"
            )
        )
        if not text or int(text) < 1:  # Consul's own rule: never wait on such an index, it would spin
            raise RegistryUnavailableError(f"Consul at {self.address} gave no index for {folder}")
        return int(text)

    async def transact(self, operations: Sequence[dict[str, Any]]) -> int | None:
        """All of `operations` (64 at most) or none. The index of the write; None: a condition did not hold.

        Raises RegistryError when Consul refuses an operation that has no condition.
        """
        try:
            result = await self.call(self._consul.txn.put(list(operations)))
        except RegistryError as error:
            refusals = _refusals(error.__cause__)
            if any("Permission denied" in str(refusal["What"]) for refusal in refusals):
                raise RegistryDeniedError(str(error)) from error
            if any(_conditional(operations[refusal["OpIndex"]]) for refusal in refusals):
                return None
            raise
        return max((_index(item) for item in result["Results"] or ()), default=0)

    async def create_session(self, name: str, ttl: int) -> str:
        """A session whose keys vanish with it, `ttl` seconds after its last renewal."""
        return str(
            await self.call(self._consul.session.create(name=name, behavior="delete", ttl=ttl, lock_delay=0))
        )

    async def renew_session(self, session: str) -> bool:
        """Renew it. False: there is no such session any more."""
        try:
            await self.call(self._consul.session.renew(session))
        except RegistryError as error:
            if isinstance(error.__cause__, base.NotFound):
                return False
            raise
        return True

    async def destroy_session(self, session: str) -> None:
        """End it and delete its keys."""
        await self.call(self._consul.session.destroy(session))

    async def acquire(self, key: str, value: str, session: str) -> bool:
        """Write `key` as the session's own. False: another session has it."""
        return bool(await self.call(self._consul.kv.put(key, value, acquire=session)))


def kv(verb: str, key: str, value: str = "", *, index: int | None = None, flags: int = 0) -> dict[str, Any]:
    """A KV operation for `transact`: set, cas (index 0: must not exist), delete, delete-cas, check-index."""
    operation: dict[str, Any] = {"Verb": verb, "Key": key, "Flags": flags}
    if value:
        operation["Value"] = base64.b64encode(value.encode()).decode()
    if index is not None:
        operation["Index"] = index
    return {"KV": operation}


def _http_client(address: str, ca_file: Path | None) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS // 2)
    verify: ssl.SSLContext | bool = True
    if ca_file is not None:
        verify = ssl.create_default_context(cafile=str(ca_file))
    elif not address.startswith("https"):
        verify = False  # no TLS: do not load the system's roots for nothing
    if address.startswith("unix://"):
        transport = httpx.AsyncHTTPTransport(uds=address.removeprefix("unix://"), limits=limits)
        return httpx.AsyncClient(transport=transport, base_url="http://consul", trust_env=False)
    return httpx.AsyncClient(base_url=address.rstrip("/"), verify=verify, limits=limits, trust_env=False)


def _entry(item: dict[str, Any]) -> Entry:
    value = item["Value"]
    # What is no UTF-8 is found damaged by whoever reads it as a document.
    text = value.decode(errors="surrogateescape") if value else ""
    return Entry(item["Key"], text, int(item["ModifyIndex"]), int(item["Flags"]))


def _index(result: dict[str, Any]) -> int:
    return max((int(part.get("ModifyIndex", 0)) for part in result.values()), default=0)


def _conditional(operation: dict[str, Any]) -> bool:
    verb: str = operation.get("KV", {}).get("Verb", "")
    return verb.endswith("cas") or verb.startswith("check-")


def _refusals(cause: BaseException | None) -> Sequence[dict[str, Any]]:
    """Why a transaction was refused: OpIndex and What of each error in Consul's 409 answer."""
    code, _, body = str(cause).partition(" ")
    if not isinstance(cause, base.ClientError) or code != "409":
        return []
    return list(json.loads(body)["Errors"] or ())
