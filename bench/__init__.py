"""Benchmarks: our data plane and the real Envoy on the same bootstrap files, in turn, on one machine.

`python -m bench --help`. Numbers are for ratios within one run; nothing here is a test, and no test reads a clock.
"""
