"""networking.istio.io ProxyConfig: settings of the proxy itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from istiod.resources.schema import (
    Int32,
    Spec,
    Str,
    empty,
)
from istiod.resources.selector import WorkloadSelector


class Image(Spec):
    """The proxy's container image: nothing on a machine of its own."""

    image_type: Str = ""


class ProxyConfig(Spec):
    """Settings of the proxy itself."""

    selector: WorkloadSelector | None = None
    concurrency: Annotated[Int32, Field(ge=0)] | None = None
    environment_variables: dict[str, Str] = empty()
    image: Image | None = None
