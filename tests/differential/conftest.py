"""What the tests with several workers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.differential.workers import Host


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(kind: str, spec: dict[str, Any], workers: int = 2) -> Host:
        made.append(Host(kind, spec, tmp_path, workers))
        return made[-1]

    yield make
    for each in made:
        each.close()
