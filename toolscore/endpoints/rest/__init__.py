"""REST: the monitoring API of docs/wire.md."""
