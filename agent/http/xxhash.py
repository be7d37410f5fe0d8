"""xxHash64 (Collet), the hash of Envoy's hash policies, rings and Maglev tables.

Here because routing hashes requests and the upstream's balancers hash hosts, and neither may know the other.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = (1 << 64) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def xxhash64(data: bytes, seed: int = 0) -> int:
    """xxHash64 (Collet), the hash that Envoy's ring and maglev use."""
    length, position = len(data), 0
    if length >= 32:
        lanes = [(seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK]
        while position + 32 <= length:
            for lane in range(4):
                word = int.from_bytes(data[position : position + 8], "little")
                lanes[lane] = _round(lanes[lane], word)
                position += 8
        rotated = zip(lanes, (1, 7, 12, 18), strict=True)
        digest = sum(rotate(value, by) for value, by in rotated) & _MASK
        for value in lanes:
            digest = ((digest ^ _round(0, value)) * _P1 + _P4) & _MASK
    else:
        digest = (seed + _P5) & _MASK
    digest = (digest + length) & _MASK
    while position + 8 <= length:
        word = int.from_bytes(data[position : position + 8], "little")
        digest = (rotate(digest ^ _round(0, word), 27) * _P1 + _P4) & _MASK
        position += 8
    if position + 4 <= length:
        word = int.from_bytes(data[position : position + 4], "little")
        digest = (rotate(digest ^ (word * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
        position += 4
    for byte in data[position:]:
        digest = rotate(digest ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK
    digest = (digest ^ (digest >> 33)) * _P2 & _MASK
    digest = (digest ^ (digest >> 29)) * _P3 & _MASK
    return digest ^ (digest >> 32)


def _round(lane: int, word: int) -> int:
    return rotate((lane + word * _P2) & _MASK, 31) * _P1 & _MASK


def rotate(value: int, by: int) -> int:
    """To the left, in 64 bits."""
    return ((value << by) | (value >> (64 - by))) & _MASK
