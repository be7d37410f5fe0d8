"""Virtual addresses: Istio's ranges, no address twice, the same order for the same name."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import islice

import pytest

from registry.vips import CAPACITY, candidates, virtual_ips


def test_every_slot_has_its_own_pair_in_istios_ranges() -> None:
    pairs = [virtual_ips(slot) for slot in range(CAPACITY)]
    assert len({pair.v4 for pair in pairs}) == len({pair.v6 for pair in pairs}) == CAPACITY
    assert not {pair.v4.rpartition(".")[2] for pair in pairs} & {"0", "255"}
    for pair in (pairs[0], pairs[-1]):
        assert ip_address(pair.v4) in ip_network("240.240.0.0/16")
        assert ip_address(pair.v6) in ip_network("2001:2::/48")
    assert pairs[0] == ("240.240.0.1", "2001:2::f0f0:1")


@pytest.mark.parametrize("slot", [-1, CAPACITY])
def test_a_slot_out_of_range_is_refused(slot: int) -> None:
    with pytest.raises(ValueError, match="VIP slot"):
        virtual_ips(slot)


def test_a_name_tries_every_slot_once_and_always_in_the_same_order() -> None:
    order = list(candidates("reviews.default"))
    assert sorted(order) == list(range(CAPACITY))
    assert list(islice(candidates("reviews.default"), 5)) == order[:5]
    assert next(candidates("ratings.default")) != order[0]
