"""From a snapshot to Envoy's resources for one proxy. Pure.

Read in this order: `proxy` (what is known of the proxy), `resources` (the whole of one proxy), then
`clusters`, `endpoints`, `outbound`, `routes`, `inbound`, `name_table` and what these use.
"""

from istiod.compile.cache import Cache
from istiod.compile.resources import ProxyResources, compile_proxy
from istiod.proxy import ProxyInfo

compile = compile_proxy

__all__ = ["Cache", "ProxyInfo", "ProxyResources", "compile", "compile_proxy"]
