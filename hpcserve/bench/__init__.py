"""Benchmarks that anyone can run: workloads, a fast HTTP client, and the figures they give."""
