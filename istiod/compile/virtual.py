"""Virtual addresses: 240.240.0.0/16 and 2001:2::/48 exist nowhere, so no call may be passed on to one.

A listener knows a connection to them by its own filter chains, which note the destination in the connection's filter
state; routes for authorities that nobody has look there (routes.py). Real Envoy has both parts, too.
Rule: a call to a virtual address ends at the service that has it, or is refused at once.
"""

from __future__ import annotations

from envoy.config.core.v3 import address_pb2
from envoy.config.listener.v3 import listener_components_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.type.matcher.v3 import filter_state_pb2, regex_pb2, string_pb2

from istiod.compile.envoy import any_of
from istiod.compile.principal import cidr
from registry.vips import RANGES

SET_FILTER_STATE = "envoy.filters.network.set_filter_state"
STATE = "hostmesh.virtual_destination"


def blocks() -> list[address_pb2.CidrRange]:
    """The ranges, for filter chain matches."""
    return [cidr(block) for block in RANGES]


def note_destination() -> listener_components_pb2.Filter:
    """The network filter that notes where a connection wanted to go."""
    value = value_pb2.FilterStateValue(object_key=STATE, factory_key="envoy.string")
    value.format_string.text_format_source.inline_string = "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"
    config = set_filter_state_pb2.Config(on_new_connection=[value])
    return listener_components_pb2.Filter(name=SET_FILTER_STATE, typed_config=any_of(config))


def went_to(address: str) -> route_components_pb2.RouteMatch:
    """Every request of a connection to one virtual address; "" for any of them."""
    wanted = string_pb2.StringMatcher(exact=address)
    if not address:
        wanted = string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=".+"))
    match = route_components_pb2.RouteMatch(prefix="/")
    match.filter_state.append(filter_state_pb2.FilterStateMatcher(key=STATE, string_match=wanted))
    return match
