"""Another ending for JSON Lines."""

from hpcserve.batch.writers.jsonl import Writer, names

__all__ = ["Writer", "names"]
