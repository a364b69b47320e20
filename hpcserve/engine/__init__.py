"""Processes and the step loop."""
