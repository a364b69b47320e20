"""Cases of paged attention, shared by tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """seq_lens: tokens in the cache of each row, 0 for padding; query_lens: new ones among them."""

    seq_lens: tuple[int, ...]
    query_lens: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int


DECODE_SMALL = [
    Case((1, 300, 0, 70), (1, 1, 1, 1), 4, 2, 32, 16),
    Case((17, 2, 600), (1, 1, 1), 4, 1, 64, 1),
    Case((65,), (1,), 2, 2, 16, 64),
    Case((33, 5), (1, 1), 20, 1, 32, 16),
]
PREFILL_SMALL = [
    Case((1, 150, 0, 70), (1, 140, 1, 3), 2, 1, 32, 16),
    Case((20, 9), (20, 4), 2, 2, 64, 1),
    Case((130,), (2,), 1, 1, 16, 64),
]


def _decode(rows: int, length: int, page_size: int) -> Case:
    return Case((length,) * rows, (1,) * rows, 32, 8, 128, page_size)


DECODE_FULL = [
    _decode(rows, length, page_size)
    for page_size in (1, 16, 64)
    for rows, length in ((1, 1024), (64, 1024), (256, 1024), (64, 4096), (1, 32768))
] + [
    Case(tuple(range(1, 1024, 16)), (1,) * 64, 32, 8, 128, 16),
    Case((1024,) * 64, (1,) * 64, 32, 4, 64, 16),
    Case((1024,) * 64, (1,) * 64, 16, 8, 256, 16),
]
PREFILL_FULL = [
    Case((4096,) * 4, (4096,) * 4, 32, 8, 128, page_size) for page_size in (1, 16, 64)
] + [
    Case((16384,), (2048,), 32, 8, 128, 16),
    Case((700, 33, 4000, 1), (700, 33, 500, 1), 32, 8, 128, 16),
    Case((2048,) * 4, (2048,) * 4, 32, 4, 64, 16),
    Case((2048,) * 4, (2048,) * 4, 16, 8, 256, 16),
]
