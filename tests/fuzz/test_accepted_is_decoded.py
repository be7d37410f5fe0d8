"""The property: a document that `apply` accepts compiles, and is decoded by the agent and by the real Envoy.

`HOSTMESH_FUZZ_EXAMPLES=5000` tries more, at random; a usual run tries the same documents every time.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from istiod.resources.document import Parsed, parse
from tests.fuzz.documents import CASES, KINDS, documents
from tests.fuzz.world import Sample, World, refused_by_agent, refused_by_envoy, sample

pytestmark = pytest.mark.envoy
_EXAMPLES = int(os.environ.get("HOSTMESH_FUZZ_EXAMPLES", "0"))
FILES = sorted(
    path
    for folder in ("istio-samples", "istio-config", "istio-validation")
    for path in (CASES / folder).rglob("*.yaml")
)
NEEDS_FILES = ("caCertificates", "clientCertificate", "privateKey", "caCrl")
"""What names files of a host: Envoy reads them when it validates, and here they are not."""


def tried(world: World, text: str, parsed: Parsed) -> Sample | None:
    """Compile and decode what was accepted; for Envoy what changed, None when nothing did or it needs files."""
    made = world.compiled([one.resource for one in parsed.documents])
    changed = world.changed(made)
    reasons = refused_by_agent(made, changed)
    assert not reasons, f"{text}\nthe agent refuses: {reasons}"
    if any(word in text for word in NEEDS_FILES) or not any(
        part.of(url) for part in changed for url in part.types
    ):
        return None
    return sample(text, made, changed)


def test_whatever_is_accepted_compiles_and_is_decoded_by_agent_and_envoy(tmp_path: Path) -> None:
    world, samples, counts = World(), [], Counter[str]()
    faults: list[str] = []

    @settings(
        max_examples=_EXAMPLES or 600,
        derandomize=not _EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(documents())
    def each(document: dict[str, Any]) -> None:
        text = yaml.safe_dump(document, sort_keys=False)
        parsed = parse(text)
        counts["tried"] += 1
        if parsed.blocking() or not parsed.documents:
            return
        counts["accepted"] += 1
        counts[document["kind"]] += 1
        try:
            found = tried(world, text, parsed)
        except AssertionError as fault:
            faults.append(str(fault))
            return
        if found is not None:
            samples.append(found)

    each()
    print(dict(counts), len(samples), "for Envoy")
    refused = refused_by_envoy(samples, tmp_path)
    faults += [f"{one.text}\nEnvoy refuses: {reason}" for one, reason in refused]
    assert not faults, f"{len(faults)} faults\n\n" + "\n\n".join(faults[:20])
    assert counts["accepted"] > counts["tried"] // 6
    assert len([kind for kind in KINDS if counts[kind]]) >= 6


def test_all_of_istios_files_that_are_accepted_compile_and_are_decoded(tmp_path: Path) -> None:
    world, samples, faults = World(), [], []
    accepted = 0
    for path in FILES:
        text = path.read_text()
        parsed = parse(text, path.name)
        good = [
            one
            for one in parsed.documents
            if one.subject not in {problem.subject for problem in parsed.blocking()}
        ]
        if not good:
            continue
        accepted += 1
        try:
            found = tried(world, text, Parsed(tuple(good)))
        except AssertionError as fault:
            faults.append(f"{path.parent.name}/{path.name}: {fault}")
            continue
        if found is not None:
            samples.append(Sample(f"{path.parent.name}/{path.name}", found.listeners, found.clusters))
    faults += [f"{one.text}: Envoy refuses: {reason}" for one, reason in refused_by_envoy(samples, tmp_path)]
    assert not faults, f"{len(faults)} faults\n\n" + "\n\n".join(faults)
    assert accepted > 40
