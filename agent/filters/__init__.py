"""HTTP and network filters, one module each: pure functions over a request's context.

Rule: `compile_steps` turns a chain and the overrides of a route into two flat tuples; the exchange runs them.
"""

from agent.filters.chain import FilterState, compile_steps

__all__ = ["FilterState", "compile_steps"]
