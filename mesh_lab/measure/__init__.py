"""Measure without lying: load from child processes, results with their spread, and this machine's ledger."""
