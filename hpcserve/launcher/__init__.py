"""Turns a config into a running job, and follows it."""
