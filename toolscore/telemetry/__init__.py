"""Figures for those who watch: metrics, traces, logs."""
