"""Statistics, access logs and their exposition.

What the data plane calls:

- `series.Recorder(region=None, node_metadata=None, principal=…)`: a worker's statistics. Without a region it makes
  one of its own (same code path). `record(outcome)` counts a finished HTTP request; `record_tcp_opened(outcome)`
  returns a series number for `record_tcp_bytes(series, received, sent)` and `record_tcp_closed(series)`.
- `recorder.cluster(stat_name)`, `.http(stat_prefix)`, `.listener(address)`, `.tcp(stat_prefix)`, `.server`: scopes
  whose attributes are slot numbers. Counters and gauges are `slots = recorder.slots; slots[stats.upstream_cx_total]
  += 1; slots[stats.upstream_cx_active] -= 1`. Make scopes when the table is applied and keep them (they are
  idempotent by name). What `record` counts by response code and time need not be counted again.
- `access_log.Sinks`: one for a worker; `sinks.compile(manager.access_logs)` gives functions to call with the
  outcome; `sinks.flush()` every `FLUSH_SECONDS`, `sinks.reopen()` on rotation, `sinks.close()` at the end.
  `compile` raises `format.FormatError` or OSError for a log that cannot be: refuse the configuration.
- `format.compile_format(text)`, `format.compile_json(tree)`: functions of an Outcome.
- Outcome: `stat_prefix` is the connection manager's; metadata objects must be those of the table (they are known
  by identity).

What readers call: `stats.StatsRegion.attach(fd)` for a descriptor received from a worker (`recorder.region.fd`),
`reading.Workers` to add workers up, `prometheus.exposition`, `prometheus.stats_text`, `prometheus.stats_json`.
"""
