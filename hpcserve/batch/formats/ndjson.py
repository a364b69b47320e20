"""Another ending for JSON Lines."""

from hpcserve.batch.formats.jsonl import Reader, Writer

__all__ = ["Reader", "Writer"]
