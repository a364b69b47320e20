"""Another ending for JSON Lines."""

from hpcserve.batch.formats.jsonl import Reader

__all__ = ["Reader"]
