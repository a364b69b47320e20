"""Tiles of the two grouped matrix products, by shape where that was measured, else by a rule.

The rule goes by the rows that an expert has on average: few are bound by reading the weights, many
by the tensor cores. `tuned.json` beside this file, where there is one, holds what
benchmarks/kernels/bench_moe.py measured, by device.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

#: BLOCK_M, BLOCK_N, BLOCK_K, warps, stages.
Config = tuple[int, int, int, int, int]


class Tiles(NamedTuple):
    """Of gate and up, and of down; both have the same BLOCK_M, since they share the sorted pairs."""

    gate_up: Config
    down: Config


#: (experts held, hidden size, size of their slice) -> (pairs up to, tiles), in rising order.
Table = dict[tuple[int, int, int], list[tuple[int, Tiles]]]

#: (rows of an expert up to, tile)
BY_ROWS: tuple[tuple[int, Config], ...] = (
    (16, (16, 128, 128, 4, 4)),
    (48, (32, 128, 128, 4, 3)),
    (128, (64, 128, 64, 4, 4)),
    (1 << 30, (128, 128, 64, 8, 4)),
)

#: What bench_moe.py tries.
CANDIDATES: tuple[Config, ...] = (
    (16, 64, 128, 4, 4),
    (16, 64, 256, 4, 4),
    (16, 128, 128, 4, 4),
    (16, 128, 64, 4, 5),
    (16, 256, 64, 8, 4),
    (32, 64, 128, 4, 4),
    (32, 128, 128, 4, 3),
    (64, 128, 64, 4, 4),
    (64, 256, 64, 8, 3),
    (128, 128, 64, 8, 4),
    (128, 256, 64, 8, 3),
)


def tiles(
    num_pairs: int, num_held: int, hidden: int, size: int, device: str | None = None
) -> Tiles:
    """For so many (token, expert) pairs; num_held, hidden, size: shape of the experts held.

    device: name of the GPU.
    """
    measured = table_of(device).get((num_held, hidden, size)) if device else None
    if measured:
        return next((found for most, found in measured if num_pairs <= most), measured[-1][1])
    mean = num_pairs / num_held
    config = next(config for most, config in BY_ROWS if mean <= most)
    return Tiles(config, config)


@cache
def table_of(device: str, path: Path = Path(__file__).with_name("tuned.json")) -> Table:
    """What was measured on a device; empty for one that was not."""
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8")).get(device, [])
    return {
        tuple(shape): [(most, Tiles(tuple(gate_up), tuple(down))) for most, gate_up, down in found]
        for shape, found in entries
    }
