"""Backbones, heads, message passing and weight files."""
