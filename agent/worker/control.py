"""The frames between the host process and a worker, over their socketpair (sans-IO, for both sides).

A frame is a 4-byte big-endian length (of what follows), one byte of kind, and the payload.

    host -> worker   C configuration   D drain (JSON {"seconds"})   R reopen logs
                     Q query (JSON {"id", "what"})
    worker -> host   A applied (JSON {"generation", "listening", "waiting", "refused": what of it is not in use, by workload})
                     N refused as a whole (JSON {"generation", "reason"})
                     L listening (JSON {"listening", "waiting"}: ports that are served; addresses that cannot be, and why)
                     S answer (JSON {"id", "answer"})   X log record (JSON {"level", "logger", "message"})
                     M statistics (empty; the region's memfd comes with it as SCM_RIGHTS)

Rule: a configuration is the whole state, never a difference; generations only grow. The first frame a worker
gets is a configuration. Not for: what the resources mean (`agent.table`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from agent.table.build import Refused

CONFIG = b"C"
DRAIN = b"D"
REOPEN = b"R"
QUERY = b"Q"
APPLIED = b"A"
REFUSED = b"N"
LISTENING = b"L"
ANSWER = b"S"
LOG = b"X"
STATS = b"M"

ORPHAN_SECONDS = 30.0
"""How long connections may go on after the host process is gone, where the settings do not say so."""
MAX_FRAME = 256 * 1024 * 1024
_LENGTH = 4


class FrameError(ValueError):
    """Bytes that no honest peer sends; the connection must end."""


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """One workload's resources: type URL, name, serialised google.protobuf.Any."""

    key: str
    resources: Mapping[str, Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a worker serves.

    `settings`: `worker` (its index), `workers` (how many), `drainSeconds` (how long connections may go on after the
    host process is gone), and `sides`, by workload: `node` (metadata in Istio's keys) and `principal` (SPIFFE id), what
    metrics say of the own side.
    """

    generation: int
    workloads: Sequence[WorkloadConfig]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The payload of a CONFIG frame: 4 bytes of header length, JSON header, then all bodies in order."""
        bodies: list[bytes] = []
        workloads = []
        for workload in self.workloads:
            types: dict[str, list[tuple[str, int]]] = {}
            for type_url, resources in workload.resources.items():
                types[type_url] = [(name, len(body)) for name, body in resources.items()]
                bodies.extend(resources.values())
            workloads.append({"key": workload.key, "types": types})
        header = {"generation": self.generation, "settings": dict(self.settings), "workloads": workloads}
        encoded = json.dumps(header).encode()
        return b"".join([len(encoded).to_bytes(_LENGTH), encoded, *bodies])

    @classmethod
    def decode(cls, payload: bytes) -> Config:
        """Read the payload of a CONFIG frame; FrameError when it is not one."""
        try:
            offset = _LENGTH + int.from_bytes(payload[:_LENGTH])
            header = json.loads(payload[_LENGTH:offset])
            workloads = []
            for item in header["workloads"]:
                resources: dict[str, dict[str, bytes]] = {}
                for type_url, names in item["types"].items():
                    held = resources[type_url] = {}
                    for name, length in names:
                        held[name] = payload[offset : offset + length]
                        offset += length
                workloads.append(WorkloadConfig(item["key"], resources))
            config = cls(header["generation"], tuple(workloads), header["settings"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FrameError(f"not a configuration: {error}") from error
        if offset != len(payload):
            raise FrameError("a configuration of another length than it says")
        return config


def refusals_to_json(refused: Mapping[str, Sequence[Refused]]) -> dict[str, Any]:
    """What a worker cannot use of each workload's resources."""
    return {key: [astuple(one) for one in found] for key, found in refused.items() if found}


def refusals_of_json(value: Mapping[str, Any]) -> dict[str, tuple[Refused, ...]]:
    """The other way; FrameError when it is not one."""
    try:
        return {str(key): tuple(Refused(*one) for one in found) for key, found in value.items()}
    except (TypeError, AttributeError) as error:
        raise FrameError(f"not a list of refusals: {error}") from error


def encode(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame."""
    return (len(payload) + 1).to_bytes(_LENGTH) + kind + payload


def encode_json(kind: bytes, **values: Any) -> bytes:
    """One frame with a JSON payload."""
    return encode(kind, json.dumps(values).encode())


def decode_json(payload: bytes) -> dict[str, Any]:
    """The payload of a JSON frame; FrameError when it is no object."""
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise FrameError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError("not a JSON object")
    return value


class FrameReader:
    """Frames out of a byte stream, however it is cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The frames that are complete now, as (kind, payload)."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            length = int.from_bytes(self._buffer[:_LENGTH])
            if not 1 <= length <= MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes")
            end = _LENGTH + length
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[_LENGTH:end])
            del self._buffer[:end]
            yield frame[:1], frame[1:]
