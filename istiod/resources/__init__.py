"""Istio's resources: models, validation, and reading them from YAML."""

from istiod.resources.document import Document, InvalidResourceError, Parsed, parse, typed
from istiod.resources.kinds import KINDS, Effect, Kind, find_kind
from istiod.resources.problem import Problem, Severity

__all__ = [
    "KINDS",
    "Document",
    "Effect",
    "InvalidResourceError",
    "Kind",
    "Parsed",
    "Problem",
    "Severity",
    "find_kind",
    "parse",
    "typed",
]
