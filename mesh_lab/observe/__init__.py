"""Watch servers and messages: monitoring endpoints, traces, metrics."""
