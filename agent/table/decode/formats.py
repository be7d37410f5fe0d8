"""Substitution formats for bodies and logs (envoy.config.core.v3.SubstitutionFormatString)."""

from __future__ import annotations

from typing import Any

from agent.table.decode.matchers import data
from agent.table.decode.message import Reader
from agent.table.filter_config import BodyFormat

_FORMATTERS = {
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    "envoy.extensions.formatter.metadata.v3.Metadata",
}
"""Formatters whose operators are always there."""


def body_format(reader: Reader) -> BodyFormat:
    """SubstitutionFormatString."""
    with reader as r:
        kind = r.which("format")
        if (options := r.child("json_format_options")) is not None:
            with options as o:
                o.without_effect("sort_properties")  # key order only; ours is sorted
        for item in r.children("formatters"):
            with item as f:
                f.without_effect("name")  # the type decides
                formatter: Any = f.typed("typed_config") or f.fail("typed_config", "required")
                with formatter as t:
                    if t.type not in _FORMATTERS:
                        t.fail("", f"unsupported type {t.type}")
        text, json = "", None
        if kind == "text_format":
            text = r.text(kind)
        elif kind == "text_format_source":
            try:
                text = data(r.must(kind)).decode()
            except UnicodeDecodeError:
                r.fail(kind, "not UTF-8")
        elif kind == "json_format":
            json = r.tree(kind)
        else:
            r.fail("", "one of text_format_source, json_format is required")
        return BodyFormat(text, json, r.text("content_type"), r.boolean("omit_empty_values"))
