"""`when` of an AuthorizationPolicy: conditions with one value, with several, and on lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from istiod.resources.document import parse
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Mesh
from tests.unit.istiod.test_compile_envoy import accepted

URL = "http://reviews:9080/"
ONE_VALUE = (
    "{key: 'request.auth.claims[role]', values: [customer]}",
    "{key: 'request.auth.claims[a][b]', values: [customer]}",
    "{key: request.auth.audiences, values: [shop]}",
    "{key: request.auth.presenter, values: [shop]}",
    "{key: 'experimental.envoy.filters.network.mysql[table]', values: [orders]}",
    "{key: 'experimental.envoy.filters.network.mysql[table]', values: ['[orders]']}",
)


def policy(condition: str, action: str = "ALLOW") -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: x}}
spec:
  action: {action}
  selector: {{matchLabels: {{app: reviews}}}}
  rules: [{{when: [{condition}]}}]
"""


def with_policy(text: str) -> Mesh:
    mesh = bookinfo()
    # Stored as such: apply refuses policies that err on the unsafe side as long as nothing verifies tokens.
    mesh.store(parse(text).documents)
    return mesh


@pytest.mark.parametrize("condition", ONE_VALUE)
def test_a_condition_with_one_value_is_enforced(condition: str) -> None:
    mesh = with_policy(policy(condition))
    decision = mesh.call("productpage-v1", URL)
    assert (decision.status, decision.workload) == (403, "")
    assert mesh.call("productpage-v1", "http://details:9080/").workload == "details-v1"


@pytest.mark.parametrize("condition", ONE_VALUE)
def test_a_denied_condition_with_one_value_refuses_nobody_else(condition: str) -> None:
    assert with_policy(policy(condition, "DENY")).call("productpage-v1", URL).status == 200


@pytest.mark.parametrize("condition", ONE_VALUE)
def test_an_excluded_value_lets_others_in(condition: str) -> None:
    assert (
        with_policy(policy(condition.replace("values", "notValues"))).call("productpage-v1", URL).status
        == 200
    )


@pytest.mark.envoy
def test_the_real_envoy_accepts_conditions_with_one_value(tmp_path: Path) -> None:
    rules = ", ".join(f"{{when: [{one}]}}" for one in ONE_VALUE)
    mesh = with_policy(policy("{key: source.ip, values: ['192.0.2.1']}"))
    mesh.apply(policy("").replace("[{when: []}]", f"[{rules}]"))
    accepted(mesh.compiled("reviews-v1"), tmp_path, deprecated=True)


@pytest.mark.parametrize(
    "key",
    ("experimental.envoy.filters.a.b", "experimental.envoy.filters.a[", "experimental.envoy.filters.[k]"),
)
def test_metadata_of_another_filter_without_key_is_refused(key: str) -> None:
    problems = parse(policy(f"{{key: '{key}', values: [v]}}")).errors()
    assert [problem.path for problem in problems] == ["spec.rules[0].when[0].key"]
