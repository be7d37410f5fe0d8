"""The work that a configuration may ask of the agent is bounded; what asks for more is refused with its path."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.table.bootstrap import load
from agent.table.errors import ConfigError
from agent.worker.standalone import read

TREE: dict[str, Any] = yaml.safe_load("""
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
static_resources:
  clusters:
  - name: a
    type: STATIC
    load_assignment:
      cluster_name: a
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9000}}}
          load_balancing_weight: 1
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9001}}}
          load_balancing_weight: 1
""")
POLICY = "type.googleapis.com/envoy.extensions.load_balancing_policies"


def typed(kind: str, **config: Any) -> dict[str, Any]:
    """A load_balancing_policy of one kind."""
    inner = {"@type": f"{POLICY}.{kind}", **config}
    return {
        "load_balancing_policy": {
            "policies": [{"typed_extension_config": {"name": "x", "typed_config": inner}}]
        }
    }


TYPED = "load_balancing_policy.policies[0].typed_extension_config.typed_config"


def keepalive(**fields: Any) -> dict[str, Any]:
    return {"upstream_connection_options": {"tcp_keepalive": fields}}


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 100}}, "maglev_lb_config.table_size", "prime"),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 1}}, "maglev_lb_config.table_size", "prime"),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 5000011}}, "maglev_lb_config.table_size", "262144"),
        (typed("maglev.v3.Maglev", table_size=65536), f"{TYPED}.table_size", "prime"),
        ({"ring_hash_lb_config": {"minimum_ring_size": 2048, "maximum_ring_size": 1024}},
         "ring_hash_lb_config.minimum_ring_size", "more than maximum_ring_size"),
        (typed("ring_hash.v3.RingHash", minimum_ring_size=8 << 20), f"{TYPED}.minimum_ring_size", "262144"),
        ({"least_request_lb_config": {"choice_count": 4294967295}}, "least_request_lb_config.choice_count", "100"),
        (keepalive(keepalive_time=32768), "upstream_connection_options.tcp_keepalive.keepalive_time", "32767"),
        (keepalive(keepalive_interval=4294967295), "upstream_connection_options.tcp_keepalive.keepalive_interval", "32767"),
        (keepalive(keepalive_probes=128), "upstream_connection_options.tcp_keepalive.keepalive_probes", "127"),
        ({"connect_timeout": "10000000000s"}, "connect_timeout", "at most 9223372036 s"),
    ],
)  # fmt: skip
def test_numbers_that_are_too_much_for_a_worker_are_refused(
    fields: dict[str, Any], path: str, reason: str
) -> None:
    tree = copy.deepcopy(TREE)
    tree["static_resources"]["clusters"][0].update(fields)
    with pytest.raises(ConfigError) as caught:
        load(yaml.safe_dump(tree))
    assert caught.value.path == f"static_resources.clusters[0].{path}"
    assert reason in caught.value.reason


def test_weights_of_endpoints_must_add_up_within_32_bits() -> None:
    tree = copy.deepcopy(TREE)
    endpoints = tree["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
    for endpoint in endpoints[0]["lb_endpoints"]:
        endpoint["load_balancing_weight"] = 0x80000000
    with pytest.raises(ConfigError, match="endpoints: the weights of a locality's endpoints add up to more"):
        load(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 2000,
        "node: {metadata: " + "[" * 2000 + "]" * 2000 + "}",
        "node: {metadata: {a: &a [*a]}}",
        "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n"
        + "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 12)),
    ],
    ids=["lists", "inside", "itself", "laughs"],
)
def test_documents_nested_or_multiplied_without_bound_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_bootstrap_that_serves_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}")
    with pytest.raises(SystemExit) as ended:
        read(empty)
    assert ended.value.code == 1
    assert "nothing to serve" in capsys.readouterr().err
