"""What survives a restart, in stateDir: the trust root, and each workload's identity and last good config.

Rule: every file is written whole or not at all, 0600, in a directory that is 0700; what cannot be read back
is treated as absent and said so in the log, never half used. Key and certificate are one file, so that they
always fit each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from wire.secret_file import write_secret
from wire.xds import EncodedResource

log = logging.getLogger("hostmesh.state")
Resources = Mapping[str, Mapping[str, EncodedResource]]
"""Resources by type URL, then by name."""

_MAGIC = b"hostmesh config 1\n"
_PENDING = "joining-key.pem"


class State:
    """The state directory of the host."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self, keys: Iterable[str]) -> None:
        """Make the directories; OSError when that is not allowed."""
        for path in (self._directory, self._workloads, *(self._of(key) for key in keys)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)

    @property
    def _workloads(self) -> Path:
        return self._directory / "workloads"

    def _of(self, key: str) -> Path:
        # Both parts are DNS labels: no dot, no slash.
        return self._workloads / key.replace("/", ".")

    def root(self) -> bytes | None:
        """The stored trust roots (PEM)."""
        return _read(self._directory / "root-cert.pem")

    def save_root(self, pem: bytes) -> None:
        """Replace the trust roots."""
        write_secret(self._directory / "root-cert.pem", pem)

    def identity(self, key: str) -> tuple[bytes, float] | None:
        """The workload's key and chain in one PEM, and when it was stored (seconds since the epoch)."""
        path = self._of(key) / "identity.pem"
        pem = _read(path)
        return None if pem is None else (pem, path.stat().st_mtime)

    def save_identity(self, key: str, pem: bytes) -> None:
        """Replace the workload's key and chain."""
        write_secret(self._of(key) / "identity.pem", pem)

    def pending_key(self, key: str) -> bytes | None:
        """The key (PEM) that a join token was used with, while no certificate for it is stored."""
        return _read(self._of(key) / _PENDING)

    def save_pending_key(self, key: str, pem: bytes) -> None:
        """Keep the key before a join token is used with it: an answer that is lost is asked for again with the same key."""
        write_secret(self._of(key) / _PENDING, pem)

    def forget_pending_key(self, key: str) -> None:
        """A certificate for the key is stored."""
        (self._of(key) / _PENDING).unlink(missing_ok=True)

    def resources(self, key: str) -> dict[str, dict[str, EncodedResource]] | None:
        """The last configuration that the data plane applied, or None."""
        data = _read(self._of(key) / "config.bin")
        if data is None:
            return None
        try:
            return _decode(data)
        except (DecodeError, ValueError) as error:
            log.warning("the stored configuration of %s cannot be read and is not used: %s", key, error)
            return None

    def save_resources(self, key: str, resources: Resources) -> None:
        """Replace the last good configuration."""
        write_secret(self._of(key) / "config.bin", _encode(resources))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
        return None


def _encode(resources: Resources) -> bytes:
    parts = [_MAGIC]
    for type_url, held in resources.items():
        message = discovery_pb2.DeltaDiscoveryResponse(
            type_url=type_url,
            resources=[
                discovery_pb2.Resource(
                    name=resource.name,
                    version=resource.version,
                    resource=AnyMessage.FromString(resource.body),
                )
                for resource in held.values()
            ],
        ).SerializeToString(deterministic=True)
        parts += [len(message).to_bytes(4), message]
    return b"".join(parts)


def _decode(data: bytes) -> dict[str, dict[str, EncodedResource]]:
    if not data.startswith(_MAGIC):
        raise ValueError("unknown format")
    resources: dict[str, dict[str, EncodedResource]] = {}
    offset = len(_MAGIC)
    while offset < len(data):
        end = offset + 4 + int.from_bytes(data[offset : offset + 4])
        if end > len(data):
            raise ValueError("truncated")
        message = discovery_pb2.DeltaDiscoveryResponse.FromString(data[offset + 4 : end])
        resources[message.type_url] = {
            item.name: EncodedResource(
                item.name, item.version, item.resource.SerializeToString(deterministic=True)
            )
            for item in message.resources
        }
        offset = end
    return resources
