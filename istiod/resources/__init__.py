"""Istio's resources: the table of kinds (`kinds`), models and validation, and reading them from YAML (`document`).

Imports nothing: meshctl needs the kinds' names without their models.
"""
