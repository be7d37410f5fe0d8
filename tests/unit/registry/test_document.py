"""The stored documents: round trips, tolerance for newer writers, and damage that names itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.document import (
    ServiceEntry,
    decode_instance,
    decode_resource,
    decode_service,
    encode_instance,
    encode_resource,
    encode_service,
    next_stored,
    same_content,
    served,
)
from registry.errors import NotARegistryError
from registry.model import Health, Instance, Port, Resource, merge_ports

names = st.text(max_size=12)
ports = st.builds(Port, names, st.integers(1, 65535), names, st.integers(0, 65535))
instances = st.builds(
    Instance,
    id=names,
    service=names,
    namespace=names,
    addresses=st.lists(st.ip_addresses().map(str), max_size=3).map(tuple),
    ports=st.lists(ports, max_size=4).map(tuple),
    labels=st.dictionaries(names, names, max_size=4),
    service_account=names,
    locality=names,
    weight=st.integers(0, 1000),
    health=st.sampled_from(Health),
    node=names,
    workload=names,
    owner=names,
    mtls=st.booleans(),
)
SPEC = {"hosts": ["reviews"], "http": [{"weight": 1.5, "none": None}]}
RESOURCE = Resource("VirtualService", "default", "reviews", "networking.istio.io/v1", SPEC)


@given(instances)
def test_an_instance_survives_storage(instance: Instance) -> None:
    assert decode_instance(encode_instance(instance), "x") == instance


def test_a_newer_writers_additions_are_ignored() -> None:
    instance = Instance("a", "b", "c", ("10.0.0.1",), (Port("http", 80),))
    document = json.loads(encode_instance(instance)) | {"inventedLater": {"x": 1}}
    assert decode_instance(json.dumps(document), "x") == instance


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": 1}', "\ufffd"])
def test_damage_names_the_document(text: str) -> None:
    for decode in (decode_instance, decode_service):
        with pytest.raises(NotARegistryError, match="the key k"):
            decode(text, "the key k")
    with pytest.raises(NotARegistryError, match="the key k"):
        decode_resource(text, "1", "the key k")


def test_a_resource_is_the_same_whatever_the_order_of_its_keys() -> None:
    stored = next_stored(RESOURCE, None, 5.0)
    shuffled = replace(RESOURCE, spec=dict(reversed(SPEC.items())))
    assert same_content(shuffled, stored)
    assert not same_content(replace(RESOURCE, labels={"a": "b"}), stored)
    assert decode_resource(encode_resource(stored), "7", "x") == replace(stored, version="7")


def test_the_latest_instances_word_on_a_port_wins() -> None:
    known = (Port("a", 80), Port("b", 90))
    assert merge_ports(known, (Port("z", 90, "http", 9090), Port("c", 70))) == (
        Port("c", 70),
        Port("a", 80),
        Port("z", 90, "http"),
    )


def test_a_service_shows_the_ports_that_are_served_or_all_when_nobody_serves() -> None:
    entry = ServiceEntry("default", "reviews", (Port("a", 80), Port("b", 90)), 0)
    live = Instance("x", "reviews", "default", ("10.0.0.1",), (Port("b", 90),))
    assert served(entry, [live]).ports == (Port("b", 90),)
    assert served(entry, []).ports == entry.ports
    assert decode_service(encode_service(entry), "x") == entry
