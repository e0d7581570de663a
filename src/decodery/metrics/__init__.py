"""Metrics: pure functions from texts, tokens and reports to numbers."""
