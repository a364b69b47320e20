"""Checks of a node before it costs anybody's time, one subject per file."""
