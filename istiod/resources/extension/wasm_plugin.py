"""extensions.istio.io WasmPlugin: a proxy-wasm module in the filter chain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.schema import (
    Int32,
    NonEmpty,
    PortNumber,
    Spec,
    Str,
    Struct,
)
from istiod.resources.selector import TargetReference, TargetRefs, WorkloadSelector, one_target


class EnvVar(Spec):
    """An environment variable of the module's virtual machine."""

    name: Annotated[NonEmpty, StringConstraints(max_length=256)]
    value_from: Literal["INLINE", "HOST"] = "INLINE"
    value: Annotated[Str, StringConstraints(max_length=2048)] = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.value and self.value_from != "INLINE":
            yield "value", "value may only be set when valueFrom is INLINE"


class VmConfig(Spec):
    """The module's virtual machine."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        names = [variable.name for variable in self.env]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield f"env[{index}]", f"Duplicate value: {name!r}"


class WasmPort(Spec):
    """A port."""

    number: PortNumber


class TrafficSelector(Spec):
    """Which traffic a plugin sees."""

    mode: Literal["UNDEFINED", "CLIENT", "SERVER", "CLIENT_AND_SERVER"] = "CLIENT_AND_SERVER"
    ports: tuple[WasmPort, ...] = ()


class WasmPlugin(Spec):
    """A proxy-wasm module in the filter chain."""

    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: TargetRefs = ()
    url: NonEmpty
    sha256: Annotated[Str, StringConstraints(pattern=r"(^$|^[a-f0-9]{64}$)")] = ""
    image_pull_policy: Literal["UNSPECIFIED_POLICY", "IfNotPresent", "Always"] = "UNSPECIFIED_POLICY"
    image_pull_secret: Annotated[NonEmpty, StringConstraints(max_length=253)] | None = None
    verification_key: Str = ""
    plugin_config: Struct | None = None
    plugin_name: Annotated[NonEmpty, StringConstraints(max_length=256)] | None = None
    phase: Literal["UNSPECIFIED_PHASE", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED_PHASE"
    priority: Int32 | None = None
    fail_strategy: Literal["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"] = "FAIL_CLOSE"
    vm_config: VmConfig | None = None
    match: tuple[TrafficSelector, ...] = ()
    type: Literal["UNSPECIFIED_PLUGIN_TYPE", "HTTP", "NETWORK"] = "UNSPECIFIED_PLUGIN_TYPE"

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from one_target(self.target_ref, self.target_refs, self.selector)
        scheme, separator, _ = self.url.partition("://")
        if not separator:
            scheme = "oci" if re.fullmatch(r"[-\w.:/@]+", self.url) else ""
        if scheme not in ("http", "https", "file", "oci"):
            yield "url", "url must have schema one of [http, https, file, oci]"
