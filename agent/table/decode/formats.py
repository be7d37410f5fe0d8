"""Substitution formats for bodies and logs (envoy.config.core.v3.SubstitutionFormatString)."""

from __future__ import annotations

from agent.table.decode.matchers import data
from agent.table.decode.message import Reader
from agent.table.filter_config import BodyFormat


def body_format(reader: Reader) -> BodyFormat:
    """SubstitutionFormatString."""
    with reader as r:
        kind = r.which("format")
        if (options := r.child("json_format_options")) is not None:
            with options as o:
                o.without_effect("sort_properties")  # key order only; ours is sorted
        text, json = "", None
        if kind == "text_format":
            text = r.text(kind)
        elif kind == "text_format_source":
            text = data(r.must(kind)).decode()
        elif kind == "json_format":
            json = r.tree(kind)
        else:
            r.fail("", "one of text_format_source, json_format is required")
        return BodyFormat(text, json, r.text("content_type"), r.boolean("omit_empty_values"))
