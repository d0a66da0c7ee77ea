"""Metrics and statistics on plain arrays; works without torch."""
