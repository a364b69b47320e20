"""HTTP in, SSE out; no inference logic."""
