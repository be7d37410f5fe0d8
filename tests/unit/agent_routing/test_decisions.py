"""What Envoy 1.40 was seen to do with a request, table, routing and filters decide too: no proxy, no Envoy needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.agent_routing.decide import Decider, bootstrap

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.yaml"))


def _configurations() -> Iterator[Any]:
    for path in RECORDED:
        for name, spec in yaml.safe_load(path.read_text()).items():
            yield pytest.param(spec, id=f"{path.stem}: {name}")


@pytest.mark.parametrize("spec", list(_configurations()))
def test_requests_are_decided_as_envoy_decided_them(spec: dict[str, Any]) -> None:
    decider = Decider(bootstrap(spec))
    for call in spec["calls"]:
        assert decider.answer(call["request"]) == call["envoy"], call["request"]
