"""Bytes that come over a network or out of a tar, kept over restarts. Knows nothing about checkpoints."""
