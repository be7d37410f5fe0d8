"""When traffic is captured, and for whom: start, workers that come and go, expired identities, an operator's wish."""

from __future__ import annotations

import pytest

from agent.host.capture.gate import WORKERS, Gate
from agent.host.capture.rules import Rules, WorkloadRules
from agent.host.capture.table import Capture, CaptureError

SHOP = WorkloadRules(outbound=15001, inbound=15006, dns=15053, ports=(8080,))
REVIEWS = WorkloadRules(outbound=15101, inbound=15106, dns=15153, uid=1001, ports=(9080,))


class Kernel(Capture):
    """A capture that keeps its rules in memory and can refuse them."""

    def __init__(self) -> None:
        super().__init__(Rules((SHOP, REVIEWS)))
        self.loaded: Rules | None = None
        self.refuses = ""

    def up(self, rules: Rules | None = None) -> None:
        if self.refuses:
            raise CaptureError(self.refuses)
        self.loaded = rules

    def down(self) -> None:
        self.loaded = None


def test_nothing_is_captured_before_the_start_is_over_and_after_the_end() -> None:
    kernel = Kernel()
    gate = Gate(kernel, ("default/shop", "default/reviews"), enabled=True)
    gate.hold(WORKERS, "no worker serves")
    gate.release(WORKERS)
    assert (kernel.loaded, gate.ready) == (None, False)
    gate.open()
    assert kernel.loaded == kernel.rules
    assert gate.ready
    gate.close()
    gate.hold(WORKERS, "no worker serves")
    gate.release(WORKERS)
    assert (kernel.loaded, gate.ready) == (None, False)


def test_without_a_worker_capture_is_down_until_one_serves() -> None:
    kernel = Kernel()
    gate = Gate(kernel, ("default/shop", "default/reviews"), enabled=True)
    gate.open()
    gate.hold(WORKERS, "no worker serves")
    assert (kernel.loaded, gate.ready) == (None, False)
    gate.release(WORKERS)
    assert kernel.loaded == kernel.rules
    assert gate.ready


def test_an_expired_workload_leaves_its_neighbours_captured_and_is_given_to_none_of_them() -> None:
    kernel = Kernel()
    gate = Gate(kernel, ("default/shop", "default/reviews"), enabled=True)
    gate.open()
    gate.hold("default/reviews", "its certificate has expired")
    assert kernel.loaded is not None
    assert kernel.loaded.workloads == (SHOP,)
    assert 9080 in kernel.loaded.exclude_inbound_ports, "the shop does not answer for it"
    assert 1001 in kernel.loaded.exclude_outbound_uids, "the shop does not call for it"
    assert not gate.ready
    gate.hold("default/shop", "its certificate has expired")
    assert kernel.loaded is None
    gate.release("default/reviews")
    assert kernel.loaded is not None
    assert kernel.loaded.workloads == (REVIEWS,)
    gate.release("default/shop")
    assert kernel.loaded == kernel.rules
    assert gate.ready


def test_what_an_operator_took_down_stays_down_until_he_puts_it_up() -> None:
    kernel = Kernel()
    gate = Gate(kernel, ("default/shop", "default/reviews"), enabled=True)
    gate.open()
    gate.take_down()
    gate.hold(WORKERS, "no worker serves")
    gate.release(WORKERS)
    assert kernel.loaded is None
    assert gate.ready, "the proxy serves whoever asks it"
    gate.put_up()
    assert kernel.loaded == kernel.rules


def test_rules_that_cannot_be_loaded_are_tried_again_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    gate = Gate(kernel, ("default/shop", "default/reviews"), enabled=True)
    gate.open()
    gate.hold(WORKERS, "no worker serves")
    kernel.refuses = "a table inet hostmesh exists that is not ours"
    for _ in range(3):
        gate.release(WORKERS)
        gate.settle()
    assert not gate.ready
    assert gate.error == kernel.refuses
    assert caplog.text.count("cannot be brought up") == 1
    kernel.refuses = ""
    gate.settle()
    assert kernel.loaded == kernel.rules
    assert gate.ready


def test_a_host_that_captures_nothing_is_ready_all_the_same() -> None:
    kernel = Kernel()
    gate = Gate(kernel, ("default/shop", "default/reviews"), enabled=False)
    gate.open()
    assert (kernel.loaded, gate.ready) == (None, True)


def test_it_says_of_each_workload_why_its_traffic_may_not_come() -> None:
    kernel = Kernel()
    gate = Gate(kernel, ("default/shop", "default/reviews"), enabled=True)
    assert gate.against("default/shop") == "the agent is starting"
    gate.open()
    gate.hold("default/reviews", "its certificate has expired")
    assert (gate.against("default/shop"), gate.against("default/reviews")) == (
        "",
        "its certificate has expired",
    )
    gate.hold(WORKERS, "no worker serves")
    assert gate.against("default/shop") == "no worker serves"
    kernel.refuses = "a table inet hostmesh exists that is not ours"
    gate.release(WORKERS)
    assert gate.against("default/shop") == kernel.refuses
    kernel.refuses = ""
    gate.settle()
    assert gate.against("default/shop") == ""
