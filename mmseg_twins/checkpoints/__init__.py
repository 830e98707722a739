"""Reads, converts, verifies and writes checkpoints of every Twins layout."""
