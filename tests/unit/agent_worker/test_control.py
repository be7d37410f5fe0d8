"""Frames between host and worker survive any cut, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.worker.control import (
    APPLIED,
    CONFIG,
    Config,
    FrameError,
    FrameReader,
    WorkloadConfig,
    decode_json,
    encode,
    encode_json,
)

RESOURCES = st.dictionaries(
    st.text(), st.dictionaries(st.text(), st.binary(max_size=40), max_size=3), max_size=3
)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.text(), RESOURCES), max_size=3), st.lists(st.integers(1, 30), min_size=1))
def test_a_configuration_arrives_as_it_was_sent_however_it_is_cut(
    workloads: list[tuple[str, dict[str, dict[str, bytes]]]], cuts: list[int]
) -> None:
    config = Config(7, tuple(WorkloadConfig(key, resources) for key, resources in workloads), {"worker": 1})
    wire = encode(CONFIG, config.encode()) + encode_json(APPLIED, generation=7)
    reader, frames, offset, turn = FrameReader(), [], 0, 0
    while offset < len(wire):
        size = cuts[turn % len(cuts)]
        frames += list(reader.feed(wire[offset : offset + size]))
        offset, turn = offset + size, turn + 1
    assert [kind for kind, _ in frames] == [CONFIG, APPLIED]
    assert Config.decode(frames[0][1]) == config
    assert decode_json(frames[1][1]) == {"generation": 7}


@pytest.mark.parametrize("data", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_impossible_lengths_end_the_connection(data: bytes) -> None:
    with pytest.raises(FrameError):
        list(FrameReader().feed(data))


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=60))
def test_nonsense_is_no_configuration(data: bytes) -> None:
    with pytest.raises(FrameError):
        Config.decode(data)
