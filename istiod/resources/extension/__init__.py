"""Kinds that this version refuses: EnvoyFilter, WasmPlugin, Telemetry, ProxyConfig.

Their schema is checked in full already, so that a mistake is named beside the refusal.
"""
