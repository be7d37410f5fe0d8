"""The filters' run-time interface, under the name that filters use (see agent/http/step)."""

from agent.http.step import NO_STEPS, RequestStep, ResponseStep, Steps

__all__ = ["NO_STEPS", "RequestStep", "ResponseStep", "Steps"]
